// A device's threads on a CPU: what kernels see of blocks, barriers and warps (README.md).
#ifndef PHALANX_TESTS_KERNELS_EMULATION_DEVICE_H_
#define PHALANX_TESTS_KERNELS_EMULATION_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "tests/kernels/emulation/races.h"

// The names are CUDA's.
// NOLINTBEGIN(bugprone-reserved-identifier)
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after the other, so one copy serves them all.
#define __shared__ static
#define __align__(bytes) alignas(bytes)
// NOLINTEND(bugprone-reserved-identifier)

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr dim3() = default;
  constexpr explicit dim3(unsigned a, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// Of the thread that runs.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

struct EmulatedStream;

namespace phalanx::kernels::emulation {

// Shared memory that a block may have, static and dynamic: an H100's.
inline constexpr size_t kMostShared = 227 << 10;
// Another device's, from here on.
void SetMostShared(size_t bytes);

// While it lives, this thread does the device's work.
class OnDevice {
 public:
  OnDevice();
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
};
bool RunsOnDevice();

// runtime.cc: how a kernel is run that is known by its address alone. `bind` copies the arguments
// and gives what one thread does.
using Bind = std::function<void()> (*)(const void* kernel, void** arguments);
void Know(const void* kernel, Bind bind);

// runtime.cc: enqueues what a library does with the device: `work` runs in the stream's order, and
// can touch device memory.
void Enqueue(EmulatedStream* stream, std::function<void()> work);

// Runs `thread` for every thread of every block. `shared_bytes` of dynamic shared memory hold a
// pattern when a block begins. Each thread must wait for its turn. `closed_at_first`: until all of
// the first block's have, nobody can touch device memory.
void RunGrid(dim3 grid, int threads, size_t shared_bytes, bool closed_at_first,
             const std::function<void()>& thread);
void* DynamicShared();
// launch_order.cuh: the calling thread waits for the kernels before its own.
void WaitForTurn();

// runtime.cc: the error (a cudaError_t; 0: none) by which the driver refuses early starts from here
// on; how many kernels were enqueued so, in graphs or by themselves; and graphs that there are.
void RefuseEarlyStarts(int error);
int64_t NumGraphs();
int64_t NumEarlyStarts();

// A step that all 32 lanes of a warp take together: `run` sees what each brought, in lane order.
void WarpStep(void* mine, void (*run)(void* const* lanes));

// mma.m16n8k16 of BF16: c += A B, what each lane holds of it.
struct MmaLane {
  float* c;  // [4]
  uint32_t a[4];
  uint32_t b[2];
};
void MultiplyTile(const MmaLane* const* lanes);

// cp.async: the calling thread's.
void QueueCopy(void* to, const void* from, bool valid);
void CommitQueued();
void LandAllBut(int groups);
// prefetch: ends the process where `from` is no device memory.
void CheckPrefetch(const void* from);

}  // namespace phalanx::kernels::emulation

// NOLINTBEGIN(bugprone-reserved-identifier)
void __syncthreads();
void __syncwarp();

template <typename T>
T __shfl_xor_sync(unsigned /*mask*/, T value, int step) {
  static_assert(sizeof(T) == 4);
  struct Lane {
    T in;
    T out;
    int step;
  } lane = {value, T{}, step};
  phalanx::kernels::emulation::WarpStep(&lane, [](void* const* lanes) PHALANX_UNSEEN {
    for (int i = 0; i < 32; ++i) {
      auto* mine = static_cast<Lane*>(lanes[i]);
      mine->out = static_cast<Lane*>(lanes[i ^ mine->step])->in;
    }
  });
  return lane.out;
}
template <typename T>
T __shfl_sync(unsigned /*mask*/, T value, int from) {
  static_assert(sizeof(T) == 4);
  struct Lane {
    T in;
    T out;
    int from;
  } lane = {value, T{}, from};
  phalanx::kernels::emulation::WarpStep(&lane, [](void* const* lanes) PHALANX_UNSEEN {
    for (int i = 0; i < 32; ++i) {
      auto* mine = static_cast<Lane*>(lanes[i]);
      mine->out = static_cast<Lane*>(lanes[mine->from % 32])->in;
    }
  });
  return lane.out;
}
inline unsigned __ballot_sync(unsigned /*mask*/, bool vote) {
  struct Lane {
    bool vote;
    unsigned all;
  } lane = {vote, 0};
  phalanx::kernels::emulation::WarpStep(&lane, [](void* const* lanes) PHALANX_UNSEEN {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= unsigned{static_cast<Lane*>(lanes[i])->vote} << i;
    for (int i = 0; i < 32; ++i) static_cast<Lane*>(lanes[i])->all = all;
  });
  return lane.all;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
// Fibers take turns at barriers and warp steps alone; TSan is to know what is atomic.
template <typename T>
T atomicAdd(T* to, T value) {
  T before = __atomic_load_n(to, __ATOMIC_RELAXED);
  __atomic_store_n(to, static_cast<T>(before + value), __ATOMIC_RELAXED);
  return before;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T before = __atomic_load_n(to, __ATOMIC_RELAXED);
  if (value > before) __atomic_store_n(to, value, __ATOMIC_RELAXED);
  return before;
}
template <typename T>
T atomicMin(T* to, T value) {
  const T before = __atomic_load_n(to, __ATOMIC_RELAXED);
  if (value < before) __atomic_store_n(to, value, __ATOMIC_RELAXED);
  return before;
}
template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcv(const T* from) {
  return *from;
}
// NOLINTEND(bugprone-reserved-identifier)

#endif  // PHALANX_TESTS_KERNELS_EMULATION_DEVICE_H_
