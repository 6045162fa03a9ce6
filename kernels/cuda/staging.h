// Where small host arrays go on their way to the device: two halves of a ring, so that what a
// kernel still reads is never written over. Arithmetic only.
//
// A request lies in the half in use. Where it doesn't fit, the other half is entered: its earlier
// contents must have been read by then, so the owner records an event when it leaves a half and
// waits for it before it enters that half again.
#ifndef PHALANX_KERNELS_CUDA_STAGING_H_
#define PHALANX_KERNELS_CUDA_STAGING_H_

#include <cstdint>

namespace phalanx::kernels::cuda {

class StagingRing {
 public:
  static constexpr int64_t kAlignment = 256;

  struct Placement {
    int64_t offset = -1;   // -1: larger than a half; grow the ring
    bool entered = false;  // `half` was entered for this request, the other one left
    int half = 0;
  };

  explicit StagingRing(int64_t half_bytes) : half_bytes_(RoundUp(half_bytes)) {}

  int64_t bytes() const { return 2 * half_bytes_; }
  int64_t half_bytes() const { return half_bytes_; }

  // Room for `bytes` >= 0, aligned to kAlignment.
  Placement Place(int64_t bytes) {
    const int64_t rounded = RoundUp(bytes);
    if (rounded > half_bytes_) return {};
    Placement place;
    if (used_ + rounded > half_bytes_) {
      half_ = 1 - half_;
      used_ = 0;
      place.entered = true;
    }
    place.offset = half_ * half_bytes_ + used_;
    place.half = half_;
    used_ += rounded;
    return place;
  }

  // Bytes of a half for a request that didn't fit: the next power of two.
  static int64_t GrownHalf(int64_t bytes) {
    int64_t half = kAlignment;
    while (half < bytes) half *= 2;
    return half;
  }

 private:
  static int64_t RoundUp(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  int64_t half_bytes_;
  int64_t used_ = 0;
  int half_ = 0;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_STAGING_H_
