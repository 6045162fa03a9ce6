// The emulated device catches what it is there to catch.
#include <chrono>
#include <cstdlib>
#include <memory>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/kernels.h"
#include "tests/kernels/emulation/kernels/cuda/launch.cuh"
#include "tests/kernels/emulation/kernels/cuda/launch_order.cuh"
#include "tests/kernels/emulation/kernels/cuda/mma.cuh"

namespace phalanx::kernels {
namespace {

std::unique_ptr<Kernels> Device() {
  auto kernels = CreateCudaKernels({.device = 0, .pack_threads = 1});
  EXPECT_TRUE(kernels.ok()) << kernels.status();
  return *std::move(kernels);
}

Buffer Memory(Kernels& kernels, int64_t bytes) {
  auto buffer = kernels.Allocate(bytes);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *std::move(buffer);
}

void Write(int* data, int index) {
  cuda::BeginInTurn();
  if (threadIdx.x == 0) data[index] = 1;
}
void WriteWithoutAWait(int* data, int index) { data[index] = 1; }
// Threads from `first` on.
void WaitBy(int* /*data*/, int first) {
  if (static_cast<int>(threadIdx.x) >= first) cuda::WaitForEarlier();
}
void WriteBeforeItsTurn(int* data, int index) {
  if (threadIdx.x == 31) data[index] = 1;
  cuda::WaitForEarlier();
}
void CopyBeforeItsTurn(int* data, int pending) {
  PHALANX_DYNAMIC_SHARED(int, shared);
  if (threadIdx.x == 0) cuda::CopyAsync(shared, data, true);
  cuda::CommitCopies();
  if (pending == 0) cuda::WaitForCopies<0>();
  cuda::WaitForEarlier();
  cuda::WaitForCopies<0>();
  if (threadIdx.x == 0) data[4] = shared[0];
}
void LeaveALaneOut(int* /*data*/, int lane) {
  cuda::BeginInTurn();
  if (static_cast<int>(threadIdx.x) != lane) __syncwarp();
}
void RunKernel(void (*kernel)(int*, int), int* data, int value) {
  EXPECT_EQ(cuda::Launch(kernel, dim3(1), 32, 16, nullptr, data, value), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// Where a sanitizer sees the same fault first, its report ends the process.
constexpr char kTouched[] = "the host touches device memory|AddressSanitizer";
constexpr char kOutside[] = "outside of device memory|AddressSanitizer";
constexpr char kEarly[] = "touches device memory before its turn|AddressSanitizer";

TEST(EmulationDeathTest, TheHostCannotTouchDeviceMemory) {
  const auto kernels = Device();
  const Buffer memory = Memory(*kernels, 100);
  // Not even after an op has touched it.
  kernels->Zero(memory.data(), 100);
  kernels->Synchronize();
  EXPECT_DEATH(*memory.as<volatile int>() = 1, kTouched);
  EXPECT_DEATH((void)*memory.as<const volatile int>(), kTouched);
}

TEST(EmulationDeathTest, AKernelCannotGoBeyondAnAllocationNorUseItWhenItIsGone) {
  const auto kernels = Device();
  Buffer memory = Memory(*kernels, 256);
  int* data = memory.as<int>();
  RunKernel(Write, data, 63);
  EXPECT_DEATH(RunKernel(Write, data, 64), kOutside);
  memory = Buffer();
  EXPECT_DEATH(RunKernel(Write, data, 0), kOutside);
}

TEST(EmulationDeathTest, AWarpOperationThatALaneLeavesOutEndsTheProcess) {
  const auto kernels = Device();
  EXPECT_DEATH(RunKernel(LeaveALaneOut, nullptr, 31),
               "a lane ends while others of its warp wait|a warp operation after a lane has ended");
}

TEST(EmulationDeathTest, AKernelWaitsForThoseBeforeItWithEveryThread) {
  const auto kernels = Device();
  RunKernel(WaitBy, nullptr, 0);
  EXPECT_DEATH(RunKernel(WaitBy, nullptr, 1), "a thread ends that hasn't waited");
  // Also where it has been seen to wait so often that memory isn't closed any more.
  for (int i = 0; i < 20; ++i) RunKernel(WaitBy, nullptr, 0);
  EXPECT_DEATH(RunKernel(WaitBy, nullptr, 1), "a thread ends that hasn't waited");
}

TEST(EmulationDeathTest, AKernelTouchesNoMemoryBeforeItsTurn) {
  const auto kernels = Device();
  Buffer memory = Memory(*kernels, 256);
  int* data = memory.as<int>();
  EXPECT_DEATH(RunKernel(WriteWithoutAWait, data, 0), kEarly);
  EXPECT_DEATH(RunKernel(WriteBeforeItsTurn, data, 0), kEarly);
  // A copy may be under way, if nobody waits for it.
  EXPECT_DEATH(RunKernel(CopyBeforeItsTurn, data, 0), kEarly);
  RunKernel(CopyBeforeItsTurn, data, 1);
  RunKernel(Write, data, 0);
}

TEST(Emulation, NothingHasHappenedUntilSomebodyWaits) {
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  void* device;
  void* pinned;
  ASSERT_EQ(cudaMalloc(&device, 4), cudaSuccess);
  ASSERT_EQ(cudaHostAlloc(&pinned, 4, cudaHostAllocDefault), cudaSuccess);
  auto* value = static_cast<volatile char*>(pinned);
  *value = 7;
  ASSERT_EQ(cudaMemsetAsync(device, 9, 4, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(*value, 7);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(*value, 9);
  // What is sent from pinned memory is read when the stream comes to it.
  *value = 1;
  ASSERT_EQ(cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, stream), cudaSuccess);
  *value = 2;
  char read[4] = {};
  ASSERT_EQ(cudaMemcpyAsync(read, device, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(read[0], 2);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST(Emulation, AStreamWaitsForAnothersEventOnly) {
  cudaStream_t first, second;
  cudaEvent_t event;
  ASSERT_EQ(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  void* device;
  ASSERT_EQ(cudaMalloc(&device, 1), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(device, 1, 1, first), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(device, 2, 1, first), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(second, event, 0), cudaSuccess);
  char read = 0;
  ASSERT_EQ(cudaMemcpyAsync(&read, device, 1, cudaMemcpyDeviceToHost, second), cudaSuccess);
  EXPECT_EQ(read, 1);
  EXPECT_EQ(cudaFree(device), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(first), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(second), cudaSuccess);
}

TEST(Emulation, AnEventHasItsTimeOnceTheStreamHasPassedIt) {
  cudaStream_t stream;
  cudaEvent_t events[3], untimed;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  for (cudaEvent_t& event : events) ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming), cudaSuccess);
  float first = 0, second = 0;
  EXPECT_EQ(cudaEventElapsedTime(&first, events[0], events[1]), cudaErrorInvalidResourceHandle);
  // The clock between the first two, as the stream reads it itself.
  std::chrono::steady_clock::time_point inside[2];
  ASSERT_EQ(cudaEventRecord(events[0], stream), cudaSuccess);
  for (auto& time : inside) {
    emulation::Enqueue(stream, [&time] { time = std::chrono::steady_clock::now(); });
  }
  ASSERT_EQ(cudaEventRecord(events[1], stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(untimed, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(events[2], stream), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&first, events[0], events[1]), cudaErrorNotReady);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&first, events[0], events[1]), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&second, events[0], events[2]), cudaSuccess);
  const float between = std::chrono::duration<float, std::milli>(inside[1] - inside[0]).count();
  EXPECT_GT(between, 0.0f);
  EXPECT_GE(first, 0.99f * between);
  EXPECT_GE(second, first);
  EXPECT_EQ(cudaEventElapsedTime(&first, events[0], untimed), cudaErrorInvalidResourceHandle);
  for (cudaEvent_t event : {events[0], events[1], events[2], untimed}) {
    EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST(Emulation, AnEventThatHasNotPassedLeavesAnErrorBehind) {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  for (int i = 0; i < 3; ++i) emulation::Enqueue(stream, [] {});
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "once";
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

#if PHALANX_FINDS_RACES
// Each pair of kernels does the same, with and without what it takes.

void TurnRound(int* data, int with_barrier) {
  cuda::BeginInTurn();
  PHALANX_DYNAMIC_SHARED(int, shared);
  const unsigned i = threadIdx.x;
  shared[i] = static_cast<int>(i);
  if (with_barrier != 0) __syncthreads();
  data[blockIdx.x * blockDim.x + i] = shared[blockDim.x - 1 - i];
}
void TurnWarpRound(int* data, int with_barrier) {
  cuda::BeginInTurn();
  PHALANX_DYNAMIC_SHARED(int, shared);
  const unsigned i = threadIdx.x;
  shared[i] = static_cast<int>(i);
  if (with_barrier != 0) __syncwarp();
  // A shuffle isn't one.
  data[blockIdx.x * blockDim.x + i] = shared[i ^ 31] + __shfl_xor_sync(~0u, 0, 1);
}
void CopyOverWhatIsRead(int* data, int with_barrier) {
  cuda::BeginInTurn();
  PHALANX_DYNAMIC_SHARED(int, shared);
  const unsigned i = threadIdx.x;
  shared[i] = 0;
  __syncthreads();
  const int sum = shared[0] + shared[blockDim.x - 1];
  if (with_barrier != 0) __syncthreads();
  if (i == 0) cuda::CopyAsync(shared, data, true);
  cuda::CommitCopies();
  cuda::WaitForCopies<0>();
  __syncthreads();
  data[16 + blockIdx.x * blockDim.x + i] = sum + shared[1];
}
// The same thread of each block, which is the hardest to tell apart.
void CountBlocks(int* data, int atomic) {
  cuda::BeginInTurn();
  if (threadIdx.x != 0) return;
  if (atomic != 0) {
    atomicAdd(data, 1);
  } else {
    *data += 1;
  }
}

class RacesDeathTest : public ::testing::TestWithParam<void (*)(int*, int)> {};

TEST_P(RacesDeathTest, AreFoundBetweenThreadsThatNothingOrders) {
  const auto kernels = Device();
  Buffer memory = Memory(*kernels, 1 << 12);
  const auto run = [&](int ordered) {
    EXPECT_EQ(cuda::Launch(GetParam(), dim3(3), 64, 256, nullptr, memory.as<int>(), ordered),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  };
  // A report of these would end the test's process with TSan's code.
  run(1);
  run(1);
  EXPECT_EXIT(
      {
        run(0);
        std::exit(0);
      },
      ::testing::ExitedWithCode(66), "data race");
}

INSTANTIATE_TEST_SUITE_P(Kernels, RacesDeathTest,
                         ::testing::Values(TurnRound, TurnWarpRound, CopyOverWhatIsRead,
                                           CountBlocks));
#endif

}  // namespace
}  // namespace phalanx::kernels
