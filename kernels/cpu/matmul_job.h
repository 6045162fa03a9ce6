// What MatMul hands to the files of one instruction set: plain data. Those files are compiled with
// the instruction set's flags and therefore call no inline function of any shared header, whose
// copy a linker might keep for the whole program.
//
// A packed weight is a row of panels of 16 output columns, each panel running over all of the
// padded k without a gap:
//   BF16: [panel][k / 32][16 pairs][16 columns][2], so that the 16 x 64 bytes of a dot group are
//   one
//         AMX B tile and a pair's row is one AVX-512 register;
//   F32, F16: [panel][k][16 columns].
// Columns beyond n and k beyond a leaf's end hold +0.
#ifndef PHALANX_KERNELS_CPU_MATMUL_JOB_H_
#define PHALANX_KERNELS_CPU_MATMUL_JOB_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace phalanx::kernels::cpu {

inline constexpr int64_t kPanelColumns = 16;
// Panels that one step of a kernel's outer loop covers; the tile [rows, 64] of a leaf's sums.
inline constexpr int64_t kGroupPanels = 4;
inline constexpr int64_t kGroupColumns = kGroupPanels * kPanelColumns;

// One leaf in the padded k.
struct LeafRange {
  int64_t begin;
  int64_t end;
};

// A shape that a path picks by dtype and number of rows.
enum MatMulMode {
  kDirect,   // weights are widened in registers, as they stream by: few rows
  kBlocked,  // a block of k of a panel is widened once and used for all rows: many rows
  kTiles,    // AMX tiles
};

struct MatMulJob {
  DType dtype;
  int64_t n;
  int64_t k;  // padded
  int64_t panels;
  const char* weight;
  int64_t panel_bytes;
  const LeafRange* leaves;
  const int* programs;
  const int* program_begin;
  int num_parts;
  int stack_depth;

  const void* x;  // [rows, x_stride]
  int64_t x_stride;
  int64_t rows;
  float* const* outs;          // one per part
  const int64_t* out_strides;  // one per part

  // Chosen by MatMulTable::plan.
  MatMulMode mode;
  int64_t row_block;  // rows interleaved in packed_x
  // x as the path's kernels want it. kDirect, kBlocked: F32, row block b at b * row_block * k; in
  // it F32 and F16 weights: [k][rows of the block]; BF16: [k / 32][even, odd][16][rows of the
  // block]. kTiles: BF16, block b at b * row_block * k: [k / 32][rows of the block][32].
  void* packed_x;
};

struct MatMulTable {
  void (*plan)(MatMulJob* job);
  // Fills packed_x for row blocks [begin, end).
  void (*pack_x)(const MatMulJob& job, int64_t begin, int64_t end);
  // All parts, for panel groups [group_begin, group_end) and row blocks [block_begin, block_end).
  // `scratch`: scratch_floats() floats of this thread, aligned to 64 bytes.
  void (*compute)(const MatMulJob& job, int64_t group_begin, int64_t group_end, int64_t block_begin,
                  int64_t block_end, float* scratch);
  int64_t (*scratch_floats)(const MatMulJob& job, int64_t rows);
};

const MatMulTable& MatMulPortable();
// Each exists only in builds for x86-64 and runs only where the machine has the instructions.
const MatMulTable& MatMulAvx2();
const MatMulTable& MatMulAvx512();
const MatMulTable& MatMulAmx();

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_MATMUL_JOB_H_
