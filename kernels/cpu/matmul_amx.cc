// BF16 prefill on AMX tiles. Compiled with AVX-512's flags and -mamx-tile -mamx-bf16.
//
// TDPBF16PS adds an even and an odd chain of 16 products each, from +0, to the accumulator: exactly
// the order that R1 asks for, so tiles accumulate in place. (Intel SDM vol. 2; it flushes denormals
// by itself.) Few rows, F32 and F16 go to the AVX-512 kernels, whose bits are the same.
#include <immintrin.h>

#include "kernels/cpu/matmul_job.h"

namespace phalanx::kernels::cpu {
namespace {

struct Isa {
  static constexpr int kLanes = 16;
  static __m512 Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
  static __m512 Add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

#include "kernels/cpu/matmul_programs.inc"

// Fewer rows are faster through AVX-512.
constexpr int64_t kMinTileRows = 8;
constexpr int64_t kTileRows = 16;
constexpr int64_t kGroup = 32;
constexpr int64_t kGroupBytes = kGroup * kPanelColumns * 2;
// Depth of a block of k: two panels' blocks (32 KiB) stay in the L1 cache while the rows pass.
constexpr int64_t kDepth = 512;

// Palette 1 (Intel SDM vol. 1, section 18.3). Tiles: C 0 to 3, A 4 and 5, B 6 and 7.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Two row blocks of `upper` and `lower` rows; a tile may not have 0 rows, so an absent lower block
// passes 1 and isn't used.
void Configure(int64_t upper, int64_t lower) {
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64;
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(upper);
  config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(lower);
  config.rows[6] = config.rows[7] = 16;
  // GCC 12 doesn't see that the instruction reads the structure, and may drop the stores to it.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

struct TileOperands {
  const uint16_t* x_upper;  // packed: [k / 32][rows][32]
  const uint16_t* x_lower;  // null: no lower block
  int64_t x_upper_step;     // values from one dot group to the next
  int64_t x_lower_step;
  const char* w_left;   // a panel at the block's first k
  const char* w_right;  // null: no right panel
  int64_t k;
  float* dest;  // of the upper block and the left panel
  float* dest_lower;
  int64_t stride;  // floats
  bool first;
};

// C is (upper, lower) x (left, right): tiles 0 1 / 2 3.
template <bool kLower, bool kRight>
void TileBlock(const TileOperands& op) {
  const int64_t stride = op.stride * 4;
  if (op.first) {
    _tile_zero(0);
    if constexpr (kRight) _tile_zero(1);
    if constexpr (kLower) _tile_zero(2);
    if constexpr (kLower && kRight) _tile_zero(3);
  } else {
    _tile_loadd(0, op.dest, stride);
    if constexpr (kRight) _tile_loadd(1, op.dest + kPanelColumns, stride);
    if constexpr (kLower) _tile_loadd(2, op.dest_lower, stride);
    if constexpr (kLower && kRight) _tile_loadd(3, op.dest_lower + kPanelColumns, stride);
  }
  const uint16_t* upper = op.x_upper;
  const uint16_t* lower = op.x_lower;
  const char* left = op.w_left;
  const char* right = op.w_right;
  for (int64_t g = 0; g < op.k; g += kGroup) {
    _tile_loadd(6, left, 64);
    _tile_loadd(4, upper, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRight) {
      _tile_loadd(7, right, 64);
      _tile_dpbf16ps(1, 4, 7);
      right += kGroupBytes;
    }
    if constexpr (kLower) {
      _tile_loadd(5, lower, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRight) _tile_dpbf16ps(3, 5, 7);
      lower += op.x_lower_step;
    }
    left += kGroupBytes;
    upper += op.x_upper_step;
  }
  _tile_stored(0, op.dest, stride);
  if constexpr (kRight) _tile_stored(1, op.dest + kPanelColumns, stride);
  if constexpr (kLower) _tile_stored(2, op.dest_lower, stride);
  if constexpr (kLower && kRight) _tile_stored(3, op.dest_lower + kPanelColumns, stride);
}

void RunTiles(const TileOperands& op) {
  if (op.x_lower != nullptr) {
    op.w_right != nullptr ? TileBlock<true, true>(op) : TileBlock<true, false>(op);
  } else {
    op.w_right != nullptr ? TileBlock<false, true>(op) : TileBlock<false, false>(op);
  }
}

// A LeafFunction. The tiles are configured for two full row blocks and are again on return.
void LeafSums(const MatMulJob& job, int64_t panel, int64_t panels, LeafRange leaf,
              int64_t block_begin, int64_t block_end, float* dest, int64_t stride, float*) {
  if (leaf.begin == leaf.end) {
    const int64_t rows = Min(job.rows, block_end * kTileRows) - block_begin * kTileRows;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < panels * kPanelColumns; c += Isa::kLanes) {
        Isa::Store(dest + r * stride + c, _mm512_setzero_ps());
      }
    }
    return;
  }
  const uint16_t* packed_x = static_cast<const uint16_t*>(job.packed_x);
  for (int64_t k = leaf.begin; k < leaf.end; k += kDepth) {
    for (int64_t p = 0; p < panels; p += 2) {
      TileOperands op;
      op.k = Min(kDepth, leaf.end - k);
      op.first = k == leaf.begin;
      op.stride = stride;
      op.w_left = job.weight + (panel + p) * job.panel_bytes + k * kPanelColumns * 2;
      op.w_right = p + 1 < panels ? op.w_left + job.panel_bytes : nullptr;
      for (int64_t b = block_begin; b < block_end; b += 2) {
        const int64_t upper = RowsOf(job, b);
        const int64_t lower = b + 1 < block_end ? RowsOf(job, b + 1) : 0;
        op.x_upper = packed_x + b * kTileRows * job.k + k * upper;
        op.x_upper_step = upper * kGroup;
        op.x_lower = lower > 0 ? packed_x + (b + 1) * kTileRows * job.k + k * lower : nullptr;
        op.x_lower_step = lower * kGroup;
        op.dest = dest + (b - block_begin) * kTileRows * stride + p * kPanelColumns;
        op.dest_lower = op.dest + kTileRows * stride;
        const bool partial = upper != kTileRows || lower != kTileRows;
        if (partial) Configure(upper, lower > 0 ? lower : 1);
        RunTiles(op);
        if (partial) Configure(kTileRows, kTileRows);
      }
    }
  }
}

void Plan(MatMulJob* job) {
  if (job->dtype != DType::kBF16 || job->rows < kMinTileRows) {
    MatMulAvx512().plan(job);
    return;
  }
  job->mode = kTiles;
  job->row_block = kTileRows;
}

void PackX(const MatMulJob& job, int64_t begin, int64_t end) {
  if (job.mode != kTiles) {
    MatMulAvx512().pack_x(job, begin, end);
    return;
  }
  for (int64_t b = begin; b < end; ++b) {
    const int64_t rows = RowsOf(job, b);
    uint16_t* block = static_cast<uint16_t*>(job.packed_x) + b * kTileRows * job.k;
    for (int64_t r = 0; r < rows; ++r) {
      const uint16_t* from =
          static_cast<const uint16_t*>(job.x) + (b * kTileRows + r) * job.x_stride;
      for (int64_t g = 0; g < job.k; g += kGroup) {
        _mm512_storeu_si512(block + g * rows + r * kGroup, _mm512_loadu_si512(from + g));
      }
    }
  }
}

int64_t ScratchFloats(const MatMulJob& job, int64_t rows) {
  if (job.mode != kTiles) return MatMulAvx512().scratch_floats(job, rows);
  return job.stack_depth * SlotFloats(rows);
}

void Compute(const MatMulJob& job, int64_t group_begin, int64_t group_end, int64_t block_begin,
             int64_t block_end, float* scratch) {
  if (job.mode != kTiles) {
    MatMulAvx512().compute(job, group_begin, group_end, block_begin, block_end, scratch);
    return;
  }
  Configure(kTileRows, kTileRows);
  for (int64_t group = group_begin; group < group_end; ++group) {
    RunPrograms<LeafSums>(job, group, block_begin, block_end, nullptr, scratch);
  }
  _tile_release();
}

constexpr MatMulTable kTable = {Plan, PackX, Compute, ScratchFloats};

}  // namespace

const MatMulTable& MatMulAmx() { return kTable; }

}  // namespace phalanx::kernels::cpu
