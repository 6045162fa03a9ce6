// Log-sum-exp leaves, edits, cuts and choices (kernels/kernels.h says what each computes).
#ifndef PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_
#define PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/choosing.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// leaves: [num_leaves][2] columns begin, end; out: [rows * num_leaves]. All on the device.
cudaError_t LogSumExpLeaves(TensorView logits, const int64_t* leaves, int64_t num_leaves,
                            MaxSum* out, cudaStream_t stream);

// As Kernels::EditLogits; `edits` on the device.
cudaError_t EditLogits(TensorView logits, const LogitEdit* edits, int64_t count,
                       cudaStream_t stream);

// What any of some rows has.
struct KindsOfCuts {
  bool top_k = false;
  bool top_p = false;
  bool min_p = false;
};
// What CutRows needs room for, aligned to 16 bytes.
int64_t CutScratchBytes(int64_t num_rows);
// out[i]: what is left of row rows[i].row once its cuts are made; HasCut(rows[i]). All on the
// device. (cut.cu)
cudaError_t CutRows(TensorView logits, const ChoiceRow* rows, int64_t num_rows, KindsOfCuts kinds,
                    void* scratch, Cut* out, cudaStream_t stream);

// Choices that a row of ChooseRows needs room for.
int64_t ChoiceScratch(int64_t cols);
// What CutRows gave, and which of it is row i's: of[i], -1 for none. Null: there are no cuts.
struct StagedCuts {
  const Cut* cuts = nullptr;
  const int32_t* of = nullptr;
};
// out[i]: the choice that rows[i] asks for. `scratch`: num_rows * ChoiceScratch(logits.cols)
// choices. All on the device.
cudaError_t ChooseRows(TensorView logits, const ChoiceRow* rows, int64_t num_rows, StagedCuts cuts,
                       Choice* scratch, Choice* out, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_SAMPLING_OPS_H_
