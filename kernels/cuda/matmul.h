// Matmul on packed weights: outs[part] = x W^T, leaf by leaf (R1, R2).
//
// BF16: a leaf is cut into chunks of kChunkK (fragment.h). A chunk's sum is one chain of
// mma.sync.m16n8k16 in rising k from +0, weights as operand A, eight rows of x as operand B; a
// leaf's sum adds its chunks in rising order from +0; leaves meet by the part's program. All
// kernels below do just this, so the kernel, the tile and the split that a call gets change no bit.
// F32, F16: one FMA chain in rising k from +0 per leaf, the bits of the CPU.
// The layout of the weights (fragment.h) changes no bit, either.
#ifndef PHALANX_KERNELS_CUDA_MATMUL_H_
#define PHALANX_KERNELS_CUDA_MATMUL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/tiling.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// The most leaves that a thread adds in registers, where their program is R2's tree.
inline constexpr int kHalvedLeaves = 8;

// Rows of x that one thread block takes, and the weight they meet.
struct MatMulTile {
  const void* weight;
  int64_t first_row;
  int32_t rows;
};

// By value in the kernels' arguments (about 1.8 KB of the 4 KB that there are).
struct MatMulParams {
  const void* x = nullptr;  // BF16 or F32, rows aligned to 16 bytes
  int64_t x_stride = 0;
  DType weight_type = DType::kBF16;
  WeightLayout layout = WeightLayout::kTiles;
  int32_t n = 0;
  int32_t k = 0;  // padded
  int32_t num_leaves = 0;
  int32_t num_chunks = 0;
  int32_t num_parts = 0;
  int32_t depth = 1;
  int32_t leaf_end[kMaxLeaves] = {};         // in the padded k; leaf i begins where i - 1 ends
  int16_t first_chunk[kMaxLeaves + 1] = {};  // chunks of leaf i: first_chunk[i] .. [i + 1] - 1
  int8_t codes[2 * kMaxLeaves] = {};         // all parts' programs
  uint8_t code_begin[kMaxLeaves + 1] = {};   // part p: codes[code_begin[p] .. code_begin[p + 1])
  uint8_t order[kMaxLeaves] = {};            // leaves in the order in which `codes` names them
  // There is one part, whose program is R2's tree over up to kHalvedLeaves leaves, and no other.
  bool by_halves = false;
  float* outs[kMaxLeaves] = {};
  int64_t out_strides[kMaxLeaves] = {};

  // kFew, of a weight of one part: with `activated` not null its columns are as many gates and then
  // as many ups, a block computes sixteen of either, and in place of outs[0] it writes
  // silu(gate) * up (SiluMul) to activated [rows, n / 2]. n / 2 is a multiple of sixteen.
  uint16_t* activated = nullptr;  // BF16
  int64_t activated_stride = 0;
  const float* gate_up_bias = nullptr;  // [n] or null

  // With `tiles` (on the device) null there is one weight, and tile i is rows [i * tile_rows, ...).
  const MatMulTile* tiles = nullptr;
  int64_t num_tiles = 0;  // that a grid is made for
  // On the device: how many there are, at most num_tiles; null: all of them.
  const int32_t* tile_count = nullptr;
  const void* weight = nullptr;
  int64_t rows = 0;
  int32_t tile_rows = 0;
};

// `scratch`: plan.scratch_bytes.
cudaError_t MatMulMma(const MatMulParams& params, const MatMulPlan& plan, void* scratch,
                      cudaStream_t stream);
// F32 and F16 weights, a plan of PlanChain.
cudaError_t MatMulChain(const MatMulParams& params, const MatMulPlan& plan, cudaStream_t stream);

// The two kernels of MatMulMma.
cudaError_t MatMulFew(const MatMulParams& params, const MatMulPlan& plan, cudaStream_t stream);
cudaError_t MatMulMany(const MatMulParams& params, const MatMulPlan& plan, float* scratch,
                       cudaStream_t stream);
// Of a plan with a split: out of the units' sums in `scratch`, [unit][rows][n], what they are
// joined to; the second pass of MatMulMany.
cudaError_t JoinSplit(const MatMulParams& params, const MatMulPlan& plan, const float* scratch,
                      cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_MATMUL_H_
