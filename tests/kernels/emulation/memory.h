// The memory of the emulated device: a range of addresses that nobody can touch but emulated work.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_MEMORY_H_
#define PHALANX_TESTS_KERNELS_EMULATION_MEMORY_H_

#include <cstddef>

namespace phalanx::kernels::emulation {

// None of these is thread-safe: the runtime has one lock around them.

// `bytes` of device memory, filled with a pattern, aligned to 256, with an untouchable page behind
// them; null where there is no room. An address is never handed out twice.
void* AllocateDeviceMemory(size_t bytes);
// Memory of AllocateDeviceMemory; afterwards nobody can touch it.
void FreeDeviceMemory(void* data);
// Whether [data, data + bytes) lies in one live allocation.
bool IsDeviceMemory(const void* data, size_t bytes);

// Bytes of all live allocations.
size_t DeviceMemoryInUse();

// While it lives, this process can touch device memory.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};

// While it lives, nobody can, whatever OpenMemory objects there are. One at a time.
class ClosedMemory {
 public:
  ClosedMemory();
  ~ClosedMemory();
  ClosedMemory(const ClosedMemory&) = delete;
  ClosedMemory& operator=(const ClosedMemory&) = delete;
};

}  // namespace phalanx::kernels::emulation

#endif  // PHALANX_TESTS_KERNELS_EMULATION_MEMORY_H_
