#ifndef PHALANX_RUNTIME_TOKENIZER_ADDED_VOCABULARY_H_
#define PHALANX_RUNTIME_TOKENIZER_ADDED_VOCABULARY_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {

// The field names are those of tokenizer.json's "added_tokens".
struct AddedToken {
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = true;
  bool special = false;
  int32_t id = -1;
  std::string normalized_content;  // what the normalizer makes of a normalized token
};

// A stretch of text: an added token (id >= 0), or text for the model (id < 0).
struct AddedSplit {
  int32_t id;
  size_t begin;
  size_t end;
};

// Finds the leftmost, of these the longest, of many strings. O(text * longest string).
class TokenTrie {
 public:
  void Add(std::string_view token, int32_t value);
  bool empty() const { return nodes_.size() == 1; }
  // The longest string that starts at `position`: its end and value.
  std::optional<std::pair<size_t, int32_t>> LongestAt(std::string_view text, size_t position) const;
  // The first position at or after `position` where a string may start; text.size() if none.
  size_t NextCandidate(std::string_view text, size_t position) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> edges;  // byte -> node
    int32_t value = -1;
  };
  std::vector<Node> nodes_{1};
  std::array<bool, 256> starts_{};
};

// Tokens matched in the text before the model sees it, as Hugging Face `tokenizers` does: first
// those with normalized = false in the raw text, then, in what is left and normalized, the others.
// Immutable once built; thread-safe.
class AddedVocabulary {
 public:
  // The id that the model has for a token.
  using ModelLookup = std::function<std::optional<int32_t>(std::string_view)>;

  // Ids follow the library: that of the model where it has the token, else the next free one behind
  // `model_size`. `normalizer` may be nullptr. INVALID_ARGUMENT where a token's id in the file
  // differs from that, or two tokens can't be told apart.
  static absl::StatusOr<AddedVocabulary> FromJson(const Json& json, const std::string& where,
                                                  int32_t model_size, const ModelLookup& model,
                                                  const Normalizer* normalizer);
  // Tokens with their ids given.
  static absl::StatusOr<AddedVocabulary> Create(std::vector<AddedToken> tokens,
                                                const std::string& where,
                                                const Normalizer* normalizer);

  // Cuts `text` into added tokens and text. Special tokens stay text unless `parse_special`.
  std::vector<AddedSplit> SplitRaw(std::string_view text, bool parse_special) const {
    return Split(text, raw_, parse_special);
  }
  std::vector<AddedSplit> SplitNormalized(std::string_view text, bool parse_special) const {
    return Split(text, normalized_, parse_special);
  }

  std::optional<int32_t> TokenToId(std::string_view content) const;
  const AddedToken* Find(int32_t id) const;  // nullptr: not an added token
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  std::vector<AddedSplit> Split(std::string_view text, const TokenTrie& trie,
                                bool parse_special) const;

  std::vector<AddedToken> tokens_;
  StringMap<int32_t> id_of_content_;
  absl::flat_hash_map<int32_t, size_t> index_of_id_;
  TokenTrie raw_;
  TokenTrie normalized_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_ADDED_VOCABULARY_H_
