// Choosing from logits on the emulated device where nothing is left of its memory.
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/cuda/cuda_kernels.h"

namespace phalanx::kernels {
namespace {

constexpr int64_t kRows = 2;
constexpr int64_t kVocab = 16000;
constexpr int64_t kBytes = kRows * kVocab * 4;

TensorView View(float* logits) { return {logits, DType::kF32, kRows, kVocab, kVocab}; }

// A long context under a penalty has an edit for each of its tokens, and each row of a step its
// own.
TEST(CudaChoices, AsManyEditsAsThereAreIdsNeedNoMoreMemory) {
  CudaOptions options;
  options.memory_bytes = int64_t{32} << 20;
  CudaKernels kernels(options, *cuda::DeviceMemory::Create(0, options.memory_bytes));
  absl::StatusOr<Buffer> on_device = kernels.Allocate(kBytes);
  ASSERT_TRUE(on_device.ok()) << on_device.status();
  std::vector<float> expected(kRows * kVocab);
  std::vector<LogitEdit> edits;
  for (int64_t i = 0; i < kRows * kVocab; ++i) {
    expected[i] = static_cast<float>(i % 97) - 40.0f;
    edits.push_back({i / kVocab, static_cast<int32_t>(i % kVocab), 0.25f, 1.3f, 0.5f, 0.125f});
  }
  kernels.CopyIn(on_device->data(), expected.data(), kBytes);
  kernels.FreezeScratch();
  const absl::StatusOr<Buffer> rest = kernels.Allocate(*kernels.FreeBytes());
  ASSERT_TRUE(rest.ok()) << rest.status();

  // Once recorded, once not.
  for (const bool as_step : {true, false}) {
    reference::EditLogits(View(expected.data()), edits);
    if (as_step) kernels.BeginStep(kRows);
    kernels.EditLogits(View(on_device->as<float>()), edits);
    if (as_step) kernels.EndStep();
    std::vector<float> found(kRows * kVocab);
    kernels.CopyOut(found.data(), on_device->data(), kBytes);
    EXPECT_EQ(found, expected) << "in a step: " << as_step;
  }
}

}  // namespace
}  // namespace phalanx::kernels
