#ifndef PHALANX_RUNTIME_TOKENIZER_BPE_MODEL_H_
#define PHALANX_RUNTIME_TOKENIZER_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {

// What describes a BPE model; the field names are those of tokenizer.json's "model".
struct BpeConfig {
  // Token and id; ids and tokens are unique, ids in [0, 2^24).
  std::vector<std::pair<std::string, int32_t>> vocab;
  // Left, right; the index is the rank, lower first.
  std::vector<std::pair<std::string, std::string>> merges;
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

// Byte pair encoding (https://arxiv.org/abs/1508.07909) with the exact order of merges, unknown
// tokens and byte fallback of Hugging Face `tokenizers`. O(n log n) in a word's length. Immutable
// but for a bounded cache of words; thread-safe.
class BpeModel {
 public:
  // `json` is the "model" object of tokenizer.json.
  static absl::StatusOr<std::unique_ptr<const BpeModel>> FromJson(const Json& json,
                                                                  const std::string& where);
  // `where` leads the messages.
  static absl::StatusOr<std::unique_ptr<const BpeModel>> Create(BpeConfig config,
                                                                const std::string& where);
  // Ranks of tiktoken's form: tokens[i] is the byte-level spelling of token i, and any two adjacent
  // tokens whose concatenation is a token may merge, the lowest resulting id first.
  static absl::StatusOr<std::unique_ptr<const BpeModel>> FromRanks(std::vector<std::string> tokens,
                                                                   const std::string& where);
  ~BpeModel();

  // Appends the ids of `word`: one pre-token in valid UTF-8, not empty, less than 2 GiB.
  // FAILED_PRECONDITION where an unknown token is needed but is not in the vocabulary.
  absl::Status Encode(std::string_view word, std::vector<int32_t>* ids) const;

  std::optional<int32_t> TokenToId(std::string_view token) const;
  // nullptr where `id` is none of the model's.
  const std::string* IdToToken(int32_t id) const;
  // The number of tokens, and the largest id + 1.
  int32_t size() const { return static_cast<int32_t>(vocab_.size()); }
  int32_t id_limit() const { return static_cast<int32_t>(tokens_.size()); }

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  class WordCache;

  BpeModel();
  absl::Status AddVocab(BpeConfig* config, const std::string& where);
  absl::Status AddMerges(const BpeConfig& config, const std::string& where);
  void AddMerge(int32_t left, int32_t right, uint32_t rank, int32_t id);
  void FindUncrossable();
  const Merge* FindMerge(int32_t left, int32_t right) const;
  bool MayMergeAcross(uint32_t left, uint32_t right) const;
  int32_t CharacterId(uint32_t code_point, std::string_view utf8) const;
  absl::Status EncodeCached(std::string_view word, std::vector<int32_t>* ids) const;
  absl::Status EncodeWord(std::string_view word, std::vector<int32_t>* ids) const;
  absl::Status InitialSymbols(std::string_view word, std::vector<int32_t>* symbols) const;
  void MergeAll(std::vector<int32_t>* symbols) const;

  StringMap<int32_t> vocab_;
  std::vector<std::string> tokens_;  // by id
  std::vector<bool> has_token_;      // by id
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::vector<int32_t> id_of_rank_;
  std::array<int32_t, 512> low_character_ids_;  // of U+0000 to U+01FF; -1: not a token
  std::array<int32_t, 256> byte_ids_;           // of <0x00> to <0xFF>; -1: not a token
  std::optional<std::string> unk_token_;
  int32_t unk_id_ = -1;
  std::string prefix_;
  std::string suffix_;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;

  // Pairs of characters that stand side by side inside some merged token. Between any other two no
  // merge can ever happen, so a long word falls apart there, exactly.
  bool can_cut_ = false;
  std::vector<bool> low_pairs_;  // [512 * 512]
  absl::flat_hash_set<uint64_t> pairs_;

  std::unique_ptr<WordCache> cache_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_BPE_MODEL_H_
