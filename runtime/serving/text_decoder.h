// The tokenizer as the coordinator wants it.
#ifndef PHALANX_RUNTIME_SERVING_TEXT_DECODER_H_
#define PHALANX_RUNTIME_SERVING_TEXT_DECODER_H_

#include <cstdint>

#include "runtime/coordinator/request.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::serving {

// For CoordinatorOptions::text_decoder. `tokenizer` outlives every decoder.
coordinator::TextDecoderFactory MakeTextDecoderFactory(const tokenizer::Tokenizer& tokenizer);

// A number of bytes that no text of `context_length` tokens reaches: the longest token's bytes for
// each, and four times that for what a normalizer may remove (it composes, it drops spaces).
int64_t MaxPromptBytes(const tokenizer::Tokenizer& tokenizer, int64_t context_length);

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_TEXT_DECODER_H_
