// Host memory for weights, caches and scratch.
#ifndef PHALANX_KERNELS_CPU_MEMORY_H_
#define PHALANX_KERNELS_CPU_MEMORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cpu {

// `bytes` >= 0 of zeroed memory, aligned to 64 bytes; from 2 MiB on aligned to 2 MiB and advised to
// be backed by huge pages, which takes a streaming kernel's page walks away. Pages are backed when
// they are first written, on the memory node of the thread that writes. RESOURCE_EXHAUSTED when the
// system refuses.
absl::StatusOr<Buffer> AllocateHost(int64_t bytes);

// Backs the pages of [memory, memory + bytes), on the memory node of the calling thread, and leaves
// what they hold; other threads may use the memory at the same time. RESOURCE_EXHAUSTED when the
// system has no memory left.
absl::Status BackHost(void* memory, int64_t bytes);

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_MEMORY_H_
