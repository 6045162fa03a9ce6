#include "kernels/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kOwnPages = int64_t{64} << 10;
constexpr int64_t kAlignment = 64;
// Far above any machine's memory, far below where rounding up could overflow.
constexpr int64_t kMostBytes = int64_t{1} << 56;

absl::Status Exhausted(int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "cannot allocate ", bytes, " bytes of host memory (", std::strerror(errno),
      "); use more ranks, a smaller KV cache, or a machine or container with more memory"));
}

}  // namespace

absl::StatusOr<Buffer> AllocateHost(int64_t bytes) {
  PHALANX_CHECK(bytes >= 0) << "allocation of " << bytes << " bytes";
  if (bytes > kMostBytes) {
    errno = ENOMEM;
    return Exhausted(bytes);
  }
  if (bytes < kOwnPages) {
    const size_t rounded = (bytes + kAlignment) / kAlignment * kAlignment;
    void* data = std::aligned_alloc(kAlignment, rounded);
    if (data == nullptr) return Exhausted(bytes);
    std::memset(data, 0, rounded);
    return Buffer(data, bytes, [](void* p) { std::free(p); });
  }
  if (bytes < kHugePage) {
    // Pages of its own, so that scratch that is never used is never backed.
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return Exhausted(bytes);
    return Buffer(data, bytes, [bytes](void* p) { munmap(p, bytes); });
  }
  // Over-allocate by a huge page, then give back what lies outside the aligned range.
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const size_t mapped = rounded + kHugePage;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return Exhausted(bytes);
  char* begin = static_cast<char*>(raw);
  const size_t skipped = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (skipped > 0) munmap(begin, skipped);
  if (mapped - skipped > rounded) munmap(begin + skipped + rounded, mapped - skipped - rounded);
  begin += skipped;
  // Advice only: a kernel without transparent huge pages refuses, and that is fine.
  // The tail has small pages, lest a huge one should hold memory that nobody asked for.
  (void)madvise(begin, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return Buffer(begin, bytes, [rounded](void* p) { munmap(p, rounded); });
}

absl::Status BackHost(void* memory, int64_t bytes) {
  if (bytes <= 0) return absl::OkStatus();
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes);
  constexpr int kMadvPopulateWrite = 23;  // Linux 5.14; not in this libc's headers
  int result = 0;
  do {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the beginning of a page
    result = madvise(reinterpret_cast<void*>(begin), end - begin, kMadvPopulateWrite);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return absl::OkStatus();
  if (errno != EINVAL) return Exhausted(bytes);
  // An older kernel: a write to each page that changes nothing, whoever else writes there.
  for (uintptr_t at = reinterpret_cast<uintptr_t>(memory); at < end; at = (at / page + 1) * page) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    std::atomic_ref<unsigned char>(*reinterpret_cast<unsigned char*>(at)).fetch_or(0);
  }
  return absl::OkStatus();
}

}  // namespace phalanx::kernels::cpu
