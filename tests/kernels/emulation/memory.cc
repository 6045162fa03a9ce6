#include "tests/kernels/emulation/memory.h"

#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>

#include "tests/kernels/emulation/device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace phalanx::kernels::emulation {
namespace {

// TSan has addresses for so much.
constexpr size_t kRangeBytes = size_t{1} << (PHALANX_FINDS_RACES ? 37 : 40);
constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
constexpr int kPattern = 0xC3;
// What gets the pattern at an allocation's beginning: pages that nobody has touched cost nothing
// to open and close.
constexpr size_t kPatternBytes = 64 << 10;

struct Allocation {
  size_t bytes;
  char* pages;
  size_t page_bytes;
};

char* range = nullptr;
size_t used = 0;
int opened = 0;       // OpenMemory objects that live
bool closed = false;  // whether a ClosedMemory object lives
// By address of the data.
std::map<const char*, Allocation>& Allocations() {
  static auto* allocations = new std::map<const char*, Allocation>();
  return *allocations;
}

void Die(const char* what) {
  std::perror(what);
  std::abort();
}

void Protect(const Allocation& allocation, int rights) {
  if (mprotect(allocation.pages, allocation.page_bytes, rights) != 0) Die("mprotect");
}

void ProtectAll(int rights) {
  for (const auto& [data, allocation] : Allocations()) Protect(allocation, rights);
}

void OnFault(int signal, siginfo_t* info, void* /*context*/) {
  const char* at = static_cast<const char*>(info->si_addr);
  if (at >= range && at < range + kRangeBytes) {
    char text[256];
    const int length =
        RunsOnDevice()
            ? std::snprintf(text, sizeof text,
                            "emulated device: a kernel or copy %s (block %u, %u, %u, thread %u)\n",
                            closed ? "touches device memory before its turn; see launch_order.cuh"
                                   : "goes outside of device memory",
                            blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x)
            : std::snprintf(text, sizeof text,
                            "emulated device: the host touches device memory; use CopyIn, CopyOut "
                            "or an op of Kernels\n");
    (void)!write(STDERR_FILENO, text, static_cast<size_t>(length));
    void* frames[32];
    backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
    std::abort();
  }
  // Somebody else's fault: it happens again, with nobody in its way.
  struct sigaction plain = {};
  plain.sa_handler = SIG_DFL;
  (void)sigaction(signal, &plain, nullptr);
}

void Reserve() {
  void* reserved =
      mmap(nullptr, kRangeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) Die("emulated device: reserving addresses");
  range = static_cast<char*>(reserved);
  // Loads what it needs now: not in a handler.
  void* frame;
  (void)backtrace(&frame, 1);
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaction(SIGSEGV, &action, nullptr) != 0) Die("sigaction");
}

}  // namespace

void* AllocateDeviceMemory(size_t bytes) {
  if (range == nullptr) Reserve();
  if (bytes > kRangeBytes) return nullptr;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t page_bytes = (rounded + kPage - 1) / kPage * kPage;
  if (used + page_bytes + kPage > kRangeBytes) return nullptr;
  // The first page is never handed out: what lies before an allocation is untouchable, too.
  used += kPage;
  char* pages = range + used;
  used += page_bytes;
  // At the pages' end, so that what lies behind it is no memory.
  char* data = pages + page_bytes - rounded;
  const Allocation allocation = {bytes, pages, page_bytes};
  Protect(allocation, PROT_READ | PROT_WRITE);
  std::memset(data, kPattern, std::min(rounded, kPatternBytes));
  if (opened == 0) Protect(allocation, PROT_NONE);
  ASAN_POISON_MEMORY_REGION(pages, page_bytes);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  Allocations()[data] = allocation;
  return data;
}

void FreeDeviceMemory(void* data) {
  const auto found = Allocations().find(static_cast<const char*>(data));
  if (found == Allocations().end()) {
    std::fputs("emulated device: memory is freed that isn't allocated\n", stderr);
    std::abort();
  }
  const Allocation& allocation = found->second;
  // Its pages go; its addresses stay untouchable.
  if (mmap(allocation.pages, allocation.page_bytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
    Die("emulated device: freeing memory");
  }
  ASAN_POISON_MEMORY_REGION(allocation.pages, allocation.page_bytes);
  Allocations().erase(found);
}

bool IsDeviceMemory(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  const auto next = Allocations().upper_bound(at);
  if (next == Allocations().begin()) return false;
  const auto& [begin, allocation] = *std::prev(next);
  return at + bytes <= begin + allocation.bytes && at <= begin + allocation.bytes;
}

size_t DeviceMemoryInUse() {
  size_t bytes = 0;
  for (const auto& [data, allocation] : Allocations()) bytes += allocation.bytes;
  return bytes;
}

OpenMemory::OpenMemory() {
  if (opened++ == 0) ProtectAll(PROT_READ | PROT_WRITE);
}
OpenMemory::~OpenMemory() {
  if (--opened == 0) ProtectAll(PROT_NONE);
}

ClosedMemory::ClosedMemory() {
  closed = true;
  ProtectAll(PROT_NONE);
}
ClosedMemory::~ClosedMemory() {
  closed = false;
  if (opened > 0) ProtectAll(PROT_READ | PROT_WRITE);
}

}  // namespace phalanx::kernels::emulation
