// Where values stand in a warp's registers and in memory for mma.sync.m16n8k16 (PTX ISA, "Matrix
// fragments for mma.m16n8k16"): D[16, 8] = A[16, 16] B[16, 8] + C, BF16 in, F32 out.
//
// A dot group of 32 values of k feeds two instructions (step 0 and 1). Lane t = lane % 4 owns the 8
// neighbouring values k = 8t .. 8t + 7 of the group, 16 bytes of a row: step s takes its 4 values
// from 4s on. So one 16-byte load of row-major memory is a lane's part of both steps, and memory
// needs no swizzle: eight rows of a group are 512 bytes in lane order. Which k meets which position
// of the instruction is then fixed for every call:
//   position p = 2t + e + 8h of step s  <->  k = 8t + 4s + 2h + e        (t 0..3, e, h, s 0..1)
#ifndef PHALANX_KERNELS_CUDA_FRAGMENT_H_
#define PHALANX_KERNELS_CUDA_FRAGMENT_H_

#include <cstdint>

#include "kernels/host_device.h"

namespace phalanx::kernels::cuda {

// How weights lie in memory.
enum class WeightLayout : uint8_t {
  kTiles,  // in the order in which lanes read them: profile `exact`
  // Row-major, [n, padded k], n padded to whole tiles: what cuBLASLt reads, too. A lane takes 16
  // bytes of row lane / 4 and of row lane / 4 + 8; by the above they are its registers of operand A
  // for both steps: step s has {low[2s], high[2s], low[2s + 1], high[2s + 1]}.
  kRows,
  // As kTiles, in FP8 (below), with one factor or two for each row.
  kFp8,
  kFp8Fine,
};
PHALANX_HOST_DEVICE constexpr bool IsFp8(WeightLayout layout) {
  return layout == WeightLayout::kFp8 || layout == WeightLayout::kFp8Fine;
}

inline constexpr int kWarp = 32;
inline constexpr int kGroupK = 32;  // values of k of a dot group: two instructions
inline constexpr int kTileRows = 16;
inline constexpr int kTileColumns = 8;
// Values of k that are added by one chain of instructions. Longer leaves are cut at multiples of
// this from their beginning, and the cuts' sums are added in rising order from +0: for one row and
// for thousands. So a leaf can be read by several warps at once without R1 noticing.
inline constexpr int kChunkK = 512;
inline constexpr int kChunkGroups = kChunkK / kGroupK;

// Packed BF16 weights: [n / 16][k / 32][step][lane][4 registers][2], tile after tile: the A operand
// of a tile and step is 512 bytes, 16 a lane. Register r of a lane holds row lane / 4 + 8 (r % 2)
// and positions 2t + 8 (r / 2) and the next.
inline constexpr int kTileStepElements = kTileRows * 16;
inline constexpr int kTileGroupElements = 2 * kTileStepElements;

// Element offset of a lane's 16 bytes.
PHALANX_SHARED int64_t WeightOffset(int64_t tile, int64_t group, int step, int lane,
                                    int64_t groups_of_k) {
  return ((tile * groups_of_k + group) * 2 + step) * kTileStepElements + lane * 8;
}
// Element offset of W[row, k] (k padded).
PHALANX_SHARED int64_t PackedOffset(int64_t row, int64_t k, int64_t groups_of_k) {
  const int r = static_cast<int>(row % kTileRows);
  const int kk = static_cast<int>(k % kGroupK);
  const int lane = r % 8 * 4 + kk / 8;
  const int step = kk % 8 / 4;
  const int reg = kk % 4 / 2 * 2 + r / 8;
  return WeightOffset(row / kTileRows, k / kGroupK, step, lane, groups_of_k) + reg * 2 + kk % 2;
}

// Packed weights of FP8 (kernels/fp8_weights.h): [n / 16][k / 32], 544 bytes each: 16 codes a lane,
// then eight words of factors, for rows r and r + 8 the BF16 scale * 2^120; of kFp8Fine (576 bytes)
// then eight words of rests * 2^120. A lane's codes are four words, of step s and row lane / 4 + 8h
// word 2s + h; a word holds positions 2t, 2t + 8, 2t + 1 and 2t + 9 of its step, so that the low
// and the high bytes of its halves are a register's pair each.
inline constexpr int kFp8CodeBytes = kTileRows * kGroupK;
inline constexpr int kFp8FactorBytes = kTileRows * 2;
// Byte offsets in a tile's group, of row `r` of the tile and value `kk` of the group.
PHALANX_SHARED int Fp8CodeOffset(int r, int kk) {
  const int lane = r % 8 * 4 + kk / 8;
  const int word = kk % 8 / 4 * 2 + r / 8;
  return lane * 16 + word * 4 + kk % 2 * 2 + kk % 4 / 2;
}
PHALANX_SHARED int Fp8FactorOffset(int r) { return kFp8CodeBytes + r % 8 * 4 + r / 8 * 2; }

// Bytes of a tile's group.
PHALANX_HOST_DEVICE constexpr int TileGroupBytes(WeightLayout layout) {
  return layout == WeightLayout::kFp8       ? kFp8CodeBytes + kFp8FactorBytes
         : layout == WeightLayout::kFp8Fine ? kFp8CodeBytes + 2 * kFp8FactorBytes
                                            : kTileGroupElements * 2;
}
// Byte offset of a tile's group of FP8.
PHALANX_SHARED int64_t Fp8Offset(WeightLayout layout, int64_t tile, int64_t group,
                                 int64_t groups_of_k) {
  return (tile * groups_of_k + group) * TileGroupBytes(layout);
}

// Row of a lane in a row-major operand of eight rows (tokens, keys), and the first of its eight
// values of a group.
PHALANX_SHARED int OperandRow(int lane) { return lane / 4; }
PHALANX_SHARED int OperandK(int lane) { return lane % 4 * 8; }

// Register r (0 .. 3) of a result: its row and column.
PHALANX_SHARED int ResultRow(int lane, int r) { return lane / 4 + r / 2 * 8; }
PHALANX_SHARED int ResultColumn(int lane, int r) { return lane % 4 * 2 + r % 2; }

// F32 and F16 weights: [n / 32][k][32 columns].
inline constexpr int kChainColumns = 32;
PHALANX_SHARED int64_t ChainOffset(int64_t row, int64_t k, int64_t padded_k) {
  return (row / kChainColumns * padded_k + k) * kChainColumns + row % kChainColumns;
}

// Bytes of one group of 32 columns; rows have 16 bytes between them in shared memory.
PHALANX_HOST_DEVICE constexpr int ChainGroupBytes(WeightLayout layout, int element_bytes) {
  return kChainColumns * (kGroupK * element_bytes + (layout == WeightLayout::kRows ? 16 : 0));
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_FRAGMENT_H_
