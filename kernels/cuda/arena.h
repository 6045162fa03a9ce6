// One region of a device's memory, from which weights, workspace, scratch and KV blocks are carved.
// Arithmetic only: offsets, no memory.
//
// First fit with coalescing (Knuth, The Art of Computer Programming, vol. 1, 2.5). What lives as
// long as a rank comes from the front; scratch that is given back when it grows comes from the
// back, so that its holes don't lie between weights and the KV cache.
#ifndef PHALANX_KERNELS_CUDA_ARENA_H_
#define PHALANX_KERNELS_CUDA_ARENA_H_

#include <cstdint>
#include <map>
#include <unordered_map>

#include "absl/status/statusor.h"

namespace phalanx::kernels::cuda {

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;
  enum class Side { kFront, kBack };

  // `bytes` >= 0; what is above a multiple of kAlignment is left alone.
  explicit Arena(int64_t bytes);

  // The offset of a piece of `bytes` >= 0, a multiple of kAlignment. The piece takes `bytes`
  // rounded up to kAlignment, no less than kAlignment. RESOURCE_EXHAUSTED names the bytes asked
  // for, the bytes free in all and in the largest piece.
  absl::StatusOr<int64_t> Allocate(int64_t bytes, Side side = Side::kFront);
  // Gives back a piece by its offset.
  void Free(int64_t offset);

  int64_t bytes() const { return bytes_; }
  int64_t free_bytes() const { return free_bytes_; }
  int64_t used_bytes() const { return bytes_ - free_bytes_; }
  // Bytes of the largest piece that Allocate could give now.
  int64_t largest_free() const;
  // Free pieces; no two of them touch.
  int64_t num_free_pieces() const { return static_cast<int64_t>(free_.size()); }

 private:
  const int64_t bytes_;
  int64_t free_bytes_;
  std::map<int64_t, int64_t> free_;             // offset to bytes
  std::unordered_map<int64_t, int64_t> taken_;  // offset to bytes
};

// How much of a device an instance takes at its start.
struct ArenaRequest {
  int64_t memory_bytes = 0;    // 0: not by bytes
  double memory_fraction = 0;  // of the device's memory in all, less what others hold; 0: not so
  bool is_shared = false;      // others take a fraction, too: nothing is taken off for them
};
// Bytes of the arena for a device with `available` of `total` bytes free; 0: no arena was asked
// for. INVALID_ARGUMENT for a request that makes no sense, RESOURCE_EXHAUSTED where the device
// hasn't that much free; both name `device` and the figures.
absl::StatusOr<int64_t> ArenaBytes(const ArenaRequest& request, int device, int64_t available,
                                   int64_t total);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ARENA_H_
