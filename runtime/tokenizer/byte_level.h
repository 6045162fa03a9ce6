#ifndef PHALANX_RUNTIME_TOKENIZER_BYTE_LEVEL_H_
#define PHALANX_RUNTIME_TOKENIZER_BYTE_LEVEL_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx::tokenizer {

// GPT-2's bijection of the 256 bytes onto printable characters (U+0021 to U+0143):
// https://github.com/openai/gpt-2/blob/master/src/encoder.py

// Appends one character for every byte of `bytes`.
void AppendByteLevel(std::string_view bytes, std::string* out);

// The byte that `code_point` stands for, or -1.
int ByteOfByteLevel(uint32_t code_point);

// Undoes AppendByteLevel; false (with `*out` untouched) where a character of `text`, valid UTF-8,
// stands for no byte.
bool AppendBytesOfByteLevel(std::string_view text, std::string* out);

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_BYTE_LEVEL_H_
