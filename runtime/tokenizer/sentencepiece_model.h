#ifndef PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_
#define PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace phalanx::tokenizer {

// sentencepiece::SentencePieceProcessor behind an interface without its header, which defines an
// absl::string_view that clashes with Abseil's. Immutable and thread-safe.
class SentencePieceModel {
 public:
  // `content` is that of a model file; nullptr where it is none.
  static std::unique_ptr<const SentencePieceModel> Load(std::string_view content);
  ~SentencePieceModel();

  // Replaces `*ids`. An error message, empty on success.
  std::string Encode(std::string_view text, std::vector<int32_t>* ids) const;
  std::string Decode(const std::vector<int32_t>& ids, std::string* text) const;

  int32_t size() const;
  int32_t bos_id() const;                           // -1: none
  int32_t eos_id() const;                           // -1: none
  int32_t PieceToId(std::string_view piece) const;  // the unknown token's for any other text
  // 0 <= id < size().
  const std::string& IdToPiece(int32_t id) const;
  bool IsControl(int32_t id) const;
  bool IsUnknown(int32_t id) const;
  bool IsByte(int32_t id) const;

 private:
  struct Impl;
  explicit SentencePieceModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_SENTENCEPIECE_MODEL_H_
