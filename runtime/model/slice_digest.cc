#include "runtime/model/slice_digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::model {

using parallel::Range;

SliceDigest DigestSlice(const checkpoint::TensorRef& tensor, Range rows, Range columns) {
  SliceDigest out;
  out.name = absl::StrCat(tensor.name, ", rows ", rows.begin, " to ", rows.end, ", columns ",
                          columns.begin, " to ", columns.end);
  out.key = XXH3_64bits(out.name.data(), out.name.size());
  const int64_t size = kernels::SizeOf(tensor.dtype);
  const int64_t stride = tensor.cols() * size;
  const char* data = static_cast<const char*>(tensor.data) + rows.begin * stride;
  if (columns.size() == tensor.cols()) {
    out.digest = XXH3_64bits(data, rows.size() * stride);
    return out;
  }
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (int64_t i = 0; i < rows.size(); ++i) {
    XXH3_64bits_update(&state, data + i * stride + columns.begin * size, columns.size() * size);
  }
  out.digest = XXH3_64bits_digest(&state);
  return out;
}

uint64_t CombineDigests(std::vector<std::pair<uint64_t, uint64_t>> keys_and_digests) {
  std::sort(keys_and_digests.begin(), keys_and_digests.end());
  keys_and_digests.erase(std::unique(keys_and_digests.begin(), keys_and_digests.end()),
                         keys_and_digests.end());
  return XXH3_64bits(keys_and_digests.data(),
                     keys_and_digests.size() * sizeof(keys_and_digests[0]));
}

std::string Digest128(const std::string& text) {
  const XXH128_hash_t digest = XXH3_128bits(text.data(), text.size());
  return absl::StrCat(absl::Hex(digest.high64, absl::kZeroPad16),
                      absl::Hex(digest.low64, absl::kZeroPad16));
}

}  // namespace phalanx::model
