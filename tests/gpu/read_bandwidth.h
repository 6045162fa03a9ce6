// What this device reads a second: the measure that figures are held against.
#ifndef PHALANX_TESTS_GPU_READ_BANDWIDTH_H_
#define PHALANX_TESTS_GPU_READ_BANDWIDTH_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace phalanx::timing {

// Enqueues a kernel of so many blocks that reads `bytes` (a multiple of 16) once. `sums`: a word
// for each block, hardly ever written.
inline constexpr int kMostReadBlocks = 8192;
cudaError_t ReadOnce(const void* data, int64_t bytes, uint32_t* sums, int blocks,
                     cudaStream_t stream);

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_READ_BANDWIDTH_H_
