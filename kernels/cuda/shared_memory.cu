#include <map>
#include <mutex>
#include <utility>

#include "kernels/cuda/shared_memory.h"

namespace phalanx::kernels::cuda {
namespace {

// A block may have 48 KiB without asking, its static shared memory counted in ("less
// SHARED_SIZE_BYTES", cuFuncSetAttribute). So much of it is left to that: to ask costs nothing.
constexpr size_t kNeverTooMuch = 16 * 1024;

}  // namespace

cudaError_t AllowShared(const void* kernel, size_t bytes) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  static auto* const mutex = new std::mutex();
  static auto* const allowed = new std::map<std::pair<int, const void*>, size_t>();
  const std::lock_guard<std::mutex> lock(*mutex);
  const auto [place, is_new] = allowed->try_emplace({device, kernel}, kNeverTooMuch);
  if (is_new) {
    // A hint: a driver that doesn't take it makes no difference.
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared) != cudaSuccess) {
      (void)cudaGetLastError();
    }
  }
  size_t& most = place->second;
  if (bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

}  // namespace phalanx::kernels::cuda
