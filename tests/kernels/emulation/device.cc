// Its longjmp refuses to go to another stack.
#undef _FORTIFY_SOURCE

#include "tests/kernels/emulation/device.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include "kernels/cpu/fp_environment.h"
#include "kernels/float16.h"
#include "tests/kernels/emulation/memory.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where the CPU has FMA, the compiler uses it; a function of the C library gives the same bits.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !PHALANX_FINDS_RACES
#define PHALANX_FOR_FMA __attribute__((target_clones("arch=haswell", "default")))
#else
#define PHALANX_FOR_FMA
#endif

namespace phalanx::kernels::emulation {

extern char shared_begin[], shared_end[];

namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;
constexpr int kPattern = 0xA7;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Thread {
  Fiber fiber = Fiber::New();
  ucontext_t context;  // how it is entered for the first time; then by jumps, which are no system
  jmp_buf at;          // calls
  bool begun = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  unsigned index = 0;
  bool done = false;
  bool had_turn = false;
  // Runs on once *waiting_for has another value than it had.
  const uint64_t* waiting_for = nullptr;
  uint64_t seen = 0;
  std::vector<Copy> queued;
  std::deque<std::vector<Copy>> groups;
};

// Arrivals of a group of threads; `round` counts the times that all were there.
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
  // Of every other round: whoever is late for one picks up nothing of the next.
  Handover handovers[2];
  Handover& handover() { return handovers[round % 2]; }
};

struct Warp {
  Meeting meeting;
  int live = kLanes;
  void* lanes[kLanes];
};

struct Block {
  // Several sets where races are looked for: TSan takes what a fiber does in one block to be before
  // what it does in another.
  static constexpr int kSets = PHALANX_FINDS_RACES ? 4 : 1;
  std::vector<std::unique_ptr<Thread>> sets[kSets];
  int set = 0;
  std::vector<Warp> warps;
  Handover begin;
  Meeting barrier;
  Meeting turn;                          // of all threads, before the kernel's turn
  std::unique_ptr<ClosedMemory> closed;  // until then
  int live = 0;
};

jmp_buf scheduler;
Fiber scheduler_fiber = Fiber::Running();
Handover* grid_end = nullptr;
thread_local int on_device = 0;
Block block;
Thread* running = nullptr;
const std::function<void()>* body = nullptr;
std::vector<char> dynamic_shared;
std::mt19937 order(1);

[[noreturn]] void Fail(const char* what) {
  std::cerr << "emulated kernel: " << what << " (block " << blockIdx.x << ", " << blockIdx.y << ", "
            << blockIdx.z << ", thread " << threadIdx.x << ")" << std::endl;
  std::abort();
}

// AddressSanitizer has to know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
void BeforeEnter(void** own, const Thread& thread) {
  __sanitizer_start_switch_fiber(own, thread.stack.get(), kStackBytes);
}
void BeforeLeave(void** own) {
  __sanitizer_start_switch_fiber(own, scheduler_stack, scheduler_stack_bytes);
}
void AfterEnter(void* own) { __sanitizer_finish_switch_fiber(own, nullptr, nullptr); }
// The stack that a thread is entered from may be another the next time.
void AfterLeave(void* own) {
  __sanitizer_finish_switch_fiber(own, &scheduler_stack, &scheduler_stack_bytes);
}
void ThreadBegins() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
}
#else
void BeforeEnter(void** /*own*/, const Thread& /*thread*/) {}
void BeforeLeave(void** /*own*/) {}
void AfterEnter(void* /*own*/) {}
void AfterLeave(void* /*own*/) {}
void ThreadBegins() {}
#endif

void EnterThread(Thread& thread) {
  void* own = nullptr;
  BeforeEnter(&own, thread);
  if (_setjmp(scheduler) == 0) {
    thread.fiber.Enter();
    if (thread.begun) _longjmp(thread.at, 1);
    thread.begun = true;
    setcontext(&thread.context);
  }
  AfterEnter(own);
}
void LeaveThread(Thread& thread) {
  void* own = nullptr;
  BeforeLeave(&own);
  if (_setjmp(thread.at) == 0) {
    scheduler_fiber.Enter();
    _longjmp(scheduler, 1);
  }
  AfterLeave(own);
}

void Wait(Meeting& meeting) {
  running->waiting_for = &meeting.round;
  running->seen = meeting.round;
  LeaveThread(*running);
}

void Open(Meeting& meeting) {
  meeting.arrived = 0;
  ++meeting.round;
}

void End() {
  if (!running->had_turn) Fail("a thread ends that hasn't waited for the kernels before its own");
  for (const std::vector<Copy>& group : running->groups) {
    if (!group.empty()) Fail("a thread ends with copies that it hasn't waited for");
  }
  if (!running->queued.empty()) Fail("a thread ends with copies that it hasn't committed");
  running->groups.clear();
  running->done = true;
  grid_end->Leave();
  Warp& warp = block.warps[running->index / kLanes];
  if (warp.meeting.arrived > 0) Fail("a lane ends while others of its warp wait for it");
  --warp.live;
  --block.live;
  if (block.live > 0 && block.barrier.arrived == block.live) Open(block.barrier);
}

// A fiber's life: a thread of one block after the other.
void FiberMain() {
  ThreadBegins();
  while (true) {
    block.begin.PickUp();
    (*body)();
    End();
    LeaveThread(*running);
  }
}

std::unique_ptr<Thread> NewThread(unsigned index) {
  auto thread = std::make_unique<Thread>();
  thread->index = index;
  getcontext(&thread->context);
  thread->context.uc_stack.ss_sp = thread->stack.get();
  thread->context.uc_stack.ss_size = kStackBytes;
  thread->context.uc_link = nullptr;
  makecontext(&thread->context, FiberMain, 0);
  return thread;
}

void RunBlock(int threads) {
  block.set = (block.set + 1) % Block::kSets;
  auto& set = block.sets[block.set];
  while (static_cast<int>(set.size()) < threads) {
    set.push_back(NewThread(static_cast<unsigned>(set.size())));
  }
  block.warps = std::vector<Warp>(threads / kLanes);
  block.barrier = {};
  block.turn = {};
  block.begin = {};
  block.live = threads;
  Renew(dynamic_shared.data(), dynamic_shared.data() + dynamic_shared.size());
  Renew(shared_begin, shared_end);
  std::fill(dynamic_shared.begin(), dynamic_shared.end(), static_cast<char>(kPattern));
  block.begin.Leave();
  for (int i = 0; i < threads; ++i) {
    set[i]->done = false;
    set[i]->had_turn = false;
    set[i]->waiting_for = nullptr;
  }
  std::vector<int> warps(threads / kLanes);
  for (size_t i = 0; i < warps.size(); ++i) warps[i] = static_cast<int>(i);
  while (block.live > 0) {
    bool moved = false;
    std::shuffle(warps.begin(), warps.end(), order);
    for (const int warp : warps) {
      for (int lane = 0; lane < kLanes; ++lane) {
        Thread& thread = *set[warp * kLanes + lane];
        if (thread.done) continue;
        if (thread.waiting_for != nullptr && *thread.waiting_for == thread.seen) continue;
        thread.waiting_for = nullptr;
        running = &thread;
        threadIdx = dim3(thread.index, 0, 0);
        EnterThread(thread);
        moved = true;
      }
    }
    if (!moved) Fail("threads wait for each other: a barrier or warp operation that not all reach");
  }
}

// A matrix unit takes denormals for what they are, whatever a kernel's other arithmetic does.
class WithDenormals {
 public:
#if defined(__x86_64__)
  WithDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~WithDenormals() { _mm_setcsr(saved_); }

 private:
  const unsigned saved_;
#else
  WithDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~WithDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// The fragment tables of the PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
// Products are added in rising k: the matrix unit's own order is another.
PHALANX_FOR_FMA void MultiplyFragments(const MmaLane* const* lanes) {
  const auto half = [](uint32_t word, int i) {
    return Bf16ToF32(static_cast<uint16_t>(i == 0 ? word & 0xffffu : word >> 16));
  };
  float a[16][16], b[16][8], sum[16][8];
  for (int i = 0; i < kLanes; ++i) {
    const MmaLane& lane = *lanes[i];
    const int group = i / 4;
    const int thread = i % 4;
    for (int j = 0; j < 8; ++j) {
      const int row = (j < 2 || (j >= 4 && j < 6)) ? group : group + 8;
      a[row][thread * 2 + j % 2 + (j >= 4 ? 8 : 0)] = half(lane.a[j / 2], j % 2);
    }
    for (int j = 0; j < 4; ++j) {
      b[thread * 2 + j % 2 + (j >= 2 ? 8 : 0)][group] = half(lane.b[j / 2], j % 2);
    }
    for (int j = 0; j < 4; ++j) sum[group + (j < 2 ? 0 : 8)][thread * 2 + j % 2] = lane.c[j];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int col = 0; col < 8; ++col) {
        sum[row][col] = __builtin_fmaf(a[row][k], b[k][col], sum[row][col]);
      }
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 4; ++j) {
      lanes[i]->c[j] = sum[i / 4 + (j < 2 ? 0 : 8)][i % 4 * 2 + j % 2];
    }
  }
}

}  // namespace

OnDevice::OnDevice() { ++on_device; }
OnDevice::~OnDevice() { --on_device; }
bool RunsOnDevice() { return on_device > 0; }

void* DynamicShared() { return dynamic_shared.data(); }

void RunGrid(dim3 grid, int threads, size_t shared_bytes, bool closed_at_first,
             const std::function<void()>& thread) {
  const ScopedFpEnvironment environment;
  scheduler_fiber = Fiber::Running();
  Handover end;
  grid_end = &end;
  if (std::less<>()(+shared_end, +shared_begin))
    Fail("the kernels are not linked between their markers");
  if (threads % kLanes != 0 || threads < 1 || threads > 1024) Fail("an odd number of threads");
  // In 16 bytes' alignment, with nothing to spare behind the end.
  dynamic_shared.assign(shared_bytes, 0);
  body = &thread;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        const bool first = x == 0 && y == 0 && z == 0;
        if (first && closed_at_first) block.closed = std::make_unique<ClosedMemory>();
        RunBlock(threads);
      }
    }
  }
  end.PickUp();
}

void WaitForTurn() {
  running->had_turn = true;
  if (block.closed == nullptr) return;
  if (++block.turn.arrived < block.live) {
    Wait(block.turn);
    return;
  }
  block.closed.reset();
  Open(block.turn);
}

void WarpStep(void* mine, void (*run)(void* const* lanes)) {
  Warp& warp = block.warps[running->index / kLanes];
  if (warp.live != kLanes) Fail("a warp operation after a lane has ended");
  warp.lanes[running->index % kLanes] = mine;
  if (++warp.meeting.arrived < kLanes) {
    Wait(warp.meeting);
    return;
  }
  if (run != nullptr) run(warp.lanes);
  Open(warp.meeting);
}

void MultiplyTile(const MmaLane* const* lanes) {
  const WithDenormals environment;
  MultiplyFragments(lanes);
}

void QueueCopy(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    Fail("an asynchronous copy of 16 bytes that isn't aligned to 16");
  }
  // It may arrive at any time from now on.
  Writes(to, 16);
  running->queued.push_back({to, from, valid});
}

void CommitQueued() {
  running->groups.push_back(std::move(running->queued));
  running->queued.clear();
}

void LandAllBut(int groups) {
  while (static_cast<int>(running->groups.size()) > groups) {
    for (const Copy& copy : running->groups.front()) {
      Writes(copy.to, 16);
      if (copy.valid) {
        Reads(copy.from, 16);
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    running->groups.pop_front();
  }
}

void CheckPrefetch(const void* from) {
  if (!IsDeviceMemory(from, 1)) Fail("a prefetch of what is no device memory");
}

}  // namespace phalanx::kernels::emulation

void __syncthreads() {
  using namespace phalanx::kernels::emulation;
  Handover& handover = block.barrier.handover();
  handover.Leave();
  if (++block.barrier.arrived < block.live) {
    Wait(block.barrier);
  } else {
    Open(block.barrier);
  }
  handover.PickUp();
}

void __syncwarp() {
  using namespace phalanx::kernels::emulation;
  Handover& handover = block.warps[running->index / kLanes].meeting.handover();
  handover.Leave();
  WarpStep(nullptr, nullptr);
  handover.PickUp();
}
