// Where the CUDA kernels' operands stand, proven with an emulated mma.m16n8k16 that follows the
// fragment tables of the PTX ISA: packed weights, KV blocks and row-major rows give the products
// that they should, through the very index functions that the kernels use.
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/pack.h"
#include "kernels/float16.h"

namespace phalanx::kernels::cuda {
namespace {

// A warp's registers: two BF16 each.
using Registers4 = uint32_t[kWarp][4];
using Registers2 = uint32_t[kWarp][2];
using Results = float[kWarp][4];

float Half(uint32_t word, int i) {
  return Bf16ToF32(static_cast<uint16_t>(i == 0 ? word & 0xffff : word >> 16));
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": groupID = lane >> 2,
// threadID_in_group = lane % 4.
//   A: row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, else groupID + 8
//      col = threadID_in_group * 2 + (i & 1), + 8 for i >= 4
//   B: row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2;  col = groupID
//   C: row = groupID for ci where i < 2, else groupID + 8;  col = threadID_in_group * 2 + (i & 1)
void EmulateMma(Results& c, const Registers4& a, const Registers2& b) {
  float matrix_a[16][16], matrix_b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int group = lane >> 2;
    const int thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int col = thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      matrix_a[row][col] = Half(a[lane][i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) {
      matrix_b[thread * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = Half(b[lane][i / 2], i % 2);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8);
      const int col = (lane % 4) * 2 + (i & 1);
      for (int k = 0; k < 16; ++k) c[lane][i] += matrix_a[row][k] * matrix_b[k][col];
    }
  }
}

// Small integers: every sum is exact, whatever its order.
class Integers {
 public:
  explicit Integers(uint32_t seed) : engine_(seed) {}
  uint16_t Next() { return F32ToBf16(static_cast<float>(static_cast<int>(engine_() % 17) - 8)); }
  std::vector<uint16_t> Many(int64_t n) {
    std::vector<uint16_t> values(n);
    for (uint16_t& v : values) v = Next();
    return values;
  }

 private:
  std::mt19937 engine_;
};

TEST(Fragment, PackedWeightsTimesRowsIsTheProduct) {
  constexpr int64_t kN = 45, kK = 150, kM = 8;
  Integers integers(1);
  const std::vector<uint16_t> source = integers.Many(kN * kK);
  WeightSpec spec;
  spec.dtype = DType::kBF16;
  spec.rows = {{source.data(), 20, kK}, {source.data() + 20 * kK, kN - 20, kK}};
  spec.leaves = {{0, 64}, {64, 96}, {96, 150}};
  spec.parts = {{0, 1, -1, 2, -1}};
  const WeightPlan plan = PlanWeight(spec);
  ASSERT_EQ(plan.k, 160);
  std::vector<uint16_t> packed(NumUnits(plan) * UnitBytes(plan) / 2, 0xffff);
  for (int64_t unit = 0; unit < NumUnits(plan); ++unit) {
    EXPECT_FALSE(PackUnit(spec, plan, WeightLayout::kTiles, unit,
                          reinterpret_cast<char*>(packed.data()) + unit * UnitBytes(plan)));
  }
  const int64_t groups = plan.k / kGroupK;
  // x as MatMul takes it: pad columns are +0.
  std::vector<uint16_t> x(kM * plan.k, 0);
  for (int64_t r = 0; r < kM; ++r) {
    for (int64_t k = 0; k < kK; ++k) x[r * plan.k + k] = integers.Next();
  }
  for (int64_t row = 0; row < kN; ++row) {
    for (int64_t k = 0; k < plan.k; ++k) {
      EXPECT_EQ(packed[PackedOffset(row, k, groups)], k < kK ? source[row * kK + k] : 0);
    }
  }

  for (int64_t tile = 0; tile < NumUnits(plan); ++tile) {
    Results c = {};
    for (int64_t group = 0; group < groups; ++group) {
      for (int step = 0; step < 2; ++step) {
        Registers4 a;
        Registers2 b;
        for (int lane = 0; lane < kWarp; ++lane) {
          std::memcpy(a[lane], &packed[WeightOffset(tile, group, step, lane, groups)], 16);
          uint32_t words[4];
          std::memcpy(words, &x[OperandRow(lane) * plan.k + group * kGroupK + OperandK(lane)], 16);
          b[lane][0] = words[2 * step];
          b[lane][1] = words[2 * step + 1];
        }
        EmulateMma(c, a, b);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const int64_t n = tile * kTileRows + ResultRow(lane, r);
        const int64_t row = ResultColumn(lane, r);
        float expected = 0;
        for (int64_t k = 0; n < kN && k < kK; ++k) {
          expected += Bf16ToF32(x[row * plan.k + k]) * Bf16ToF32(source[n * kK + k]);
        }
        EXPECT_EQ(c[lane][r], expected) << "n " << n << ", row " << row;
      }
    }
  }
}

TEST(Fragment, EveryPackedWordIsReadByOneLaneOnce) {
  // 512 contiguous bytes for a warp, tile and step: what makes a load or copy of 16 bytes a lane.
  for (int step = 0; step < 2; ++step) {
    for (int lane = 0; lane < kWarp; ++lane) {
      EXPECT_EQ(WeightOffset(3, 5, step, lane, 7), ((3 * 7 + 5) * 2 + step) * 256 + lane * 8);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    EXPECT_EQ(OperandRow(lane) * kGroupK + OperandK(lane), lane * 8);
  }
}

TEST(KvLayout, IndexesAreABijectionInsideTheBlock) {
  for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int64_t d : {8, 20, 64, 80, 96, 128, 256}) {
      const KvLayout layout(type, 2, d);
      std::vector<int> keys(layout.dk * kKvTokens, 0), values(layout.dv * kKvTokens, 0);
      for (int64_t token = 0; token < kKvTokens; ++token) {
        for (int64_t i = 0; i < layout.dk; ++i) ++keys.at(layout.KeyIndex(i, token));
        for (int64_t i = 0; i < layout.dv; ++i) ++values.at(layout.ValueIndex(i, token));
      }
      for (const int count : keys) EXPECT_EQ(count, 1);
      for (const int count : values) EXPECT_EQ(count, 1);
      EXPECT_EQ(layout.key_bytes % 16, 0);
      EXPECT_EQ(layout.head_bytes % 16, 0);
      EXPECT_EQ(layout.Values(3, 1), layout.Keys(3, 1) + layout.key_bytes);
      EXPECT_EQ(layout.Keys(1, 0), layout.block_bytes);
    }
  }
  for (int token = 0; token < 32; ++token) EXPECT_EQ(TokenAtPosition(ValuePosition(token)), token);
}

TEST(KvLayout, Fp8CodesAndScalesAreABijectionInsideTheHead) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t d : {8, 20, 33, 64, 80, 128, 256}) {
      const KvLayout layout(type, 2, d, /*is_fp8=*/true);
      std::vector<int> bytes(layout.head_bytes, 0);
      for (int64_t token = 0; token < kKvTokens; ++token) {
        for (int64_t i = 0; i < layout.dk; ++i) ++bytes.at(layout.KeyIndex(i, token));
        for (int64_t i = 0; i < layout.dv; ++i) {
          ++bytes.at(layout.key_bytes + layout.ValueIndex(i, token));
        }
        ++bytes.at(layout.KeyScale(token));
        ++bytes.at(layout.ValueScale(token));
      }
      const int64_t used = (layout.dk + layout.dv + 2) * kKvTokens;
      for (int64_t i = 0; i < layout.head_bytes; ++i) EXPECT_EQ(bytes[i], i < used ? 1 : 0);
      EXPECT_LT(layout.head_bytes - used, 64);
      EXPECT_EQ(layout.head_bytes % 64, 0);
      // A lane's eight scales of values stand as its eight values of a column do.
      EXPECT_EQ(layout.scales % 8, 0);
      for (int64_t token = 0; token < kKvTokens; ++token) {
        if (type != DType::kBF16) continue;
        EXPECT_EQ(layout.ValueScale(token) - layout.ValueScale(0), layout.ValueIndex(0, token));
      }
    }
  }
}

// Scores of a block, their registers as they are as operand A of P.V, and P.V: the walk of
// attention_mma.cuh.
TEST(KvLayout, ScoresAndTheirProductWithValuesAreRight) {
  constexpr int64_t kD = 72;  // a padded dot group, nine value tiles
  Integers integers(2);
  const KvLayout layout(DType::kBF16, 1, kD);
  std::vector<uint16_t> block(layout.block_bytes / 2, 0);
  uint16_t* values = block.data() + layout.key_bytes / 2;
  std::vector<uint16_t> k(32 * kD), v(32 * kD), q(16 * layout.dk, 0);
  for (int64_t token = 0; token < 32; ++token) {
    for (int64_t i = 0; i < kD; ++i) {
      k[token * kD + i] = block[layout.KeyIndex(i, token)] = integers.Next();
      v[token * kD + i] = values[layout.ValueIndex(i, token)] = integers.Next();
    }
  }
  for (int64_t row = 0; row < 16; ++row) {
    for (int64_t i = 0; i < kD; ++i) q[row * layout.dk + i] = integers.Next();
  }

  float scores[4][kWarp][4] = {};
  const int64_t groups = layout.dk / kGroupK;
  for (int tile = 0; tile < 4; ++tile) {
    for (int64_t group = 0; group < groups; ++group) {
      for (int step = 0; step < 2; ++step) {
        Registers4 a;
        Registers2 b;
        for (int lane = 0; lane < kWarp; ++lane) {
          for (int i = 0; i < 2; ++i) {
            uint32_t words[4];
            const int64_t row = OperandRow(lane) + 8 * i;
            std::memcpy(words, &q[row * layout.dk + group * kGroupK + OperandK(lane)], 16);
            a[lane][i] = words[2 * step];
            a[lane][i + 2] = words[2 * step + 1];
          }
          uint32_t words[4];
          std::memcpy(words, &block[(tile * groups + group) * 256 + lane * 8], 16);
          b[lane][0] = words[2 * step];
          b[lane][1] = words[2 * step + 1];
        }
        EmulateMma(scores[tile], a, b);
      }
    }
  }
  float exact_scores[16][32];
  for (int row = 0; row < 16; ++row) {
    for (int token = 0; token < 32; ++token) {
      float sum = 0;
      for (int64_t i = 0; i < kD; ++i) {
        sum += Bf16ToF32(q[row * layout.dk + i]) * Bf16ToF32(k[token * kD + i]);
      }
      exact_scores[row][token] = sum;
    }
  }
  for (int tile = 0; tile < 4; ++tile) {
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int r = 0; r < 4; ++r) {
        EXPECT_EQ(scores[tile][lane][r],
                  exact_scores[ResultRow(lane, r)][tile * kTileColumns + ResultColumn(lane, r)]);
      }
    }
  }

  // Small p of the scores' places, so that sums are exact.
  const auto p = [](int row, int token) { return static_cast<float>((row * 5 + token * 3) % 7); };
  Registers4 a[2];
  for (int lane = 0; lane < kWarp; ++lane) {
    float held[4][4];
    for (int tile = 0; tile < 4; ++tile) {
      for (int r = 0; r < 4; ++r) {
        held[tile][r] = p(ResultRow(lane, r), tile * kTileColumns + ResultColumn(lane, r));
      }
    }
    const auto pack = [](float low, float high) {
      return static_cast<uint32_t>(F32ToBf16(low)) | static_cast<uint32_t>(F32ToBf16(high)) << 16;
    };
    for (int s = 0; s < 2; ++s) {
      a[s][lane][0] = pack(held[2 * s][0], held[2 * s][1]);
      a[s][lane][1] = pack(held[2 * s][2], held[2 * s][3]);
      a[s][lane][2] = pack(held[2 * s + 1][0], held[2 * s + 1][1]);
      a[s][lane][3] = pack(held[2 * s + 1][2], held[2 * s + 1][3]);
    }
  }
  for (int64_t tile = 0; tile < layout.dv / kTileColumns; ++tile) {
    Results c = {};
    for (int s = 0; s < 2; ++s) {
      Registers2 b;
      for (int lane = 0; lane < kWarp; ++lane) {
        uint32_t words[4];
        std::memcpy(words, &values[tile * 256 + lane * 8], 16);
        b[lane][0] = words[2 * s];
        b[lane][1] = words[2 * s + 1];
      }
      EmulateMma(c, a[s], b);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const int row = ResultRow(lane, r);
        const int64_t column = tile * kTileColumns + ResultColumn(lane, r);
        float expected = 0;
        for (int token = 0; token < 32; ++token) {
          expected += p(row, token) * Bf16ToF32(v[token * kD + column]);
        }
        EXPECT_EQ(c[lane][r], expected) << "row " << row << ", column " << column;
      }
    }
  }
}

// The tokens whose values a lane's word w holds, as ValueMask has them.
TEST(KvLayout, AWordOfValuesHoldsTwoNeighbouringTokens) {
  const KvLayout layout(DType::kBF16, 1, 8);
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int w = 0; w < 4; ++w) {
      const int token = TokenAtPosition(OperandK(lane) + 2 * w);
      EXPECT_EQ(layout.ValueIndex(lane / 4, token), lane * 8 + 2 * w);
      EXPECT_EQ(layout.ValueIndex(lane / 4, token + 1), lane * 8 + 2 * w + 1);
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
