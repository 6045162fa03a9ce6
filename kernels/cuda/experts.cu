#include "kernels/cuda/best.cuh"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/log_sum_exp.cuh"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kRouteThreads = 128;
constexpr int kPlaceThreads = 256;
constexpr int kTileThreads = 256;
constexpr int kCombineThreads = 128;
// Below every probability: a logit that is no number, and one that has been taken.
constexpr float kFaulty = -1.0f;
constexpr float kTaken = -2.0f;
constexpr uint32_t kQuietNan = 0x7fc00000u;
constexpr unsigned kAllLanes = 0xffffffffu;

// One row a block.
__global__ void __launch_bounds__(kRouteThreads)
    RouteKernel(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                float* weights) {
  BeginInTurn();
  __shared__ LogSumExpMemory memory;
  __shared__ BestSlot best_of_warp[kRouteThreads / kWarp];
  __shared__ float p[kMaxRouterWidth];
  const int64_t row = blockIdx.x;
  const int64_t n = logits.cols;
  const float* x = static_cast<const float*>(logits.data) + row * logits.stride;
  const MaxSum total = LogSumExp(x, n, &memory);
  const bool sound = total.sum > 0.0f;
  for (int64_t j = threadIdx.x; j < n; j += kRouteThreads) {
    const float value = Div(Exp(Sub(x[j], total.max)), sound ? total.sum : 1.0f);
    p[j] = value == value ? value : kFaulty;
  }
  // Nobody needs the tile any more, and each thread writes and reads elements of its own.
  float* const kept = memory.tile;
  float chosen = 0.0f;
  for (int64_t k = 0; k < top_k; ++k) {
    // Each thread reads only columns that it wrote.
    Choice best;
    for (int64_t j = threadIdx.x; j < n; j += kRouteThreads) {
      const Choice here = {static_cast<int32_t>(j), p[j]};
      if (here.value != kTaken && Before(here, best)) best = here;
    }
    best = BestOfBlock(best, best_of_warp);
    if (best.id % kRouteThreads == static_cast<int>(threadIdx.x)) p[best.id] = kTaken;
    chosen = k == 0 ? best.value : Add(chosen, best.value);
    if (k % kRouteThreads == threadIdx.x) {
      experts[row * top_k + k] = best.id;
      kept[k] = best.value;
    }
  }
  for (int64_t k = threadIdx.x; k < top_k; k += kRouteThreads) {
    float weight = kept[k];
    if (!sound) {
      weight = __builtin_bit_cast(float, kQuietNan);
    } else if (normalise) {
      weight = Div(weight, chosen);
    }
    weights[row * top_k + k] = weight;
  }
}

// Block e places the slots of expert e: those of lower experts come before, and of its own those
// before in the slots' order. Nobody waits for another block, and no order is left to chance.
__global__ void __launch_bounds__(kPlaceThreads)
    PlaceKernel(const int32_t* ids, int64_t slots, int64_t top_k, PlacedSlots out,
                int64_t* tokens) {
  BeginInTurn();
  constexpr int kWarps = kPlaceThreads / kWarp;
  __shared__ int32_t lower_of_warp[kWarps];
  __shared__ int32_t own_of_warp[kWarps];
  const int expert = blockIdx.x;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  // A warp takes a run of slots, 32 at a time.
  const int64_t run = (slots + kPlaceThreads - 1) / kPlaceThreads * kWarp;
  const int64_t first = warp * run;
  const int64_t last = first + run < slots ? first + run : slots;
  const auto id_at = [&](int64_t slot) { return slot < last ? ids[slot] : INT32_MAX; };
  int32_t lower = 0;
  int32_t own = 0;
  for (int64_t i = first; i < last; i += kWarp) {
    const int32_t id = id_at(i + lane);
    lower += __popc(__ballot_sync(kAllLanes, id < expert));
    own += __popc(__ballot_sync(kAllLanes, id == expert));
  }
  if (lane == 0) {
    lower_of_warp[warp] = lower;
    own_of_warp[warp] = own;
  }
  __syncthreads();
  int32_t begin = 0;
  int32_t before = 0;
  int32_t count = 0;
  for (int i = 0; i < kWarps; ++i) {
    begin += lower_of_warp[i];
    if (i < warp) before += own_of_warp[i];
    count += own_of_warp[i];
  }
  if (threadIdx.x == 0) {
    out.begin[expert] = begin;
    if (blockIdx.x + 1 == gridDim.x) out.begin[expert + 1] = begin + count;
    tokens[expert] += count;
  }
  int32_t place = begin + before;
  for (int64_t i = first; i < last; i += kWarp) {
    const bool mine = id_at(i + lane) == expert;
    const uint32_t all = __ballot_sync(kAllLanes, mine);
    if (mine) {
      const int32_t here = place + __popc(all & ((1u << lane) - 1));
      out.place[i + lane] = here;
      // Slots have 31 bits, and a division of 64 a hundred instructions.
      out.row[here] =
          static_cast<int32_t>(static_cast<uint32_t>(i + lane) / static_cast<uint32_t>(top_k));
    }
    place += __popc(all);
  }
}

// Thread i of the grid's x makes tile i of list blockIdx.y. Every block adds up all experts' tiles
// for itself: there are few.
__global__ void __launch_bounds__(kTileThreads)
    TilesKernel(const int32_t* begin, int32_t num_experts, TileLists lists) {
  BeginInTurn();
  __shared__ int32_t first_tile[kMaxRouterWidth + 1];
  __shared__ int32_t sums[kTileThreads];
  const TileList& list = lists.lists[blockIdx.y];
  const auto tiles_of = [&](int32_t expert) {
    return (begin[expert + 1] - begin[expert] + list.tile_rows - 1) / list.tile_rows;
  };
  // A thread takes a run of experts.
  const int32_t run = (num_experts + kTileThreads - 1) / kTileThreads;
  const int32_t first = static_cast<int32_t>(threadIdx.x) * run;
  const int32_t last = first + run < num_experts ? first + run : num_experts;
  int32_t own = 0;
  for (int32_t e = first; e < last; ++e) own += tiles_of(e);
  sums[threadIdx.x] = own;
  for (int step = 1; step < kTileThreads; step *= 2) {
    __syncthreads();
    const int32_t before = static_cast<int>(threadIdx.x) >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
  }
  int32_t next = sums[threadIdx.x] - own;
  for (int32_t e = first; e < last; ++e) {
    first_tile[e] = next;
    next += tiles_of(e);
  }
  __syncthreads();
  const int32_t count = sums[kTileThreads - 1];
  const auto tile = static_cast<int32_t>(blockIdx.x * kTileThreads + threadIdx.x);
  if (tile == 0) *list.count = count;
  if (tile >= count) return;
  // The last expert whose first tile isn't beyond this one: those without tiles come before it.
  int32_t low = 0;
  int32_t high = num_experts;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (first_tile[middle] <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int32_t row = begin[low] + (tile - first_tile[low]) * list.tile_rows;
  const int32_t left = begin[low + 1] - row;
  list.tiles[tile] = {list.weights[low], row, left < list.tile_rows ? left : list.tile_rows};
}

// The sum over a row's experts, of one column, where each expert's output is one part in its place:
// all that eight of them bring is under way together.
__device__ float CombinePlaced(const CombineParams& p, int64_t row, int64_t column) {
  constexpr int kTogether = 8;
  const float* const base = p.bases[0] + column;
  const int32_t* const places = p.places + row * p.top_k;
  const float* const weights = p.weights + row * p.top_k;
  const auto top_k = static_cast<int>(p.top_k);
  float sum = 0.0f;
#pragma unroll 1
  for (int begin = 0; begin < top_k; begin += kTogether) {
    // Behind the last one that one again: loads that nothing hangs on.
    int32_t at[kTogether];
    float factors[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int k = begin + i < top_k ? begin + i : top_k - 1;
      at[i] = places[k];
      factors[i] = weights[k];
    }
    float values[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) values[i] = base[at[i] * p.base_stride];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (begin + i == 0) {
        sum = Mul(factors[i], values[i]);
      } else if (begin + i < top_k) {
        sum = Fma(factors[i], values[i], sum);
      }
    }
  }
  return sum;
}

// Column blockIdx.y * kCombineThreads + threadIdx.x of row blockIdx.x.
__global__ void __launch_bounds__(kCombineThreads) CombineKernel(const CombineParams p) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, stack_memory);
  // [depth][threads]: a thread's stack is its own column.
  float* stack = stack_memory + threadIdx.x;
  const int64_t row = blockIdx.x;
  const int64_t j = int64_t{blockIdx.y} * kCombineThreads + threadIdx.x;
  if (j >= p.hidden) return;
  const bool one_part = p.places != nullptr && p.num_parts == 1 && p.steps == 1;
  float sum = one_part ? CombinePlaced(p, row, j) : 0.0f;
  for (int64_t k = 0; k < p.top_k && !one_part; ++k) {
    const int64_t slot = row * p.top_k + k;
    const float* const* parts = p.places != nullptr ? p.bases : p.parts + slot * p.num_parts;
    const int64_t at = j + (p.places != nullptr ? p.places[slot] * p.base_stride : 0);
    int depth = 0;
    for (int i = 0; i < p.steps; ++i) {
      const int code = p.program[i];
      if (code >= 0) {
        stack[depth++ * kCombineThreads] = parts[code][at];
      } else {
        --depth;
        stack[(depth - 1) * kCombineThreads] =
            Add(stack[(depth - 1) * kCombineThreads], stack[depth * kCombineThreads]);
      }
    }
    sum = k == 0 ? Mul(p.weights[slot], stack[0]) : Fma(p.weights[slot], stack[0], sum);
  }
  if (p.shared.data != nullptr) {
    const float shared = static_cast<const float*>(p.shared.data)[row * p.shared.stride + j];
    sum = p.shared_gate_logit != nullptr
              ? Fma(SharedExpertGate(p.shared_gate_logit[row]), shared, sum)
              : Add(sum, shared);
  }
  static_cast<float*>(p.out.data)[row * p.out.stride + j] = sum;
}

}  // namespace

cudaError_t RouteTopK(TensorView logits, int64_t top_k, bool normalise, int32_t* experts,
                      float* weights, cudaStream_t stream) {
  if (logits.rows == 0) return cudaSuccess;
  return Launch(RouteKernel, dim3(static_cast<unsigned>(logits.rows)), kRouteThreads, 0, stream,
                logits, top_k, normalise, experts, weights);
}

cudaError_t PlaceSlots(const int32_t* ids, int64_t slots, int64_t top_k, int64_t num_experts,
                       PlacedSlots out, int64_t* tokens, cudaStream_t stream) {
  return Launch(PlaceKernel, dim3(static_cast<unsigned>(num_experts)), kPlaceThreads, 0, stream,
                ids, slots, top_k, out, tokens);
}

cudaError_t ListTiles(const int32_t* begin, int64_t num_experts, int64_t most,
                      const TileLists& lists, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((most + kTileThreads - 1) / kTileThreads), 2);
  return Launch(TilesKernel, grid, kTileThreads, 0, stream, begin,
                static_cast<int32_t>(num_experts), lists);
}

cudaError_t CombineExperts(const CombineParams& params, cudaStream_t stream) {
  if (params.rows == 0 || params.hidden == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(params.rows),
                  static_cast<unsigned>((params.hidden + kCombineThreads - 1) / kCombineThreads));
  // At most 64 levels: 32 KiB.
  const size_t shared = params.depth * kCombineThreads * sizeof(float);
  return Launch(CombineKernel, grid, kCombineThreads, shared, stream, params);
}

}  // namespace phalanx::kernels::cuda
