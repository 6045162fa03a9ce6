// What ThreadSanitizer is told of emulated threads, so that it finds races between them: in a
// block, between blocks of a kernel, and of what asynchronous copies write. (On a real device
// compute-sanitizer's racecheck looks at shared memory alone.) Threads are TSan's "fibers"
// (sanitizer/tsan_interface.h), ordered by what orders them on a device: barriers, the warp's among
// them, and the end of a kernel. A shuffle or a product of a warp's orders nothing (PTX ISA,
// shfl.sync). In other builds nothing of this does anything.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_RACES_H_
#define PHALANX_TESTS_KERNELS_EMULATION_RACES_H_

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_THREAD__) || defined(PHALANX_TOLD_TO_TSAN)
#define PHALANX_FINDS_RACES 1
// What the emulation itself does on behalf of a kernel.
#define PHALANX_UNSEEN __attribute__((no_sanitize("thread")))
#include <sanitizer/tsan_interface.h>
extern "C" {
// Of TSan's interfaces for compilers and for Java.
void __tsan_read_range(const void* from, size_t bytes);  // NOLINT(bugprone-reserved-identifier)
void __tsan_write_range(void* to, size_t bytes);         // NOLINT(bugprone-reserved-identifier)
void __tsan_java_init(size_t begin, size_t bytes);       // NOLINT(bugprone-reserved-identifier)
void __tsan_java_alloc(size_t begin, size_t bytes);      // NOLINT(bugprone-reserved-identifier)
void __tsan_java_free(size_t begin, size_t bytes);       // NOLINT(bugprone-reserved-identifier)
}
#else
#define PHALANX_FINDS_RACES 0
#define PHALANX_UNSEEN
#endif

namespace phalanx::kernels::emulation {

// A place where one thread leaves what it has done, for another that picks it up.
class Handover {
 public:
#if PHALANX_FINDS_RACES
  void Leave() { __tsan_release(place_.get()); }
  void PickUp() { __tsan_acquire(place_.get()); }

 private:
  // TSan forgets what is known of memory that is freed.
  std::unique_ptr<char> place_ = std::make_unique<char>();
#else
  void Leave() {}
  void PickUp() {}
#endif
};

// A stack's owner, as TSan knows it.
class Fiber {
 public:
#if PHALANX_FINDS_RACES
  static Fiber New() { return Fiber(__tsan_create_fiber(0)); }
  static Fiber Running() { return Fiber(__tsan_get_current_fiber()); }
  // Right before the jump.
  void Enter() const { __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync); }

 private:
  explicit Fiber(void* fiber) : fiber_(fiber) {}
  void* fiber_;
#else
  static Fiber New() { return Fiber(); }
  static Fiber Running() { return Fiber(); }
  void Enter() const {}
#endif
};

// The running thread reads or writes, by way of something that TSan doesn't see.
inline void Reads(const void* from, size_t bytes) {
#if PHALANX_FINDS_RACES
  __tsan_read_range(from, bytes);
#else
  (void)from, (void)bytes;
#endif
}
inline void Writes(void* to, size_t bytes) {
#if PHALANX_FINDS_RACES
  __tsan_write_range(to, bytes);
#else
  (void)to, (void)bytes;
#endif
}

// From here on the memory is another one: what was done to it isn't remembered.
inline void Renew(char* begin, const char* end) {
#if PHALANX_FINDS_RACES
  static const bool once = [] {
    __tsan_java_init(8, size_t{1} << 47);
    return true;
  }();
  (void)once;
  const size_t from = reinterpret_cast<size_t>(begin) / 8 * 8;
  const size_t bytes = (reinterpret_cast<size_t>(end) + 7) / 8 * 8 - from;
  if (bytes == 0) return;
  __tsan_java_free(from, bytes);
  __tsan_java_alloc(from, bytes);
#else
  (void)begin, (void)end;
#endif
}

}  // namespace phalanx::kernels::emulation

#endif  // PHALANX_TESTS_KERNELS_EMULATION_RACES_H_
