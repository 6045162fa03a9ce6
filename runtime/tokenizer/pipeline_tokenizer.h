#ifndef PHALANX_RUNTIME_TOKENIZER_PIPELINE_TOKENIZER_H_
#define PHALANX_RUNTIME_TOKENIZER_PIPELINE_TOKENIZER_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/added_vocabulary.h"
#include "runtime/tokenizer/bpe_model.h"
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pre_tokenizer.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::tokenizer {

// Validates a text for Encode.
absl::Status CheckText(std::string_view text, size_t max_bytes);

// The pipeline of Hugging Face `tokenizers`: added tokens, normalizer, pre-tokenizer, BPE,
// post-processor; and the decoder back.
class PipelineTokenizer : public Tokenizer {
 public:
  struct Parts {
    std::unique_ptr<const Normalizer> normalizer;       // or nullptr
    std::unique_ptr<const PreTokenizer> pre_tokenizer;  // or nullptr
    std::unique_ptr<const BpeModel> model;
    AddedVocabulary added;
    PostProcessor post_processor;
    Decoder decoder;
  };
  explicit PipelineTokenizer(Parts parts);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  int32_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> TokenToId(std::string_view token) const override;
  absl::StatusOr<std::string> IdToToken(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  std::unique_ptr<StreamDecoder> NewStreamDecoder(bool skip_special_tokens) const override;

 private:
  class Stream;
  absl::Status EncodeText(std::string_view text, bool parse_special,
                          std::vector<int32_t>* ids) const;
  absl::Status EncodeSegment(Segment segment, bool parse_special, RegexScratch* scratch,
                             std::vector<int32_t>* ids) const;

  Parts parts_;
  int32_t vocab_size_ = 0;
};

// `text` is the content of a tokenizer.json.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(std::string_view text);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_PIPELINE_TOKENIZER_H_
