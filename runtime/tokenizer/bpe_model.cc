#include "runtime/tokenizer/bpe_model.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <mutex>
#include <queue>

#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr uint32_t kLow = 512;          // characters with direct tables
constexpr size_t kCutAbove = 64;        // bytes; a shorter word is not worth cutting
constexpr size_t kMaxCachedWord = 128;  // bytes
constexpr size_t kCacheSlots = 1 << 14;
constexpr size_t kCacheLocks = 64;

uint64_t PairKey(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

}  // namespace

// Direct-mapped: a word has one slot, and the latest word keeps it. At most kCacheSlots words of
// kMaxCachedWord bytes.
class BpeModel::WordCache {
 public:
  WordCache() : slots_(kCacheSlots) {}

  bool Find(std::string_view word, size_t hash, std::vector<int32_t>* ids) {
    Slot& slot = slots_[hash % kCacheSlots];
    const std::lock_guard<std::mutex> lock(locks_[hash % kCacheLocks]);
    if (slot.word != word) return false;
    ids->insert(ids->end(), slot.ids.begin(), slot.ids.end());
    return true;
  }

  void Insert(std::string_view word, size_t hash, const int32_t* begin, const int32_t* end) {
    Slot& slot = slots_[hash % kCacheSlots];
    const std::lock_guard<std::mutex> lock(locks_[hash % kCacheLocks]);
    slot.word.assign(word);
    slot.ids.assign(begin, end);
  }

 private:
  struct Slot {
    std::string word;  // empty: free
    std::vector<int32_t> ids;
  };
  std::vector<Slot> slots_;
  std::array<std::mutex, kCacheLocks> locks_;
};

BpeModel::BpeModel() : cache_(std::make_unique<WordCache>()) {}
BpeModel::~BpeModel() = default;

absl::StatusOr<std::unique_ptr<const BpeModel>> BpeModel::Create(BpeConfig config,
                                                                 const std::string& where) {
  auto model = std::unique_ptr<BpeModel>(new BpeModel);
  model->unk_token_ = config.unk_token;
  model->prefix_ = config.continuing_subword_prefix;
  model->suffix_ = config.end_of_word_suffix;
  model->fuse_unk_ = config.fuse_unk;
  model->byte_fallback_ = config.byte_fallback;
  model->ignore_merges_ = config.ignore_merges;
  if (absl::Status s = model->AddVocab(&config, where); !s.ok()) return s;
  if (absl::Status s = model->AddMerges(config, where); !s.ok()) return s;
  model->FindUncrossable();
  return std::unique_ptr<const BpeModel>(std::move(model));
}

absl::StatusOr<std::unique_ptr<const BpeModel>> BpeModel::FromRanks(std::vector<std::string> tokens,
                                                                    const std::string& where) {
  auto model = std::unique_ptr<BpeModel>(new BpeModel);
  model->ignore_merges_ = true;  // a word that is a token is that token
  BpeConfig config;
  for (size_t i = 0; i < tokens.size(); ++i) {
    config.vocab.emplace_back(std::move(tokens[i]), static_cast<int32_t>(i));
  }
  if (absl::Status s = model->AddVocab(&config, where); !s.ok()) return s;
  for (int32_t id = 0; id < model->id_limit(); ++id) {
    const std::string& token = model->tokens_[static_cast<size_t>(id)];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      if (IsUtf8Continuation(token[cut])) continue;
      const auto left = model->TokenToId(std::string_view(token).substr(0, cut));
      const auto right = model->TokenToId(std::string_view(token).substr(cut));
      if (left && right) model->AddMerge(*left, *right, static_cast<uint32_t>(id), id);
    }
  }
  model->FindUncrossable();
  return std::unique_ptr<const BpeModel>(std::move(model));
}

absl::Status BpeModel::AddVocab(BpeConfig* config, const std::string& where) {
  int32_t limit = 0;
  for (const auto& entry : config->vocab) limit = std::max(limit, entry.second + 1);
  tokens_.resize(static_cast<size_t>(limit));
  has_token_.resize(static_cast<size_t>(limit));
  vocab_.reserve(config->vocab.size());
  for (auto& [token, id] : config->vocab) {
    const auto index = static_cast<size_t>(id);
    if (has_token_[index]) {
      return absl::InvalidArgumentError(Concat(where, ".vocab: the id ", id,
                                               " belongs to two tokens, \"", tokens_[index],
                                               "\" and \"", token, "\""));
    }
    has_token_[index] = true;
    tokens_[index] = token;
    vocab_.emplace(std::move(token), id);
  }
  for (uint32_t c = 0; c < kLow; ++c) {
    std::string utf8;
    AppendUtf8(c, &utf8);
    low_character_ids_[c] = TokenToId(utf8).value_or(-1);
  }
  for (uint32_t b = 0; b < 256; ++b) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    const char name[] = {'<', '0', 'x', kHex[b >> 4], kHex[b & 15], '>'};
    byte_ids_[b] = TokenToId(std::string_view(name, sizeof(name))).value_or(-1);
  }
  if (unk_token_) unk_id_ = TokenToId(*unk_token_).value_or(-1);
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerges(const BpeConfig& config, const std::string& where) {
  merges_.reserve(config.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < config.merges.size(); ++rank) {
    const auto& [left, right] = config.merges[rank];
    const auto left_id = TokenToId(left);
    const auto right_id = TokenToId(right);
    if (right.size() < prefix_.size()) {
      return absl::InvalidArgumentError(Concat(where, ".merges[", rank, "]: \"", right,
                                               "\" is shorter than continuing_subword_prefix \"",
                                               prefix_, "\""));
    }
    joined = left;
    joined.append(right, prefix_.size(), std::string::npos);
    const auto id = TokenToId(joined);
    if (!left_id || !right_id || !id) {
      return absl::InvalidArgumentError(Concat(where, ".merges[", rank, "]: the token \"",
                                               !left_id    ? left
                                               : !right_id ? right
                                                           : joined,
                                               "\" is not in the vocabulary"));
    }
    AddMerge(*left_id, *right_id, static_cast<uint32_t>(rank), *id);
  }
  return absl::OkStatus();
}

// A pair given twice counts with its last rank.
void BpeModel::AddMerge(int32_t left, int32_t right, uint32_t rank, int32_t id) {
  merges_[PairKey(static_cast<uint32_t>(left), static_cast<uint32_t>(right))] = {rank, id};
  if (id_of_rank_.size() <= rank) id_of_rank_.resize(rank + 1, -1);
  id_of_rank_[rank] = id;
}

void BpeModel::FindUncrossable() {
  if (!prefix_.empty() || !suffix_.empty()) return;
  // The argument holds while every symbol spells exactly the text it covers: not for the unknown
  // token and bytes, so they must not take part in merges.
  std::vector<bool> spells(tokens_.size(), true);
  if (unk_id_ >= 0) spells[static_cast<size_t>(unk_id_)] = false;
  for (int32_t id : byte_ids_) {
    if (id >= 0 && byte_fallback_) spells[static_cast<size_t>(id)] = false;
  }
  low_pairs_.assign(kLow * kLow, false);
  for (const auto& [key, merge] : merges_) {
    if (!spells[key >> 32] || !spells[key & UINT32_MAX] || !spells[static_cast<size_t>(merge.id)]) {
      return;
    }
    const std::string& token = tokens_[static_cast<size_t>(merge.id)];
    uint32_t previous = 0;
    for (size_t i = 0; i < token.size();) {
      const bool first = i == 0;
      const uint32_t c = NextCodePoint(token, &i);
      if (!first) {
        if (previous < kLow && c < kLow) {
          low_pairs_[previous * kLow + c] = true;
        } else {
          pairs_.insert(PairKey(previous, c));
        }
      }
      previous = c;
    }
  }
  can_cut_ = true;
}

bool BpeModel::MayMergeAcross(uint32_t left, uint32_t right) const {
  if (left < kLow && right < kLow) return low_pairs_[left * kLow + right];
  return pairs_.contains(PairKey(left, right));
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(static_cast<uint32_t>(left), static_cast<uint32_t>(right)));
  return it == merges_.end() ? nullptr : &it->second;
}

std::optional<int32_t> BpeModel::TokenToId(std::string_view token) const {
  const auto it = vocab_.find(token);
  if (it == vocab_.end()) return std::nullopt;
  return it->second;
}

const std::string* BpeModel::IdToToken(int32_t id) const {
  if (id < 0 || id >= id_limit() || !has_token_[static_cast<size_t>(id)]) return nullptr;
  return &tokens_[static_cast<size_t>(id)];
}

int32_t BpeModel::CharacterId(uint32_t code_point, std::string_view utf8) const {
  if (code_point < kLow) return low_character_ids_[code_point];
  return TokenToId(utf8).value_or(-1);
}

absl::Status BpeModel::Encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const auto id = TokenToId(word)) {
      ids->push_back(*id);
      return absl::OkStatus();
    }
  }
  if (!can_cut_ || word.size() <= kCutAbove) return EncodeCached(word, ids);
  // Cut only between two characters that are tokens: unknown ones may fuse.
  size_t begin = 0;
  size_t i = 0;
  uint32_t previous = NextCodePoint(word, &i);
  bool previous_known = CharacterId(previous, word.substr(0, i)) >= 0;
  while (i < word.size()) {
    const size_t at = i;
    const uint32_t c = NextCodePoint(word, &i);
    const bool known = CharacterId(c, word.substr(at, i - at)) >= 0;
    if (known && previous_known && !MayMergeAcross(previous, c)) {
      if (absl::Status s = EncodeCached(word.substr(begin, at - begin), ids); !s.ok()) return s;
      begin = at;
    }
    previous = c;
    previous_known = known;
  }
  return EncodeCached(word.substr(begin), ids);
}

absl::Status BpeModel::EncodeCached(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.size() > kMaxCachedWord) return EncodeWord(word, ids);
  const size_t hash = StringHash()(word);
  if (cache_->Find(word, hash, ids)) return absl::OkStatus();
  const size_t before = ids->size();
  if (absl::Status s = EncodeWord(word, ids); !s.ok()) return s;
  cache_->Insert(word, hash, ids->data() + before, ids->data() + ids->size());
  return absl::OkStatus();
}

absl::Status BpeModel::EncodeWord(std::string_view word, std::vector<int32_t>* ids) const {
  std::vector<int32_t> symbols;
  if (absl::Status s = InitialSymbols(word, &symbols); !s.ok()) return s;
  MergeAll(&symbols);
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

absl::Status BpeModel::InitialSymbols(std::string_view word, std::vector<int32_t>* symbols) const {
  symbols->reserve(word.size());
  bool pending_unk = false;
  std::string decorated;
  for (size_t i = 0; i < word.size();) {
    const size_t begin = i;
    const uint32_t c = NextCodePoint(word, &i);
    std::string_view piece = word.substr(begin, i - begin);
    int32_t id;
    const bool add_prefix = begin > 0 && !prefix_.empty();
    const bool add_suffix = i == word.size() && !suffix_.empty();
    if (add_prefix || add_suffix) {
      decorated.clear();
      if (add_prefix) decorated += prefix_;
      decorated += piece;
      if (add_suffix) decorated += suffix_;
      piece = decorated;
      id = TokenToId(piece).value_or(-1);
    } else {
      id = CharacterId(c, piece);
    }
    if (id >= 0) {
      if (pending_unk) symbols->push_back(unk_id_);
      pending_unk = false;
      symbols->push_back(id);
      continue;
    }
    if (byte_fallback_ && std::all_of(piece.begin(), piece.end(), [&](char b) {
          return byte_ids_[static_cast<uint8_t>(b)] >= 0;
        })) {
      for (char b : piece) symbols->push_back(byte_ids_[static_cast<uint8_t>(b)]);
      continue;
    }
    if (!unk_token_) continue;  // as the library does: the character is dropped
    if (unk_id_ < 0) {
      return absl::FailedPreconditionError(
          Concat("the text needs the unknown token \"", *unk_token_,
                 "\", which is not in the tokenizer's vocabulary"));
    }
    if (pending_unk && !fuse_unk_) symbols->push_back(unk_id_);
    pending_unk = true;
  }
  if (pending_unk) symbols->push_back(unk_id_);
  return absl::OkStatus();
}

// Always the lowest rank, of equal ranks the leftmost. Symbols form a linked list; a queue entry is
// rank << 32 | position of the left symbol, and is stale where the pair there has another result.
void BpeModel::MergeAll(std::vector<int32_t>* symbols) const {
  std::vector<int32_t>& id = *symbols;
  const size_t n = id.size();
  if (n < 2) return;
  constexpr uint32_t kNone = UINT32_MAX;
  constexpr int32_t kRemoved = -1;
  std::vector<uint64_t> initial;
  for (size_t i = 0; i + 1 < n; ++i) {
    if (const Merge* merge = FindMerge(id[i], id[i + 1])) {
      initial.push_back(uint64_t{merge->rank} << 32 | i);
    }
  }
  if (initial.empty()) return;
  std::sort(initial.begin(), initial.end());
  std::vector<uint32_t> previous(n);
  std::vector<uint32_t> next(n);
  for (size_t i = 0; i < n; ++i) {
    previous[i] = i == 0 ? kNone : static_cast<uint32_t>(i - 1);
    next[i] = i + 1 == n ? kNone : static_cast<uint32_t>(i + 1);
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> later;
  size_t taken = 0;
  while (taken < initial.size() || !later.empty()) {
    uint64_t entry;
    if (later.empty() || (taken < initial.size() && initial[taken] <= later.top())) {
      entry = initial[taken++];
    } else {
      entry = later.top();
      later.pop();
    }
    const auto at = static_cast<uint32_t>(entry & UINT32_MAX);
    const int32_t result = id_of_rank_[entry >> 32];
    if (id[at] == kRemoved || next[at] == kNone) continue;
    const uint32_t right = next[at];
    const Merge* merge = FindMerge(id[at], id[right]);
    if (merge == nullptr || merge->id != result) continue;
    id[at] = result;
    id[right] = kRemoved;
    next[at] = next[right];
    if (next[at] != kNone) previous[next[at]] = at;
    if (previous[at] != kNone) {
      if (const Merge* m = FindMerge(id[previous[at]], result)) {
        later.push(uint64_t{m->rank} << 32 | previous[at]);
      }
    }
    if (next[at] != kNone) {
      if (const Merge* m = FindMerge(result, id[next[at]])) {
        later.push(uint64_t{m->rank} << 32 | at);
      }
    }
  }
  id.erase(std::remove(id.begin(), id.end(), kRemoved), id.end());
}

}  // namespace phalanx::tokenizer
