// Routing of tokens to experts, putting slots together by expert, and the sum over a token's
// experts (RouterArgs, ExpertsArgs, CombineExpertsArgs of kernels/kernels.h).
#ifndef PHALANX_KERNELS_CUDA_EXPERTS_H_
#define PHALANX_KERNELS_CUDA_EXPERTS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/matmul.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

inline constexpr int64_t kMaxRouterWidth = 4096;

// experts, weights: [m * top_k] on the device.
cudaError_t RouteTopK(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                      float* weights, cudaStream_t stream);

// Where slots stand by expert, in the slots' order; all on the device.
struct PlacedSlots {
  int32_t* begin = nullptr;  // [experts + 1] first place of each expert
  int32_t* place = nullptr;  // [slots]
  int32_t* row = nullptr;    // [slots], by place: the slot's row, slot / top_k
};

// `ids`: [slots], each in [0, num_experts). tokens[e] is raised by the slots of expert e.
cudaError_t PlaceSlots(const int32_t* ids, int64_t slots, int64_t top_k, int64_t num_experts,
                       PlacedSlots out, int64_t* tokens, cudaStream_t stream);

// The tiles of one of the experts' products.
struct TileList {
  const void* const* weights = nullptr;  // [experts] on the device
  int32_t tile_rows = 0;
  MatMulTile* tiles = nullptr;  // [most] out
  int32_t* count = nullptr;     // out
};
// Of both products: gate and up, down.
struct TileLists {
  TileList lists[2];
};

// `begin`: as PlacedSlots. `most`: the tiles of the longer list at most.
cudaError_t ListTiles(const int32_t* begin, int64_t num_experts, int64_t most,
                      const TileLists& lists, cudaStream_t stream);

struct CombineParams {
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t top_k = 0;
  const float* weights = nullptr;       // [rows * top_k]
  const float* const* parts = nullptr;  // [rows * top_k * num_parts]; unused with `places`
  // Part p of a slot is row places[slot] of bases[p], rows `base_stride` floats apart.
  const int32_t* places = nullptr;      // [rows * top_k] or null
  const float* const* bases = nullptr;  // [num_parts]
  int64_t base_stride = 0;
  int num_parts = 1;
  const int* program = nullptr;
  int steps = 0;
  int depth = 1;  // sums alive at once
  TensorView shared;
  const float* shared_gate_logit = nullptr;
  TensorView out;
};

cudaError_t CombineExperts(const CombineParams& params, cudaStream_t stream);

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_EXPERTS_H_
