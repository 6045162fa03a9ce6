// A tokenizer whose ids are bytes; letters on the way back, so that any id has text.
#ifndef PHALANX_TESTS_RUNTIME_SERVING_BYTE_TOKENIZER_H_
#define PHALANX_TESTS_RUNTIME_SERVING_BYTE_TOKENIZER_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::serving {

class ByteTokenizer final : public tokenizer::Tokenizer {
 public:
  static constexpr int32_t kBos = 256;

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text, const tokenizer::EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids.push_back(kBos);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  int32_t vocab_size() const override { return kBos + 1; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  absl::StatusOr<std::string> IdToToken(int32_t id) const override {
    return id == kBos ? std::string("<bos>") : std::string(1, static_cast<char>(id));
  }
  bool IsSpecial(int32_t id) const override { return id == kBos; }
  std::unique_ptr<tokenizer::StreamDecoder> NewStreamDecoder(bool skip) const override {
    return std::make_unique<Decoder>(skip);
  }

  static char Letter(int32_t id) { return static_cast<char>('a' + id % 26); }

 private:
  class Decoder final : public tokenizer::StreamDecoder {
   public:
    explicit Decoder(bool skip) : skip_(skip) {}
    std::string Next(int32_t id) override {
      if (id == kBos) return skip_ ? "" : "<bos>";
      return std::string(1, Letter(id));
    }
    std::string Flush() override { return ""; }

   private:
    const bool skip_;
  };
};

}  // namespace phalanx::serving

#endif  // PHALANX_TESTS_RUNTIME_SERVING_BYTE_TOKENIZER_H_
