// The text of one sample: decodes tokens, finds stop strings across their borders, and holds back
// text that may be the beginning of one.
#ifndef PHALANX_RUNTIME_COORDINATOR_TEXT_STREAM_H_
#define PHALANX_RUNTIME_COORDINATOR_TEXT_STREAM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/coordinator/request.h"

namespace phalanx::coordinator {

// Rule: of all stop strings, the one that is complete first in the text ends it; of those complete
// at the same byte, the longest. So how the text is cut into tokens doesn't matter.
class TextStream {
 public:
  // `decoder` may be null: no text. `stops`: non-empty strings.
  TextStream(std::unique_ptr<TextDecoder> decoder, std::vector<std::string> stops);

  struct Delta {
    std::string text;         // to be shown now
    std::string stop_string;  // not empty: it was found, the text ends before it
  };
  // `search`: stop strings that this token completes count (min_tokens is reached). After a stop
  // string was found the stream is at its end.
  Delta Push(int32_t token_id, bool search);
  // The sample has ended otherwise: what the decoder and the stream still hold.
  Delta Finish(bool search);

 private:
  Delta Append(const std::string& text, bool search);

  std::unique_ptr<TextDecoder> decoder_;
  std::vector<std::string> stops_;
  std::string held_;       // the longest tail so far that begins a stop string
  size_t unsearched_ = 0;  // bytes of held_: a stop string that is complete in them doesn't count
};

}  // namespace phalanx::coordinator

#endif  // PHALANX_RUNTIME_COORDINATOR_TEXT_STREAM_H_
