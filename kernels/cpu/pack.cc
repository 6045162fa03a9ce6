// Packing: reads the source's rows once, 16 at a time (a panel's), and writes its panel in order.
// Weights of FP8 are quantised and kept as the BF16 that they are read back as: the products'
// kernels and bits are those of BF16.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "kernels/check.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/fp8_weights.h"
#include "kernels/weight_plan.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace phalanx::kernels::cpu {
namespace {

constexpr int kRows = static_cast<int>(kPanelColumns);

// Exponent bits of a 32-bit unit: an F32, or two 16-bit floats. A value is NaN or infinite when all
// of its exponent bits are set.
constexpr uint32_t kExponentF32 = 0x7F800000u;
constexpr uint16_t kExponentBf16 = 0x7F80u;
constexpr uint16_t kExponentF16 = 0x7C00u;

// to[i][r] = from[r][i] for 16 rows of 16 units of 32 bits. Returns whether any value is NaN or
// infinite; `kPair` says whether a unit holds two BF16 or one F32.
template <bool kPair>
bool Transpose32(const char* const* from, int64_t offset, char* to) {
#if defined(__SSE2__)
  const __m128i exponent = kPair ? _mm_set1_epi16(static_cast<int16_t>(kExponentBf16))
                                 : _mm_set1_epi32(static_cast<int32_t>(kExponentF32));
  __m128i bad = _mm_setzero_si128();
  for (int r = 0; r < kRows; r += 4) {
    for (int i = 0; i < 16; i += 4) {
      __m128i row[4];
      for (int j = 0; j < 4; ++j) {
        row[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r + j] + offset + i * 4));
        const __m128i e = _mm_and_si128(row[j], exponent);
        bad =
            _mm_or_si128(bad, kPair ? _mm_cmpeq_epi16(e, exponent) : _mm_cmpeq_epi32(e, exponent));
      }
      const __m128i a = _mm_unpacklo_epi32(row[0], row[1]);
      const __m128i b = _mm_unpacklo_epi32(row[2], row[3]);
      const __m128i c = _mm_unpackhi_epi32(row[0], row[1]);
      const __m128i d = _mm_unpackhi_epi32(row[2], row[3]);
      char* out = to + i * 64 + r * 4;
      _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi64(a, b));
      _mm_store_si128(reinterpret_cast<__m128i*>(out + 64), _mm_unpackhi_epi64(a, b));
      _mm_store_si128(reinterpret_cast<__m128i*>(out + 128), _mm_unpacklo_epi64(c, d));
      _mm_store_si128(reinterpret_cast<__m128i*>(out + 192), _mm_unpackhi_epi64(c, d));
    }
  }
  return _mm_movemask_epi8(bad) != 0;
#else
  bool bad = false;
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 16; ++i) {
      uint32_t unit;
      std::memcpy(&unit, from[r] + offset + i * 4, 4);
      bad |= kPair ? (unit & kExponentBf16) == kExponentBf16 ||
                         ((unit >> 16) & kExponentBf16) == kExponentBf16
                   : (unit & kExponentF32) == kExponentF32;
      std::memcpy(to + i * 64 + r * 4, &unit, 4);
    }
  }
  return bad;
#endif
}

// to[i][r] = from[r][i] for 16 rows of 16 F16.
bool Transpose16(const char* const* from, int64_t offset, char* to) {
#if defined(__SSE2__)
  const __m128i exponent = _mm_set1_epi16(static_cast<int16_t>(kExponentF16));
  __m128i bad = _mm_setzero_si128();
  for (int r = 0; r < kRows; r += 8) {
    for (int i = 0; i < 16; i += 8) {
      __m128i a[8], b[8];
      for (int j = 0; j < 8; ++j) {
        a[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r + j] + offset + i * 2));
        bad = _mm_or_si128(bad, _mm_cmpeq_epi16(_mm_and_si128(a[j], exponent), exponent));
      }
      for (int j = 0; j < 4; ++j) {
        b[2 * j] = _mm_unpacklo_epi16(a[2 * j], a[2 * j + 1]);
        b[2 * j + 1] = _mm_unpackhi_epi16(a[2 * j], a[2 * j + 1]);
      }
      for (int j = 0; j < 2; ++j) {
        a[4 * j] = _mm_unpacklo_epi32(b[4 * j], b[4 * j + 2]);
        a[4 * j + 1] = _mm_unpackhi_epi32(b[4 * j], b[4 * j + 2]);
        a[4 * j + 2] = _mm_unpacklo_epi32(b[4 * j + 1], b[4 * j + 3]);
        a[4 * j + 3] = _mm_unpackhi_epi32(b[4 * j + 1], b[4 * j + 3]);
      }
      for (int j = 0; j < 4; ++j) {
        __m128i* out = reinterpret_cast<__m128i*>(to + (i + 2 * j) * 32 + r * 2);
        _mm_store_si128(out, _mm_unpacklo_epi64(a[j], a[j + 4]));
        _mm_store_si128(out + 2, _mm_unpackhi_epi64(a[j], a[j + 4]));
      }
    }
  }
  return _mm_movemask_epi8(bad) != 0;
#else
  bool bad = false;
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < 16; ++i) {
      uint16_t value;
      std::memcpy(&value, from[r] + offset + i * 2, 2);
      bad |= (value & kExponentF16) == kExponentF16;
      std::memcpy(to + i * 32 + r * 2, &value, 2);
    }
  }
  return bad;
#endif
}

// Transposes 32 values of k of 16 rows; returns whether one is NaN or infinite.
bool TransposeGroup(DType dtype, const char* const* rows, int64_t offset, char* to) {
  switch (dtype) {
    case DType::kBF16:
      return Transpose32<true>(rows, offset, to);
    case DType::kF32: {
      const bool first = Transpose32<false>(rows, offset, to);
      const bool second = Transpose32<false>(rows, offset + 64, to + 1024);
      return first || second;
    }
    case DType::kF16: {
      const bool first = Transpose16(rows, offset, to);
      const bool second = Transpose16(rows, offset + 32, to + 512);
      return first || second;
    }
    case DType::kF8E4M3:
      break;
  }
  return false;
}

// What FP8 keeps of a row's dot group, as BF16; returns whether it can keep it.
bool ReadThroughFp8(const WeightSpec& spec, int64_t row, int64_t k, int64_t values, char* to) {
  Fp8Group group;
  if (!ReadFp8Group(spec, row, k, values, &group)) return false;
  for (int i = 0; i < kFp8GroupValues; ++i) {
    const uint16_t bits = Fp8Weight(group, i);
    std::memcpy(to + 2 * i, &bits, sizeof bits);
  }
  return true;
}

// The first bad value in (row, column) order, whichever thread finds one first.
struct BadValue {
  std::mutex mutex;
  int64_t row = -1;
  int64_t column = 0;

  void Offer(int64_t new_row, int64_t new_column) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (row < 0 || new_row < row || (new_row == row && new_column < column)) {
      row = new_row;
      column = new_column;
    }
  }
};

class Packer {
 public:
  Packer(const WeightSpec& spec, CpuPackedWeight& weight, BadValue& bad)
      : spec_(spec), weight_(weight), bad_(bad), size_(SizeOf(spec.dtype)) {}

  void Panel(int64_t panel) {
    const char* rows[kRows];
    const int64_t first = panel * kPanelColumns;
    const auto valid = static_cast<int>(std::min(kPanelColumns, weight_.n() - first));
    for (int r = 0; r < valid; ++r) rows[r] = SourceRow(spec_, first + r);
    char* to = weight_.data.as<char>() + panel * weight_.panel_bytes;
    bool bad = false;
    for (const KLeaf& leaf : spec_.leaves) {
      for (int64_t k = leaf.begin; k < leaf.end; k += kDotGroup) {
        const int64_t values = std::min(kDotGroup, leaf.end - k);
        const bool plain = spec_.format == WeightFormat::kPlain;
        if (plain && values == kDotGroup && valid == kRows) {
          bad |= TransposeGroup(spec_.dtype, rows, k * size_, to);
        } else {
          // Edges and FP8 pass through a zero-padded copy.
          alignas(64) char copy[kRows][kDotGroup * sizeof(float)] = {};
          const char* copies[kRows];
          for (int r = 0; r < kRows; ++r) {
            copies[r] = copy[r];
            if (r >= valid) continue;
            if (plain) {
              std::memcpy(copy[r], rows[r] + k * size_, values * size_);
            } else {
              bad |= !ReadThroughFp8(spec_, first + r, k, values, copy[r]);
            }
          }
          bad |= TransposeGroup(spec_.dtype, copies, 0, to);
        }
        to += kDotGroup * kPanelColumns * size_;
      }
    }
    if (bad) Locate(rows, first, valid);
  }

 private:
  void Locate(const char* const* rows, int64_t first, int valid) {
    for (int r = 0; r < valid; ++r) {
      for (const KLeaf& leaf : spec_.leaves) {
        for (int64_t k = leaf.begin; k < leaf.end; ++k) {
          if (IsUnfit(spec_, rows[r] + k * SizeOf(SourceType(spec_)))) {
            bad_.Offer(first + r, k);
            break;
          }
        }
      }
    }
  }

  const WeightSpec& spec_;
  CpuPackedWeight& weight_;
  BadValue& bad_;
  const int64_t size_;
};

// All of the weight but its memory.
std::unique_ptr<CpuPackedWeight> Describe(const WeightSpec& spec) {
  WeightPlan plan = PlanWeight(spec);
  auto weight = std::make_unique<CpuPackedWeight>();
  for (const PlacedLeaf& leaf : plan.leaves) weight->leaves.push_back({leaf.begin, leaf.end});
  weight->SetShape(spec.dtype, plan.n, plan.k, plan.num_parts());
  weight->panel_bytes = plan.k * kPanelColumns * SizeOf(spec.dtype);
  weight->programs = std::move(plan.programs);
  weight->program_begin = std::move(plan.program_begin);
  weight->stack_depth = plan.stack_depth;
  return weight;
}

void SetMemory(CpuPackedWeight& weight, Buffer memory) {
  const int64_t bytes = weight.panels() * weight.panel_bytes;
  PHALANX_CHECK(static_cast<int64_t>(memory.bytes()) == bytes)
      << "memory of " << memory.bytes() << " bytes for a weight of " << bytes;
  weight.data = std::move(memory);
}

}  // namespace

int64_t PackedBytes(const WeightSpec& spec) {
  const std::unique_ptr<CpuPackedWeight> weight = Describe(spec);
  return weight->panels() * weight->panel_bytes;
}

std::unique_ptr<PackedWeight> WrapPacked(const WeightSpec& spec, Buffer memory) {
  std::unique_ptr<CpuPackedWeight> weight = Describe(spec);
  SetMemory(*weight, std::move(memory));
  return weight;
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(ThreadPool& pool, const WeightSpec& spec) {
  absl::StatusOr<Buffer> data = AllocateHost(PackedBytes(spec));
  if (!data.ok()) return data.status();
  return PackWeightInto(pool, spec, *std::move(data));
}

absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeightInto(ThreadPool& pool,
                                                             const WeightSpec& spec,
                                                             Buffer memory) {
  std::unique_ptr<CpuPackedWeight> weight = Describe(spec);
  SetMemory(*weight, std::move(memory));

  BadValue bad;
  Packer packer(spec, *weight, bad);
  pool.ParallelFor(weight->panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) packer.Panel(panel);
  });
  if (bad.row >= 0) return UnfitWeight(spec, bad.row, bad.column);
  return weight;
}

}  // namespace phalanx::kernels::cpu
