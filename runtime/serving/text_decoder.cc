#include "runtime/serving/text_decoder.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

namespace phalanx::serving {
namespace {

class Adapter final : public coordinator::TextDecoder {
 public:
  explicit Adapter(std::unique_ptr<tokenizer::StreamDecoder> decoder)
      : decoder_(std::move(decoder)) {}
  std::string Push(int32_t token_id) override { return decoder_->Next(token_id); }
  std::string Flush() override { return decoder_->Flush(); }

 private:
  std::unique_ptr<tokenizer::StreamDecoder> decoder_;
};

}  // namespace

coordinator::TextDecoderFactory MakeTextDecoderFactory(const tokenizer::Tokenizer& tokenizer) {
  return [&tokenizer](const coordinator::GenerateRequest& request) {
    return std::make_unique<Adapter>(tokenizer.NewStreamDecoder(request.skip_special_tokens));
  };
}

int64_t MaxPromptBytes(const tokenizer::Tokenizer& tokenizer, int64_t context_length) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const absl::StatusOr<std::string> token = tokenizer.IdToToken(id);
    if (token.ok()) longest = std::max(longest, token->size());
  }
  return 4 * context_length * static_cast<int64_t>(longest);
}

}  // namespace phalanx::serving
