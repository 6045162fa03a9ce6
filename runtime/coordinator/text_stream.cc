#include "runtime/coordinator/text_stream.h"

#include <algorithm>
#include <utility>

namespace phalanx::coordinator {

TextStream::TextStream(std::unique_ptr<TextDecoder> decoder, std::vector<std::string> stops)
    : decoder_(std::move(decoder)), stops_(std::move(stops)) {}

TextStream::Delta TextStream::Append(const std::string& text, bool search) {
  if (stops_.empty()) return {text, {}};
  held_ += text;
  if (!search) unsearched_ = held_.size();
  const std::string* first = nullptr;
  size_t first_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t from = unsearched_ < stop.size() ? 0 : unsearched_ - stop.size() + 1;
    const size_t at = held_.find(stop, from);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < first_end || (end == first_end && stop.size() > first->size())) {
      first = &stop;
      first_end = end;
    }
  }
  if (first != nullptr) {
    const std::string shown = held_.substr(0, first_end - first->size());
    held_.clear();
    return {shown, *first};
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t size = std::min(stop.size() - 1, held_.size()); size > keep; --size) {
      if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) keep = size;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  unsearched_ -= std::min(unsearched_, shown.size());
  return {std::move(shown), {}};
}

TextStream::Delta TextStream::Push(int32_t token_id, bool search) {
  if (decoder_ == nullptr) return {};
  return Append(decoder_->Push(token_id), search);
}

TextStream::Delta TextStream::Finish(bool search) {
  if (decoder_ == nullptr) return {};
  Delta delta = Append(decoder_->Flush(), search);
  if (delta.stop_string.empty()) delta.text += std::exchange(held_, {});
  return delta;
}

}  // namespace phalanx::coordinator
