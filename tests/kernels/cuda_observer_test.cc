// What an observer of steps is told, in the order of the stream: all of a step's work lies between,
// and nothing that the host does before it enqueues.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"

namespace phalanx::kernels {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kFloats = 64;

// Notes in the stream's order what `watched` holds, and on the host's side how often it was called.
class Notes : public StepObserver {
 public:
  void WorkBegins(void* stream) override { Note("begin", stream); }
  void WorkEnds(void* stream) override { Note("end", stream); }
  void StepEnds() override { ++steps; }

  const float* watched = nullptr;  // on the device
  int calls = 0;
  int steps = 0;
  std::vector<std::string> on_stream;

 private:
  void Note(const std::string& what, void* stream) {
    ++calls;
    emulation::Enqueue(static_cast<cudaStream_t>(stream), [this, what] {
      on_stream.push_back(what + " " + std::to_string(static_cast<int>(*watched)));
    });
  }
};

class ObservedSteps : public ::testing::TestWithParam<bool> {
 protected:
  ObservedSteps()
      : kernels_({.device = 0, .pack_threads = 1, .graphs = GetParam(), .observer = &notes_},
                 *cuda::DeviceMemory::Create(0, 0)) {
    for (Buffer* buffer : {&sum_, &ones_}) {
      absl::StatusOr<Buffer> memory = kernels_.Allocate(kFloats * 4);
      EXPECT_TRUE(memory.ok()) << memory.status();
      *buffer = *std::move(memory);
    }
    notes_.watched = sum_.as<float>();
    kernels_.CopyIn(ones_.data(), std::vector<float>(kFloats, 1.0f).data(), kFloats * 4);
    kernels_.Synchronize();
  }
  TensorView View(const Buffer& buffer) const {
    return {buffer.data(), DType::kF32, 1, kFloats, kFloats};
  }
  void AddOne() { kernels_.AddResidual(View(sum_), View(ones_), nullptr); }
  // An op whose result the host waits for.
  void AskForLogSumExp() {
    const std::pair<int64_t, int64_t> leaf = {0, kFloats};
    MaxSum sum;
    kernels_.LogSumExpLeaves(View(sum_), {&leaf, 1}, {&sum, 1});
  }

  Notes notes_;
  CudaKernels kernels_;
  Buffer sum_, ones_;
};

TEST_P(ObservedSteps, AllOfAStepsWorkLiesBetween) {
  const bool graphs = GetParam();
  // Over and over: launched one by one, made into a graph, replayed.
  for (int step = 0; step < 4; ++step) {
    notes_.on_stream.clear();
    notes_.calls = 0;
    kernels_.BeginStep(1);
    EXPECT_EQ(notes_.calls, 0) << "nothing is enqueued yet";
    for (int i = 0; i < 5; ++i) AddOne();
    // What is recorded is no work yet: the host may take its time.
    EXPECT_EQ(notes_.calls, graphs ? 0 : 1);
    kernels_.EndStep();
    EXPECT_EQ(notes_.calls, 2);
    EXPECT_EQ(notes_.steps, step + 1);
    AddOne();  // outside
    kernels_.Synchronize();
    const int before = 6 * step;
    EXPECT_THAT(notes_.on_stream, ElementsAre("begin " + std::to_string(before),
                                              "end " + std::to_string(before + 5)));
  }
  EXPECT_EQ(kernels_.graph_counts().launched > 0, graphs);
}

TEST_P(ObservedSteps, WorkEndsWhereTheHostWaits) {
  kernels_.BeginStep(1);
  AddOne();
  kernels_.Flush();
  AddOne();
  AskForLogSumExp();
  EXPECT_THAT(notes_.on_stream, ElementsAre("begin 0", "end 2"));
  AddOne();
  float first = 0;
  kernels_.CopyOut(&first, sum_.data(), 4);
  EXPECT_EQ(first, 3.0f);
  EXPECT_EQ(notes_.calls, 4);
  EXPECT_EQ(notes_.steps, 0);
  // A step that ends with a wait ends where that began.
  kernels_.EndStep();
  EXPECT_EQ(notes_.steps, 1);
  kernels_.Synchronize();
  EXPECT_THAT(notes_.on_stream, ElementsAre("begin 0", "end 2", "begin 2", "end 3"));
}

TEST_P(ObservedSteps, NothingIsSaidOfWorkOutsideOfStepsNorOfStepsWithout) {
  AddOne();
  AskForLogSumExp();
  kernels_.BeginStep(1);
  kernels_.EndStep();
  EXPECT_EQ(notes_.calls, 0);
  EXPECT_EQ(notes_.steps, 1);
}

INSTANTIATE_TEST_SUITE_P(Graphs, ObservedSteps, ::testing::Bool());

}  // namespace
}  // namespace phalanx::kernels
