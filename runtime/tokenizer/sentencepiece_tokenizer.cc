#include "runtime/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "runtime/tokenizer/added_vocabulary.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/pipeline_tokenizer.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

using Processor = const SentencePieceModel;

constexpr size_t kMaxSentencePieceBytes = size_t{16} << 20;
constexpr std::string_view kSpace = "\xE2\x96\x81";      // U+2581
constexpr std::string_view kUnknown = " \xE2\x81\x87 ";  // what the library decodes <unk> to

struct Settings {
  bool add_bos = true;
  bool add_eos = false;
  std::vector<AddedToken> added;  // beyond the model's own pieces
};

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<Processor> processor, Settings settings,
                         AddedVocabulary added)
      : processor_(std::move(processor)), settings_(std::move(settings)), added_(std::move(added)) {
    size_ = processor_->size();
    for (const AddedToken& token : added_.tokens()) size_ = std::max(size_, token.id + 1);
    FindLeadingSpaceRule();
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override {
    if (absl::Status s = CheckText(text, kMaxSentencePieceBytes); !s.ok()) return s;
    std::vector<int32_t> ids;
    if (options.add_special_tokens && settings_.add_bos && processor_->bos_id() >= 0) {
      ids.push_back(processor_->bos_id());
    }
    std::vector<int32_t> part;
    for (const AddedSplit& split : added_.SplitRaw(text, options.parse_special)) {
      if (split.id >= 0) {
        ids.push_back(split.id);
        continue;
      }
      const std::string error =
          processor_->Encode(text.substr(split.begin, split.end - split.begin), &part);
      if (!error.empty()) return absl::InternalError(Concat("SentencePiece: ", error));
      ids.insert(ids.end(), part.begin(), part.end());
    }
    if (options.add_special_tokens && settings_.add_eos && processor_->eos_id() >= 0) {
      ids.push_back(processor_->eos_id());
    }
    return ids;
  }

  int32_t vocab_size() const override { return size_; }

  std::optional<int32_t> TokenToId(std::string_view token) const override {
    if (const auto id = added_.TokenToId(token)) return id;
    const int id = processor_->PieceToId(token);
    if (processor_->IdToPiece(id) != token) return std::nullopt;
    return id;
  }

  absl::StatusOr<std::string> IdToToken(int32_t id) const override {
    if (const AddedToken* token = added_.Find(id)) return token->content;
    if (IsPiece(id)) return processor_->IdToPiece(id);
    return absl::InvalidArgumentError(
        Concat("token id ", id, " is not in the vocabulary of ", size_, " ids"));
  }

  bool IsSpecial(int32_t id) const override {
    if (const AddedToken* token = added_.Find(id)) return token->special;
    return IsPiece(id) && processor_->IsControl(id);
  }

  std::unique_ptr<StreamDecoder> NewStreamDecoder(bool skip_special_tokens) const override;

 private:
  class Stream;

  bool IsPiece(int32_t id) const { return id >= 0 && id < processor_->size(); }

  // Whether the library drops the first space of a text, and whether it drops all leading ones,
  // depends on settings that its interface doesn't show; so it is asked.
  void FindLeadingSpaceRule() {
    const int space = processor_->PieceToId(kSpace);
    const bool has_space = processor_->IdToPiece(space) == kSpace;
    for (int id = 0; id < processor_->size(); ++id) {
      const std::string& piece = processor_->IdToPiece(id);
      if (piece.size() <= kSpace.size() || piece.compare(0, kSpace.size(), kSpace) != 0 ||
          piece.compare(kSpace.size(), kSpace.size(), kSpace) == 0 || processor_->IsControl(id) ||
          processor_->IsUnknown(id) || processor_->IsByte(id)) {
        continue;
      }
      std::string text;
      strip_first_space_ =
          processor_->Decode({id}, &text).empty() && !text.empty() && text[0] != ' ';
      if (strip_first_space_ && has_space) {
        strip_all_spaces_ =
            processor_->Decode({space, id}, &text).empty() && !text.empty() && text[0] != ' ';
      }
      return;
    }
  }

  std::unique_ptr<Processor> processor_;
  Settings settings_;
  AddedVocabulary added_;  // control pieces and the tokens beyond the model's
  int32_t size_ = 0;
  bool strip_first_space_ = false;
  bool strip_all_spaces_ = false;
};

// SentencePieceProcessor::Decode, token by token.
class SentencePieceTokenizer::Stream : public StreamDecoder {
 public:
  Stream(const SentencePieceTokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  std::string Next(int32_t id) override {
    const Processor& processor = *tokenizer_.processor_;
    std::string out;
    if (const AddedToken* token = tokenizer_.added_.Find(id)) {
      const bool silent = token->special && skip_special_tokens_;
      EndBytes(&out);
      bool strip = false;
      UpdateStart(out, &strip);
      if (!silent) out += token->content;
    } else if (!tokenizer_.IsPiece(id)) {
      return out;
    } else if (processor.IsByte(id)) {
      const char byte = ByteOf(processor.IdToPiece(id));
      bytes_.Append(std::string_view(&byte, 1), &out);
    } else {
      EndBytes(&out);
      bool strip = false;
      UpdateStart(out, &strip);
      if (processor.IsUnknown(id)) {
        out += kUnknown;
      } else {
        std::string_view piece = processor.IdToPiece(id);
        if (strip && piece.substr(0, kSpace.size()) == kSpace) {
          piece.remove_prefix(kSpace.size());
          space_dropped_ = !tokenizer_.strip_all_spaces_;
        }
        for (size_t at = 0; at < piece.size();) {
          if (piece.substr(at, kSpace.size()) == kSpace) {
            out.push_back(' ');
            at += kSpace.size();
          } else {
            out.push_back(piece[at++]);
          }
        }
      }
    }
    if (!out.empty()) text_seen_ = true;
    return out;
  }

  std::string Flush() override {
    std::string out;
    EndBytes(&out);
    return out;
  }

 private:
  static char ByteOf(const std::string& piece) {  // "<0xHH>"
    int32_t value = 0;
    return piece.size() == 6 && absl::SimpleHexAtoi(piece.substr(3, 2), &value)
               ? static_cast<char>(value)
               : '\0';
  }
  void EndBytes(std::string* out) { bytes_.Finish(out); }
  void UpdateStart(const std::string& out, bool* strip) {
    if (space_dropped_ || text_seen_ || !out.empty()) at_start_ = false;
    *strip = at_start_ && tokenizer_.strip_first_space_;
    space_dropped_ = false;
  }

  const SentencePieceTokenizer& tokenizer_;
  bool skip_special_tokens_;
  LossyUtf8Decoder bytes_{LossyUtf8Decoder::Unit::kByte};
  bool at_start_ = true;
  bool space_dropped_ = false;
  bool text_seen_ = false;
};

std::unique_ptr<StreamDecoder> SentencePieceTokenizer::NewStreamDecoder(
    bool skip_special_tokens) const {
  return std::make_unique<Stream>(*this, skip_special_tokens);
}

absl::Status ReadAddedToken(const Json& json, const std::string& where, int64_t id,
                            int32_t piece_count, Settings* settings) {
  ObjectReader reader(json, where);
  AddedToken token;
  token.content = reader.String("content");
  token.lstrip = reader.Bool("lstrip", false);
  token.rstrip = reader.Bool("rstrip", false);
  token.single_word = reader.Bool("single_word", false);
  token.special = reader.Bool("special", false);
  token.normalized = false;
  token.id = static_cast<int32_t>(id);
  if (absl::Status s = reader.Finish({"normalized", "__type"}); !s.ok()) return s;
  if (id >= piece_count) settings->added.push_back(std::move(token));
  return absl::OkStatus();
}

absl::StatusOr<Settings> ReadSettings(const std::filesystem::path& model_dir, int32_t piece_count) {
  Settings settings;
  const auto config_text = ReadFile(model_dir / "tokenizer_config.json");
  if (config_text.ok()) {
    const auto config = ParseJson(*config_text, "tokenizer_config.json");
    if (!config.ok()) return config.status();
    ObjectReader reader(*config, "tokenizer_config.json");
    settings.add_bos = reader.Bool("add_bos_token", true);
    settings.add_eos = reader.Bool("add_eos_token", false);
    const Json none = Json::object();
    const Json* added =
        reader.Has("added_tokens_decoder") ? reader.Object("added_tokens_decoder") : &none;
    // The rest of that file is about chat templates and Python classes.
    if (absl::Status s = reader.Faults(); !s.ok()) return s;
    for (const auto& item : added->items()) {
      const std::string where = Concat("tokenizer_config.json: added_tokens_decoder.", item.key());
      int64_t id = 0;
      if (!absl::SimpleAtoi(item.key(), &id) || id < 0 || id > kMaxTokenId) {
        return absl::InvalidArgumentError(Concat(where, ": the key is not a token id"));
      }
      absl::Status s = ReadAddedToken(item.value(), where, id, piece_count, &settings);
      if (!s.ok()) return s;
    }
    if (!added->empty()) return settings;
  } else if (!absl::IsNotFound(config_text.status())) {
    return config_text.status();
  }
  const auto added_text = ReadFile(model_dir / "added_tokens.json");
  if (absl::IsNotFound(added_text.status())) return settings;
  if (!added_text.ok()) return added_text.status();
  const auto added = ParseJson(*added_text, "added_tokens.json");
  if (!added.ok()) return added.status();
  for (const auto& item : added->items()) {
    if (!item.value().is_number_unsigned() || item.value().get<uint64_t>() > kMaxTokenId) {
      return absl::InvalidArgumentError(
          Concat("added_tokens.json: \"", item.key(), "\" has no token id"));
    }
    AddedToken token;
    token.content = item.key();
    token.normalized = false;
    token.id = static_cast<int32_t>(item.value().get<uint64_t>());
    if (token.id >= piece_count) settings.added.push_back(std::move(token));
  }
  return settings;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(
    std::string_view content, const std::filesystem::path& model_dir) {
  std::unique_ptr<Processor> processor = SentencePieceModel::Load(content);
  if (processor == nullptr) {
    return absl::InvalidArgumentError(
        "tokenizer.model: not a SentencePiece model; the file is truncated or of another kind");
  }
  auto settings = ReadSettings(model_dir, processor->size());
  if (!settings.ok()) return settings.status();
  std::vector<AddedToken> tokens;
  for (int id = 0; id < processor->size(); ++id) {
    if (!processor->IsControl(id) || processor->IdToPiece(id).empty()) continue;
    AddedToken token;
    token.content = processor->IdToPiece(id);
    token.normalized = false;
    token.special = true;
    token.id = id;
    tokens.push_back(std::move(token));
  }
  for (AddedToken& token : settings->added) {
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  auto added = AddedVocabulary::Create(std::move(tokens), "tokenizer.model", nullptr);
  if (!added.ok()) return added.status();
  return std::make_unique<SentencePieceTokenizer>(std::move(processor), *std::move(settings),
                                                  *std::move(added));
}

}  // namespace phalanx::tokenizer
