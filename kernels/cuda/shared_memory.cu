#include <map>
#include <mutex>
#include <utility>

#include "kernels/cuda/shared_memory.h"

namespace phalanx::kernels::cuda {
namespace {

// What a block may have without asking.
constexpr size_t kDefaultShared = 48 * 1024;

}  // namespace

cudaError_t AllowShared(const void* kernel, size_t bytes) {
  if (bytes <= kDefaultShared) return cudaSuccess;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  static auto* const mutex = new std::mutex();
  static auto* const allowed = new std::map<std::pair<int, const void*>, size_t>();
  const std::lock_guard<std::mutex> lock(*mutex);
  size_t& most = (*allowed)[{device, kernel}];
  if (bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

}  // namespace phalanx::kernels::cuda
