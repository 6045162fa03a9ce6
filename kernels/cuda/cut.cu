// Where a row of logits is cut by top_k, top_p and min_p (ChoiceRow in kernels/sampling.h).
//
// A block takes a row. The place of the cut is found from the most significant byte of the logits'
// order down (a radix selection): how much each value of the byte holds, ids or units of their
// shares, among those that agree in the bytes before. Amounts are whole numbers, so their order
// doesn't matter, and nothing is sorted. The row, which comes from the L2 cache, is read once for
// its maximum, four times for top_k, as often for top_p and once more for both, once for min_p, and
// twice where a tie is cut.
#include "kernels/choosing.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/log_sum_exp.cuh"
#include "kernels/cuda/sampling_ops.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 256;
constexpr int kGroup = 16;          // of bins
using Amount = unsigned long long;  // NOLINT(google-runtime-int): atomicAdd's

// Rises with the logit; 0 for NaN and -inf, which are in no order. Both zeros are one.
__device__ __forceinline__ uint32_t OrderKey(float logit) {
  if (!(logit > kNegativeInfinity)) return 0;
  const uint32_t bits = cpu::AsInt(cpu::F32x1{Add(logit, 0.0f)}).v;
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float LogitOf(uint32_t key) {
  if (key == 0) return kNegativeInfinity;
  return cpu::AsFloat(cpu::I32x1{key >> 31 != 0 ? key & 0x7fffffffu : ~key}).v;
}

struct RowMemory {
  float warps[kThreads / kWarp];
  Amount totals[kBins];
  Amount of_group[kBins / kGroup];
  int ties[kThreads];
  Amount sum;
  uint32_t least;
  int32_t last;
};

struct CutRow {
  const float* x;
  int64_t n;
  float temperature;
  float scaled_max;
  // [kBins][kWarp], the lower and the upper halves of amounts: a lane adds to its own, for most
  // logits share their first byte.
  uint32_t* low;
  uint32_t* high;
  RowMemory* memory;

  template <typename Body>
  __device__ void ForEach(const Body& body) const {
    ForEachOf(x, n, body);
  }
  // By two additions, of which there mostly is one: shared memory has none of 64 bits.
  __device__ void AddToBin(int bin, Amount amount) const {
    const int at = bin * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    const auto add = static_cast<uint32_t>(amount);
    const uint32_t before = atomicAdd(&low[at], add);
    const uint32_t carry = before + add < before ? 1 : 0;
    const uint32_t rest = static_cast<uint32_t>(amount >> 32) + carry;
    if (rest != 0) atomicAdd(&high[at], rest);
  }
  __device__ Amount UnitsOf(float logit) const {
    const float scaled = Div(logit, temperature);
    return ShareUnits(scaled == scaled_max ? 1.0f : Exp(Sub(scaled, scaled_max)));
  }
};

struct Place {
  uint32_t key;
  Amount above;  // of all keys that are larger
  Amount at;     // of those that are equal
  Amount wanted;
};

// The largest key such that it and what is above it amount to `wanted(amount of the whole row)`, at
// least 1; key 0 where the whole row doesn't. All threads of the block get it.
template <typename Wanted, typename AmountOf>
__device__ Place Find(const CutRow& row, const Wanted& wanted, const AmountOf& amount_of) {
  Place place = {0, 0, 0, 0};
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t mask = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
    __syncthreads();
    for (int i = threadIdx.x; i < kBins * kWarp; i += kThreads) row.low[i] = row.high[i] = 0;
    __syncthreads();
    row.ForEach([&](float logit) {
      const uint32_t key = OrderKey(logit);
      if (key == 0 || (key & mask) != place.key) return;
      const Amount amount = amount_of(logit);
      if (amount == 0) return;
      row.AddToBin(static_cast<int>(key >> shift & (kBins - 1)), amount);
    });
    __syncthreads();
    if (threadIdx.x < kBins) {
      Amount total = 0;
      for (int i = 0; i < kWarp; ++i) {
        // Each thread begins in a bank of its own.
        const auto at = static_cast<int>(threadIdx.x * kWarp + (i + threadIdx.x) % kWarp);
        total += row.low[at] | Amount{row.high[at]} << 32;
      }
      row.memory->totals[threadIdx.x] = total;
    }
    __syncthreads();
    if (threadIdx.x < kBins / kGroup) {
      Amount total = 0;
      for (int i = 0; i < kGroup; ++i) total += row.memory->totals[threadIdx.x * kGroup + i];
      row.memory->of_group[threadIdx.x] = total;
    }
    __syncthreads();
    if (shift == 24) {
      Amount all = 0;
      for (const Amount of_group : row.memory->of_group) all += of_group;
      place.wanted = wanted(all);
    }
    // The group of bins in which it is, then the bin: in one walk threads would wait for 256 sums.
    int group = kBins / kGroup - 1;
    while (group > 0 && place.above + row.memory->of_group[group] < place.wanted) {
      place.above += row.memory->of_group[group--];
    }
    int bin = group * kGroup + kGroup - 1;
    while (bin > group * kGroup && place.above + row.memory->totals[bin] < place.wanted) {
      place.above += row.memory->totals[bin--];
    }
    place.at = row.memory->totals[bin];
    place.key |= static_cast<uint32_t>(bin) << shift;
  }
  return place;
}

// Of all threads' amounts.
__device__ Amount SumOfBlock(const CutRow& row, Amount amount) {
  __syncthreads();
  if (threadIdx.x == 0) row.memory->sum = 0;
  __syncthreads();
  if (amount != 0) atomicAdd(&row.memory->sum, amount);
  __syncthreads();
  return row.memory->sum;
}

// The id of the `which`-th logit (from 1, in rising ids) with this key; there are as many.
__device__ int32_t FindTie(const CutRow& row, uint32_t key, Amount which) {
  const int64_t piece = (row.n + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * piece;
  const int64_t end = begin + piece < row.n ? begin + piece : row.n;
  int count = 0;
  for (int64_t j = begin; j < end; ++j) count += OrderKey(row.x[j]) == key ? 1 : 0;
  __syncthreads();
  row.memory->ties[threadIdx.x] = count;
  __syncthreads();
  Amount before = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) before += row.memory->ties[i];
  for (int64_t j = begin; j < end && before < which; ++j) {
    if (OrderKey(row.x[j]) == key && ++before == which) {
      row.memory->last = static_cast<int32_t>(j);
    }
  }
  __syncthreads();
  return row.memory->last;
}

__global__ void __launch_bounds__(kThreads)
    CutKernel(TensorView logits, const ChoiceRow* rows, Cut* out) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(uint32_t, bins);
  __shared__ RowMemory memory;
  const ChoiceRow choice = rows[blockIdx.x];
  CutRow row = {static_cast<const float*>(logits.data) + choice.row * logits.stride,
                logits.cols,
                choice.temperature,
                0,
                bins,
                bins + kBins * kWarp,
                &memory};
  float max = kNegativeInfinity;
  row.ForEach([&](float logit) { max = Max(logit, max); });
  max = MaxOfBlock(max, memory.warps);
  if (max == kNegativeInfinity || max == -kNegativeInfinity) {
    // Nothing to choose from, or nothing but infinity.
    if (threadIdx.x == 0) out[blockIdx.x] = {max, kEveryTie};
    return;
  }
  row.scaled_max = Div(max, choice.temperature);

  // Ids above `key` stay, and the first `ties` at it, of `all_ties`.
  uint32_t key = 0;
  Amount ties = 0;
  Amount all_ties = 0;
  if (choice.top_k > 0 && choice.top_k < row.n) {
    const auto wanted = static_cast<Amount>(choice.top_k);
    const Place place = Find(
        row, [wanted](Amount) { return wanted; }, [](float) { return Amount{1}; });
    if (place.key != 0) {
      key = place.key;
      ties = wanted - place.above;
      all_ties = place.at;
    }
  }
  if (choice.top_p < 1.0f) {
    // Of what top_k has left; where there is none the search itself meets all shares.
    Amount of_top_k = 0;
    if (key != 0) {
      Amount units = 0;
      row.ForEach([&](float logit) {
        if (OrderKey(logit) > key) units += row.UnitsOf(logit);
      });
      of_top_k = SumOfBlock(row, units) + ties * row.UnitsOf(LogitOf(key));
    }
    const auto wanted = [&](Amount all) {
      return WantedUnits(choice.top_p, key != 0 ? of_top_k : all);
    };
    // Those that top_k has cut are the last to come, and what is wanted is there without them.
    const Place place = Find(row, wanted, [&](float logit) { return row.UnitsOf(logit); });
    const Amount each = row.UnitsOf(LogitOf(place.key));
    key = place.key;
    ties = (place.wanted - place.above + each - 1) / each;
    all_ties = place.at / each;
  }
  if (choice.min_p > 0.0f) {
    const float least_log = cpu::Log(cpu::F32x1{choice.min_p}).v;
    uint32_t least = OrderKey(max);
    row.ForEach([&](float logit) {
      const uint32_t of = OrderKey(logit);
      const bool stays = Sub(Div(logit, row.temperature), row.scaled_max) >= least_log;
      if (of != 0 && stays && of < least) least = of;
    });
    __syncthreads();
    if (threadIdx.x == 0) memory.least = least;
    __syncthreads();
    atomicMin(&memory.least, least);
    __syncthreads();
    if (memory.least > key) {
      key = memory.least;
      ties = all_ties = 0;  // all that tie stay
    }
  }
  int32_t last = kEveryTie;
  if (ties < all_ties) last = FindTie(row, key, ties);
  if (threadIdx.x == 0) out[blockIdx.x] = {LogitOf(key), last};
}

}  // namespace

cudaError_t CutRows(TensorView logits, const ChoiceRow* rows, int64_t num_rows, Cut* out,
                    cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  constexpr size_t kShared = 2 * sizeof(uint32_t) * kBins * kWarp;
  return Launch(CutKernel, dim3(static_cast<unsigned>(num_rows)), kThreads, kShared, stream, logits,
                rows, out);
}

}  // namespace phalanx::kernels::cuda
