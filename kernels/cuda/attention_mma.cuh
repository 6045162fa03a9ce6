// One warp's work on one KV block, of BF16 or of FP8 that is read as BF16: sixteen query rows
// (operand A) against 32 tokens. Lane (g = lane / 4, t = lane % 4) holds rows g and g + 8; of token
// tile j (8 tokens) columns 2t and 2t + 1: scores[j][0..1] are row g's, scores[j][2..3] row g +
// 8's. With kHalves = 1 there are rows 0 .. 7 alone, and nothing is computed of what comes out for
// the others. Zeros for those would be moved into place before each Mma, which wants its operand in
// four neighbouring registers; so any values stand there that have their places to themselves.
#ifndef PHALANX_KERNELS_CUDA_ATTENTION_MMA_CUH_
#define PHALANX_KERNELS_CUDA_ATTENTION_MMA_CUH_

#include "kernels/cuda/attention.h"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/fp8.h"

namespace phalanx::kernels::cuda {

inline constexpr int kTokenTiles = 4;

// What a generic lambda is told at compile time.
template <bool kFlag>
struct Flag {
  static constexpr bool kValue = kFlag;
};

// A query row of a tile, for the lanes that hold it.
struct QueryRow {
  bool valid;
  int64_t row;       // of q and of partials
  int32_t head;      // query head
  int64_t position;  // absolute
};

// In 32 bits: a division in 64 is a call of some hundred instructions.
__device__ inline QueryRow RowOfTile(const AttentionParams& p, const SequenceRows& sequence,
                                     const HeadGroup& group, int index) {
  const int heads = group.end - group.begin;
  const int token = index / heads;
  if (token >= sequence.row_count) return {false, 0, 0, -1};
  return {true, sequence.row_begin + token, p.heads[group.begin + index % heads],
          sequence.start + token};
}

// Blocks of a stripe that at least one row between two positions sees: first, first + stripes, ...
// up to last.
struct BlockWalk {
  int64_t first;
  int64_t last;
};
__device__ inline BlockWalk BlocksOf(const AttentionParams& p, int stripe, int64_t first_position,
                                     int64_t last_position) {
  const auto oldest = static_cast<int>(OldestBlock(first_position, p.window));
  const int skip = stripe - oldest % p.num_stripes;
  return {oldest + (skip < 0 ? skip + p.num_stripes : skip), last_position / kKvTokens};
}

// Brings a head's keys and values of one block, which are contiguous in the cache, to shared
// memory: a block of kThreads does it together.
template <int kThreads, int kD, bool kFp8>
__device__ __forceinline__ void CopyBlock(const AttentionParams& p, int64_t physical, int kv_head,
                                          uint8_t* shared) {
  const uint8_t* from = static_cast<const uint8_t*>(p.cache) + p.layout.Keys(physical, kv_head);
  const int units = static_cast<int>(p.layout.head_bytes / 16);
  constexpr int kMostUnits = static_cast<int>(KvLayout(DType::kBF16, 1, kD, kFp8).head_bytes / 16);
#pragma unroll
  for (int first = 0; first < kMostUnits; first += kThreads) {
    const int unit = first + static_cast<int>(threadIdx.x);
    if (unit < units) CopyAsync(shared + unit * 16, from + unit * 16, true);
  }
}

// The rows' queries as operand A: [row g or g + 8][group of 32 columns].
template <int kGroups, int kHalves = 2>
struct QueryFragments {
  Words words[2][kGroups];

  __device__ void Load(const AttentionParams& p, const QueryRow (&rows)[kHalves], int lane) {
    const int64_t width = p.layout.dk;
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      const auto* q = static_cast<const uint16_t*>(p.q.data) + rows[i].row * p.q.stride +
                      rows[i].head * width + OperandK(lane);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const bool there = rows[i].valid && g * kGroupK < width;
        words[i][g] = there ? LoadWords(q + g * kGroupK) : Words{{0, 0, 0, 0}};
        if constexpr (kHalves == 1) {
          words[1][g] = there ? LoadWordsApart(q + g * kGroupK) : Words{{0, 0, 0, 0}};
        }
      }
    }
  }
};

// Eight codes as BF16. scales[i]: of codes 2i and 2i + 1; of NaN's codes it is NaN.
__device__ __forceinline__ Words Widen(const Codes& codes, const uint32_t (&scales)[4]) {
  constexpr uint32_t kFactor = 0x7b807b80u;  // 2^120, twice
  Words out;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t c = codes.w[i];
    const uint32_t first = PairOfCodes((c & 0xffu) << 8 | (c & 0xff00u) << 16);
    const uint32_t second = PairOfCodes((c & 0xff0000u) >> 8 | (c & 0xff000000u));
    out.w[2 * i] = MulBf16x2(MulBf16x2(first, kFactor), scales[2 * i]);
    out.w[2 * i + 1] = MulBf16x2(MulBf16x2(second, kFactor), scales[2 * i + 1]);
  }
  return out;
}

// A scale's byte as BF16, which has the same exponents.
__device__ __forceinline__ uint32_t ScaleBits(uint32_t byte) {
  return byte == kE8m0Nan ? 0x7fc0u : byte << 7;
}

// A lane's keys of token tile `tile` of a block, 32 columns at a time. `head`: the block's keys,
// values and scales of a KV head, in global or shared memory.
template <bool kFp8>
class Keys {
 public:
  __device__ Keys(const KvLayout& layout, const uint8_t* head, int tile, int lane)
      : from_(head + (tile * (layout.dk / kGroupK) * 256 + lane * 8) * (kFp8 ? 1 : 2)) {
    if constexpr (kFp8) {
      const uint32_t bits = ScaleBits(head[layout.KeyScale(tile * 8 + OperandRow(lane))]);
      scale_ = bits | bits << 16;
    }
  }

  __device__ __forceinline__ Words Group(int group) const {
    if constexpr (kFp8) {
      const uint32_t scales[4] = {scale_, scale_, scale_, scale_};
      return Widen(LoadCodes(from_ + group * 256), scales);
    } else {
      return LoadWords(from_ + group * 512);
    }
  }

 private:
  const uint8_t* from_;
  uint32_t scale_ = 0;  // FP8: twice
};

// scores = scale * (q . k), -inf where a row doesn't see a token. `head`: as of Keys. kWhole, here
// and below: every row sees all of the block (rows that there aren't may have any result), and
// there is nothing to mask.
template <bool kWhole, int kGroups, bool kFp8, int kHalves>
__device__ __forceinline__ void ScoreBlock(const AttentionParams& p,
                                           const QueryFragments<kGroups, kHalves>& q,
                                           const uint8_t* head, const Visible (&visible)[kHalves],
                                           int lane, float (&scores)[kTokenTiles][2 * kHalves]) {
  float sums[kTokenTiles][4];
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
  // The tiles' chains in turns, so that none waits for itself.
  const auto take = [&](const Keys<kFp8>(&keys)[kTokenTiles], int g) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const Words k = keys[j].Group(g);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        Mma(sums[j], q.words[0][g].w[2 * s], q.words[1][g].w[2 * s], q.words[0][g].w[2 * s + 1],
            q.words[1][g].w[2 * s + 1], k.w[2 * s], k.w[2 * s + 1]);
      }
    }
  };
  const Keys<kFp8> keys[kTokenTiles] = {{p.layout, head, 0, lane},
                                        {p.layout, head, 1, lane},
                                        {p.layout, head, 2, lane},
                                        {p.layout, head, 3, lane}};
  // A loop that may end early keeps the compiler from asking for all keys before it uses the
  // first, so heads of kD columns have one that doesn't.
  const int groups = static_cast<int>(p.layout.dk / kGroupK);
  if (groups == kGroups) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) take(keys, g);
  } else {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g >= groups) break;
      take(keys, g);
    }
  }
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const int token = j * kTileColumns + ResultColumn(lane, r);
      const bool sees = kWhole || visible[r / 2].sees(token);
      scores[j][r] = sees ? Mul(sums[j][r], p.scale) : kNegativeInfinity;
    }
  }
}

// The largest score of rows g and g + 8, for each of their four lanes.
template <int kHalves>
__device__ __forceinline__ void BlockMax(const float (&scores)[kTokenTiles][2 * kHalves],
                                         float (&max)[kHalves]) {
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    max[i] = kNegativeInfinity;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      max[i] = Max(scores[j][2 * i], max[i]);
      max[i] = Max(scores[j][2 * i + 1], max[i]);
    }
    max[i] = Max(__shfl_xor_sync(0xffffffffu, max[i], 1), max[i]);
    max[i] = Max(__shfl_xor_sync(0xffffffffu, max[i], 2), max[i]);
  }
}

// Scores become p = exp(score - max), +0 where not seen; their sums by halving: token and token +
// 16, then + 8, + 4, + 2, + 1.
template <bool kWhole, int kHalves>
__device__ __forceinline__ void Probabilities(const float (&max)[kHalves],
                                              const Visible (&visible)[kHalves], int lane,
                                              float (&scores)[kTokenTiles][2 * kHalves],
                                              float (&sum)[kHalves]) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const int token = j * kTileColumns + ResultColumn(lane, r);
      const float p = Exp(Sub(scores[j][r], max[r / 2]));
      scores[j][r] = kWhole || visible[r / 2].sees(token) ? p : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
    float half[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = 2 * i + e;
      float s = Add(Add(scores[0][r], scores[2][r]), Add(scores[1][r], scores[3][r]));
      s = Add(s, __shfl_xor_sync(0xffffffffu, s, 2));
      half[e] = Add(s, __shfl_xor_sync(0xffffffffu, s, 1));
    }
    sum[i] = Add(half[0], half[1]);
  }
}

// p as operand A of P.V: [step][register].
template <int kColumns>
__device__ __forceinline__ void PackProbabilities(const float (*p)[kColumns], uint32_t (&a)[2][4]) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    a[s][0] = PackBf16(p[2 * s][0], p[2 * s][1]);
    a[s][2] = PackBf16(p[2 * s + 1][0], p[2 * s + 1][1]);
    // Of two columns: any values (kHalves = 1).
    constexpr int kOther = kColumns == 4 ? 2 : 1;
    a[s][1] = PackBf16(p[2 * s][kOther], p[2 * s][(kOther + 1) % kColumns]);
    a[s][3] = PackBf16(p[2 * s + 1][kOther], p[2 * s + 1][(kOther + 1) % kColumns]);
  }
}

// A lane's values of a block, eight columns at a time. Those of tokens outside [begin, end) become
// zero, lest what a stale slot holds (NaN at worst) should meet p = 0.
template <bool kFp8, bool kWhole>
class Values {
 public:
  // `head`: as of Keys.
  __device__ Values(const KvLayout& layout, const uint8_t* head, int begin, int end, int lane)
      : from_(head + layout.key_bytes + lane * (kFp8 ? 8 : 16)) {
    Codes scales = {{0, 0}};
    if constexpr (kFp8) {
      scales = LoadCodes(head + layout.scales + kKvTokens + OperandK(lane));
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int token = TokenAtPosition(OperandK(lane) + 2 * w);  // and the next
      bits_[w] = kWhole ? 0xffffffffu
                        : (token >= begin && token < end ? 0x0000ffffu : 0u) |
                              (token + 1 >= begin && token + 1 < end ? 0xffff0000u : 0u);
      if constexpr (kFp8) {
        const uint32_t pair = scales.w[w / 2] >> w % 2 * 16;
        bits_[w] &= ScaleBits(pair & 0xffu) | ScaleBits(pair >> 8 & 0xffu) << 16;
      }
    }
  }

  __device__ __forceinline__ Words Tile(int tile) const {
    if constexpr (kFp8) {
      return Widen(LoadCodes(from_ + tile * 256), bits_);
    } else {
      Words v = LoadWords(from_ + tile * 512);
      if constexpr (!kWhole) {
#pragma unroll
        for (int w = 0; w < 4; ++w) v.w[w] &= bits_[w];
      }
      return v;
    }
  }

 private:
  const uint8_t* from_;
  uint32_t bits_[4];  // masks of pairs of tokens; FP8: their scales, or zero
};

// p . V of eight columns, from +0: registers as scores have them.
template <typename BlockValues>
__device__ __forceinline__ void ValueTile(const uint32_t (&a)[2][4], const BlockValues& values,
                                          int tile, float (&sum)[4]) {
  const Words v = values.Tile(tile);
  sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    Mma(sum, a[s][0], a[s][1], a[s][2], a[s][3], v.w[2 * s], v.w[2 * s + 1]);
  }
}

// The running softmax meets a block whose largest visible score is `block_max`.
__device__ __forceinline__ float Alpha(float old_max, float new_max) {
  return old_max == kNegativeInfinity ? 0.0f : Exp(Sub(old_max, new_max));
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_ATTENTION_MMA_CUH_
