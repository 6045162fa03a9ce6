#include "kernels/choosing.h"
#include "kernels/cuda/best.cuh"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/log_sum_exp.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/sampling_ops.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
// Logits of a thread of the argmax, and of a block.
constexpr int kOfThread = 8;
constexpr int64_t kArgmaxColumns = kOfThread * kThreads;

__global__ void __launch_bounds__(kThreads)
    LogSumExpKernel(TensorView logits, const int64_t* leaves, MaxSum* out) {
  BeginInTurn();
  __shared__ LogSumExpMemory memory;
  const int64_t begin = leaves[2 * blockIdx.y];
  const int64_t end = leaves[2 * blockIdx.y + 1];
  const float* row = static_cast<const float*>(logits.data) + blockIdx.x * logits.stride;
  const MaxSum result = LogSumExp(row + begin, end - begin, &memory);
  if (threadIdx.x == 0) out[int64_t{blockIdx.x} * gridDim.y + blockIdx.y] = result;
}

__global__ void __launch_bounds__(kThreads)
    EditKernel(TensorView logits, const LogitEdit* edits, int64_t count) {
  BeginInTurn();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  const LogitEdit edit = edits[i];
  float* logit = static_cast<float*>(logits.data) + edit.row * logits.stride + edit.id;
  *logit = Edited(*logit, edit);
}

// grid: choices, blocks of columns. out: [choice][block].
__global__ void __launch_bounds__(kThreads)
    ArgmaxKernel(TensorView logits, const ChoiceRow* rows, StagedCuts cuts, Choice* out) {
  LetNextStart();
  if (threadIdx.x == 0) PrefetchLine(rows + blockIdx.x);
  WaitForEarlier();
  __shared__ BestSlot best_of_warp[kThreads / kWarp];
  const ChoiceRow row = rows[blockIdx.x];
  const int32_t which = cuts.of == nullptr ? -1 : cuts.of[blockIdx.x];
  const Cut cut = which < 0 ? kNoCut : cuts.cuts[which];
  const float* from = static_cast<const float*>(logits.data) + row.row * logits.stride;
  const int64_t first = blockIdx.y * kArgmaxColumns + threadIdx.x;
  // All of them are under way together. What isn't there never wins.
  float logits_of_thread[kOfThread];
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t j = first + i * kThreads;
    logits_of_thread[i] = j < logits.cols ? from[j] : kNegativeInfinity;
  }
  Choice best = {-1, kNegativeInfinity};
#pragma unroll 1
  for (int64_t j = first; j < first + kArgmaxColumns; j += kThreads) {
    // Each in its turn comes to the front: no register has an address.
    const float logit = logits_of_thread[0];
#pragma unroll
    for (int i = 1; i < kOfThread; ++i) logits_of_thread[i - 1] = logits_of_thread[i];
    const auto id = static_cast<int32_t>(j);
    if (!(logit > cut.threshold || (logit == cut.threshold && id <= cut.last_id))) continue;
    float value = logit;
    if (row.temperature != 0.0f) {
      value = Add(Div(logit, row.temperature), Gumbel(row.key, static_cast<uint32_t>(id)));
    }
    // Neither NaN nor -inf ever wins.
    if (value > best.value) best = {id, value};
  }
  best = BestOfBlock(best, best_of_warp);
  if (threadIdx.x == 0) out[int64_t{blockIdx.x} * gridDim.y + blockIdx.y] = best;
}

// grid: rows. choices: [row][count].
__global__ void __launch_bounds__(kThreads)
    BestKernel(const Choice* choices, int64_t count, Choice* out) {
  BeginInTurn();
  __shared__ BestSlot best_of_warp[kThreads / kWarp];
  const Choice* of_row = choices + blockIdx.x * count;
  Choice best = {-1, kNegativeInfinity};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    // Both words at once: the value isn't asked for only when the id is there.
    const Codes words = LoadCodes(of_row + i);
    Choice here;
    here.id = static_cast<int32_t>(words.w[0]);
    here.value = __builtin_bit_cast(float, words.w[1]);
    if (Before(here, best)) best = here;
  }
  best = BestOfBlock(best, best_of_warp);
  if (threadIdx.x == 0) out[blockIdx.x] = best;
}

}  // namespace

cudaError_t LogSumExpLeaves(TensorView logits, const int64_t* leaves, int64_t num_leaves,
                            MaxSum* out, cudaStream_t stream) {
  if (logits.rows == 0 || num_leaves == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(logits.rows), static_cast<unsigned>(num_leaves));
  return Launch(LogSumExpKernel, grid, kThreads, 0, stream, logits, leaves, out);
}

cudaError_t EditLogits(TensorView logits, const LogitEdit* edits, int64_t count,
                       cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((count + kThreads - 1) / kThreads));
  return Launch(EditKernel, grid, kThreads, 0, stream, logits, edits, count);
}

int64_t ChoiceScratch(int64_t cols) { return (cols + kArgmaxColumns - 1) / kArgmaxColumns; }

cudaError_t ChooseRows(TensorView logits, const ChoiceRow* rows, int64_t num_rows, StagedCuts cuts,
                       Choice* scratch, Choice* out, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  const int64_t blocks = ChoiceScratch(logits.cols);
  const auto grid_rows = static_cast<unsigned>(num_rows);
  if (blocks > 0) {
    const cudaError_t error = Launch(ArgmaxKernel, dim3(grid_rows, static_cast<unsigned>(blocks)),
                                     kThreads, 0, stream, logits, rows, cuts, scratch);
    if (error != cudaSuccess) return error;
  }
  return Launch(BestKernel, dim3(grid_rows), kThreads, 0, stream, scratch, blocks, out);
}

}  // namespace phalanx::kernels::cuda
