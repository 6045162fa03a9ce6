// What the matmul kernels share: tiles, chunks, programs.
#ifndef PHALANX_KERNELS_CUDA_MATMUL_DEVICE_CUH_
#define PHALANX_KERNELS_CUDA_MATMUL_DEVICE_CUH_

#include "kernels/cuda/fragment.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/mma.cuh"

namespace phalanx::kernels::cuda {

// Tile `index` of one weight's rows.
__device__ __forceinline__ MatMulTile RowsTile(const MatMulParams& p, int64_t index) {
  const int64_t first = index * p.tile_rows;
  const int64_t left = p.rows - first;
  return {p.weight, first, static_cast<int32_t>(left < p.tile_rows ? left : p.tile_rows)};
}

__device__ __forceinline__ MatMulTile TileOf(const MatMulParams& p, int64_t index) {
  return p.tiles != nullptr ? p.tiles[index] : RowsTile(p, index);
}

// Whether there are p.num_tiles, each by RowsTile: else they are listed in memory, maybe by a
// kernel before this one, which may not have ended.
__device__ __forceinline__ bool TilesAreKnownAtLaunch(const MatMulParams& p) {
  return p.tiles == nullptr && p.tile_count == nullptr;
}

__device__ __forceinline__ int64_t NumTiles(const MatMulParams& p) {
  return p.tile_count != nullptr ? *p.tile_count : p.num_tiles;
}

__device__ __forceinline__ int LeafBegin(const MatMulParams& p, int leaf) {
  return leaf == 0 ? 0 : p.leaf_end[leaf - 1];
}

// A lane's registers of operand A for a step, out of its 16 bytes of two rows
// (WeightLayout::kRows).
__device__ __forceinline__ Words OperandOfRows(const Words& low, const Words& high, int step) {
  return {{low.w[2 * step], high.w[2 * step], low.w[2 * step + 1], high.w[2 * step + 1]}};
}

// Groups of 32 values of k.
struct GroupRange {
  int begin;
  int end;
};
__device__ __forceinline__ GroupRange LeafGroups(const MatMulParams& p, int leaf) {
  return {LeafBegin(p, leaf) / kGroupK, p.leaf_end[leaf] / kGroupK};
}
__device__ __forceinline__ GroupRange ChunkGroups(const MatMulParams& p, int chunk) {
  // The last leaf that begins with this chunk or before it: those before that begin there, too, are
  // empty. By halving, since each look at the parameters depends on the one before.
  int leaf = 0;
  for (int step = kMaxLeaves / 2; step > 0; step /= 2) {
    if (leaf + step < p.num_leaves && chunk >= p.first_chunk[leaf + step]) leaf += step;
  }
  const GroupRange groups = LeafGroups(p, leaf);
  const int begin = groups.begin + (chunk - p.first_chunk[leaf]) * kChunkGroups;
  return {begin, begin + kChunkGroups < groups.end ? begin + kChunkGroups : groups.end};
}

// What a warp walks group by group: segments `first`, first + step, ...
struct Leaves {
  __device__ static int Count(const MatMulParams& p) { return p.num_leaves; }
  __device__ static GroupRange Groups(const MatMulParams& p, int leaf) {
    return LeafGroups(p, leaf);
  }
};
template <typename Segments>
struct GroupWalk {
  int segment;
  int step;
  int group;
  int end;

  __device__ void Begin(const MatMulParams& p, int first, int every) {
    segment = first;
    step = every;
    Enter(p);
  }
  __device__ bool done() const { return group >= end; }
  // To the next group; whether that ended a segment. Empty ones are passed over.
  __device__ bool Next(const MatMulParams& p) {
    if (++group < end) return false;
    segment += step;
    Enter(p);
    return true;
  }
  __device__ void Enter(const MatMulParams& p) {
    for (group = end = 0; segment < Segments::Count(p); segment += step) {
      const GroupRange range = Segments::Groups(p, segment);
      group = range.begin;
      end = range.end;
      if (group < end) return;
    }
  }
};

// Runs part `part`'s program for one output; `leaf_sum(leaf)` gives a leaf's sum. `stack`: this
// thread's levels but the top one, `step` floats apart.
template <typename LeafSum>
__device__ float RunPart(const MatMulParams& p, int part, float* stack, int step,
                         const LeafSum& leaf_sum) {
  if (p.by_halves) {
    // The same sums as by the program, but all leaves are looked up at once: by codes and a stack
    // each waits for the one before.
    float sums[kHalvedLeaves];
#pragma unroll
    for (int i = 0; i < kHalvedLeaves; ++i) sums[i] = i < p.num_leaves ? leaf_sum(i) : 0.0f;
#pragma unroll
    for (int half = 1; half < kHalvedLeaves; half *= 2) {
#pragma unroll
      for (int i = 0; i < kHalvedLeaves; i += 2 * half) {
        if (i + half < p.num_leaves) sums[i] = Add(sums[i], sums[i + half]);
      }
    }
    return sums[0];
  }
  int depth = 0;  // levels below the top one
  float top = 0.0f;
  bool empty = true;
  for (int i = p.code_begin[part]; i < p.code_begin[part + 1]; ++i) {
    const int code = p.codes[i];
    if (code >= 0) {
      if (!empty) stack[depth++ * step] = top;
      empty = false;
      top = leaf_sum(code);
    } else {
      --depth;
      top = Add(stack[depth * step], top);
    }
  }
  return top;
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_MATMUL_DEVICE_CUH_
