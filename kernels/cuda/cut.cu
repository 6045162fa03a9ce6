// Where a row of logits is cut by top_k, top_p and min_p (ChoiceRow in kernels/sampling.h).
//
// The place of the cut is found from the most significant byte of the logits' order down (a radix
// selection): how much each value of the byte holds, ids or units of their shares, among those that
// agree in the bytes before. Amounts are whole numbers, so their order doesn't matter, nothing is
// sorted, and several blocks share a row: each kernel reads it once, adds to the row's bins in
// memory, and begins with what the kernel before it has added there. That is one kernel for the
// maximum, four for top_k and one for what it leaves of shares, four for top_p, one for min_p, and
// a last one, which reads the row twice where a tie is cut.
#include "kernels/choosing.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/log_sum_exp.cuh"
#include "kernels/cuda/moves.h"
#include "kernels/cuda/sampling_ops.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = 256;
constexpr int kGroup = 16;  // of bins
constexpr int kLevels = 4;  // bytes of a key
// A row's blocks have as many logits each at least, and all rows about as many blocks together at
// most: two for a multiprocessor.
constexpr int64_t kPieceColumns = 8 * kThreads;
constexpr int64_t kMostBlocks = 256;
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

enum class Search : uint8_t { kTopK, kTopP };

struct Place {
  uint32_t key;
  Amount above;   // of all keys that are larger
  Amount at;      // of those that are equal
  Amount wanted;  // at least, of those and of these together
};

// What kernels tell those after them of a row. Zero at first.
struct CutWork {
  // By search: of each level, and where it has led.
  Amount bins[2][kLevels][kBins];
  Place places[2][kLevels];
  Amount left_by_top_k;   // units of shares
  uint32_t max;           // the largest key
  uint32_t least_by_not;  // of min_p: the least key that stays, as its complement, which rises
};

struct BlockMemory {
  float warps[kWarps];
  Amount totals[kBins];
  Amount of_group[kBins / kGroup];
  Amount sum;
  uint32_t most;
  int ties[kThreads];
  int32_t last;
};

// A row, and this block's piece of it: blockIdx.x is the cut, blockIdx.y the piece.
struct CutRow {
  ChoiceRow choice;
  const float* x;
  int64_t n;
  int64_t begin;
  int64_t end;
  CutWork* work;
  uint32_t max = 0;
  float scaled_max = 0;

  __device__ CutRow(const TensorView& logits, const ChoiceRow* rows, CutWork* works) {
    choice = rows[blockIdx.x];
    x = static_cast<const float*>(logits.data) + choice.row * logits.stride;
    n = logits.cols;
    // Ids have 31 bits, and a division of 64 a hundred instructions.
    const int64_t piece = (static_cast<uint32_t>(n) + gridDim.y - 1) / gridDim.y;
    begin = blockIdx.y * piece < n ? blockIdx.y * piece : n;
    end = begin + piece < n ? begin + piece : n;
    work = works + blockIdx.x;
  }
  // After CutMaxKernel.
  __device__ void LookUpMax() {
    max = work->max;
    scaled_max = Div(LogitOf(max), choice.temperature);
  }
  // Else there is nothing to choose from, or nothing but infinity.
  __device__ bool has_choice() const { return max != 0 && LogitOf(max) != -kNegativeInfinity; }
  __device__ bool has_top_k() const { return has_choice() && choice.top_k > 0 && choice.top_k < n; }
  __device__ bool has_top_p() const { return has_choice() && choice.top_p < 1.0f; }
  __device__ bool has_min_p() const { return has_choice() && choice.min_p > 0.0f; }
  __device__ bool has(Search search) const {
    return search == Search::kTopK ? has_top_k() : has_top_p();
  }
  template <typename Body>
  __device__ void ForEach(const Body& body) const {
    ForEachOf(x + begin, end - begin, body);
  }
  __device__ Amount UnitsOf(float logit) const {
    const float scaled = Div(logit, choice.temperature);
    return ShareUnits(scaled == scaled_max ? 1.0f : Exp(Sub(scaled, scaled_max)));
  }
};

// Of top_k, if the row has it: ids above `key` stay, and the first of those at it. Key 0: all.
__device__ __forceinline__ Place PlaceOfTopK(const CutRow& row) {
  return row.has_top_k() ? row.work->places[0][kLevels - 1] : Place{0, 0, 0, 0};
}
// How many of those at it.
__device__ __forceinline__ Amount TiesOfTopK(const Place& place) {
  return place.key != 0 ? place.wanted - place.above : 0;
}

// Where the bins of levels 0 .. level lead: the largest key, in its first bytes, such that it and
// what is above it amount to what is wanted; 0 where the whole row doesn't. All threads of the
// block get it, and later kernels: by then all that was added to the bins is there.
__device__ Place PlaceAfter(const CutRow& row, Search search, int level, BlockMemory* memory) {
  const auto which = static_cast<int>(search);
  Place place = {0, 0, 0, 0};
  if (level > 0) place = row.work->places[which][level - 1];
  if (threadIdx.x < kBins) {
    memory->totals[threadIdx.x] = row.work->bins[which][level][threadIdx.x];
  }
  __syncthreads();
  if (threadIdx.x < kBins / kGroup) {
    Amount total = 0;
    for (int i = 0; i < kGroup; ++i) total += memory->totals[threadIdx.x * kGroup + i];
    memory->of_group[threadIdx.x] = total;
  }
  __syncthreads();
  if (level == 0 && search == Search::kTopK) {
    place.wanted = static_cast<Amount>(row.choice.top_k);
  } else if (level == 0) {
    const Place top_k = PlaceOfTopK(row);
    Amount total = 0;
    if (top_k.key != 0) {
      total = row.work->left_by_top_k + TiesOfTopK(top_k) * row.UnitsOf(LogitOf(top_k.key));
    } else {
      for (const Amount of_group : memory->of_group) total += of_group;
    }
    place.wanted = WantedUnits(row.choice.top_p, total);
  }
  // The group of bins in which it is, then the bin: in one walk threads would wait for 256 sums.
  int group = kBins / kGroup - 1;
  while (group > 0 && place.above + memory->of_group[group] < place.wanted) {
    place.above += memory->of_group[group--];
  }
  int bin = group * kGroup + kGroup - 1;
  while (bin > group * kGroup && place.above + memory->totals[bin] < place.wanted) {
    place.above += memory->totals[bin--];
  }
  place.at = memory->totals[bin];
  place.key |= static_cast<uint32_t>(bin) << (24 - 8 * level);
  if (threadIdx.x == 0 && blockIdx.y == 0) row.work->places[which][level] = place;
  return place;
}

__global__ void __launch_bounds__(kThreads)
    CutMaxKernel(TensorView logits, const ChoiceRow* rows, CutWork* works) {
  BeginInTurn();
  __shared__ BlockMemory memory;
  const CutRow row(logits, rows, works);
  float max = kNegativeInfinity;
  row.ForEach([&](float logit) { max = Max(logit, max); });
  max = MaxOfBlock(max, memory.warps);
  if (threadIdx.x == 0) atomicMax(&row.work->max, OrderKey(max));
}

// A level of a search: adds to its bins what logits amount to that agree with the levels before it.
template <Search kSearch>
__global__ void __launch_bounds__(kThreads)
    CutLevelKernel(TensorView logits, const ChoiceRow* rows, CutWork* works, int level) {
  BeginInTurn();
  // [kBins][kWarp], the lower and the upper halves of amounts: a lane adds to its own, for most
  // logits share their first byte.
  PHALANX_DYNAMIC_SHARED(uint32_t, low);
  uint32_t* const high = low + kBins * kWarp;
  __shared__ BlockMemory memory;
  CutRow row(logits, rows, works);
  row.LookUpMax();
  if (!row.has(kSearch)) return;
  for (int i = threadIdx.x; i < kBins * kWarp; i += kThreads) low[i] = high[i] = 0;
  Place place = {0, 0, 0, 0};
  if (level > 0) place = PlaceAfter(row, kSearch, level - 1, &memory);
  __syncthreads();
  const int shift = 24 - 8 * level;
  const uint32_t mask = level == 0 ? 0 : 0xffffffffu << (shift + 8);
  row.ForEach([&](float logit) {
    const uint32_t key = OrderKey(logit);
    if (key == 0 || (key & mask) != place.key) return;
    const Amount amount = kSearch == Search::kTopK ? 1 : row.UnitsOf(logit);
    if (amount == 0) return;
    // Two additions, of which there mostly is one: shared memory has none of 64 bits.
    const auto lane = static_cast<int>(threadIdx.x) % kWarp;
    const int at = static_cast<int>(key >> shift & (kBins - 1)) * kWarp + lane;
    const auto add = static_cast<uint32_t>(amount);
    const uint32_t before = atomicAdd(&low[at], add);
    const uint32_t carry = before + add < before ? 1 : 0;
    const uint32_t rest = static_cast<uint32_t>(amount >> 32) + carry;
    if (rest != 0) atomicAdd(&high[at], rest);
  });
  __syncthreads();
  if (threadIdx.x >= kBins) return;
  Amount total = 0;
  for (int i = 0; i < kWarp; ++i) {
    // Each thread begins in a bank of its own.
    const auto at = static_cast<int>(threadIdx.x * kWarp + (i + threadIdx.x) % kWarp);
    total += low[at] | Amount{high[at]} << 32;
  }
  if (total == 0) return;
  atomicAdd(&row.work->bins[static_cast<int>(kSearch)][level][threadIdx.x], total);
}

// After top_k's last level: its place, and the shares above it, for top_p.
__global__ void __launch_bounds__(kThreads)
    CutLeftKernel(TensorView logits, const ChoiceRow* rows, CutWork* works) {
  BeginInTurn();
  __shared__ BlockMemory memory;
  CutRow row(logits, rows, works);
  row.LookUpMax();
  if (!row.has_top_k()) return;
  const Place place = PlaceAfter(row, Search::kTopK, kLevels - 1, &memory);
  if (!row.has_top_p() || place.key == 0) return;
  if (threadIdx.x == 0) memory.sum = 0;
  __syncthreads();
  Amount units = 0;
  row.ForEach([&](float logit) {
    if (OrderKey(logit) > place.key) units += row.UnitsOf(logit);
  });
  if (units != 0) atomicAdd(&memory.sum, units);
  __syncthreads();
  if (threadIdx.x == 0 && memory.sum != 0) atomicAdd(&row.work->left_by_top_k, memory.sum);
}

__global__ void __launch_bounds__(kThreads)
    CutMinKernel(TensorView logits, const ChoiceRow* rows, CutWork* works) {
  BeginInTurn();
  __shared__ BlockMemory memory;
  CutRow row(logits, rows, works);
  row.LookUpMax();
  if (!row.has_min_p()) return;
  const float least_log = cpu::Log(cpu::F32x1{row.choice.min_p}).v;
  uint32_t least = row.max;
  row.ForEach([&](float logit) {
    const uint32_t of = OrderKey(logit);
    const bool stays = Sub(Div(logit, row.choice.temperature), row.scaled_max) >= least_log;
    if (of != 0 && stays && of < least) least = of;
  });
  if (threadIdx.x == 0) memory.most = 0;
  __syncthreads();
  atomicMax(&memory.most, ~least);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(&row.work->least_by_not, memory.most);
}

// The id of the `which`-th logit (from 1, in rising ids) with this key; there are as many.
__device__ int32_t FindTie(const CutRow& row, uint32_t key, Amount which, BlockMemory* memory) {
  const int64_t piece = (row.n + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * piece;
  const int64_t end = begin + piece < row.n ? begin + piece : row.n;
  int count = 0;
  for (int64_t j = begin; j < end; ++j) count += OrderKey(row.x[j]) == key ? 1 : 0;
  __syncthreads();
  memory->ties[threadIdx.x] = count;
  __syncthreads();
  Amount before = 0;
  for (unsigned i = 0; i < threadIdx.x; ++i) before += memory->ties[i];
  for (int64_t j = begin; j < end && before < which; ++j) {
    if (OrderKey(row.x[j]) == key && ++before == which) {
      memory->last = static_cast<int32_t>(j);
    }
  }
  __syncthreads();
  return memory->last;
}

// A block a row.
__global__ void __launch_bounds__(kThreads)
    CutKernel(TensorView logits, const ChoiceRow* rows, CutWork* works, Cut* out) {
  BeginInTurn();
  __shared__ BlockMemory memory;
  CutRow row(logits, rows, works);
  row.LookUpMax();
  if (!row.has_choice()) {
    if (threadIdx.x == 0) out[blockIdx.x] = {LogitOf(row.max), kEveryTie};
    return;
  }
  // Ids above `key` stay, and the first `ties` at it, of `all_ties`.
  const Place top_k = PlaceOfTopK(row);
  uint32_t key = top_k.key;
  Amount ties = TiesOfTopK(top_k);
  Amount all_ties = top_k.key != 0 ? top_k.at : 0;
  if (row.has_top_p()) {
    // Those that top_k has cut are the last to come, and what is wanted is there without them.
    const Place place = PlaceAfter(row, Search::kTopP, kLevels - 1, &memory);
    const Amount each = row.UnitsOf(LogitOf(place.key));
    key = place.key;
    ties = (place.wanted - place.above + each - 1) / each;
    all_ties = place.at / each;
  }
  if (row.has_min_p() && ~row.work->least_by_not > key) {
    key = ~row.work->least_by_not;
    ties = all_ties = 0;  // all that tie stay
  }
  int32_t last = kEveryTie;
  if (ties < all_ties) last = FindTie(row, key, ties, &memory);
  if (threadIdx.x == 0) out[blockIdx.x] = {LogitOf(key), last};
}

template <Search kSearch>
cudaError_t RunLevels(TensorView logits, const ChoiceRow* rows, CutWork* works, dim3 grid,
                      cudaStream_t stream) {
  constexpr size_t kShared = 2 * sizeof(uint32_t) * kBins * kWarp;
  for (int level = 0; level < kLevels; ++level) {
    const cudaError_t error = Launch(CutLevelKernel<kSearch>, grid, kThreads, kShared, stream,
                                     logits, rows, works, level);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

int64_t CutScratchBytes(int64_t num_rows) {
  return num_rows * static_cast<int64_t>(sizeof(CutWork));
}

cudaError_t CutRows(TensorView logits, const ChoiceRow* rows, int64_t num_rows, KindsOfCuts kinds,
                    void* scratch, Cut* out, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  auto* works = static_cast<CutWork*>(scratch);
  const int64_t most = (logits.cols + kPieceColumns - 1) / kPieceColumns;
  const int64_t share = kMostBlocks / num_rows;
  const int64_t pieces = share < 1 || most < 1 ? 1 : share < most ? share : most;
  const dim3 blocks_of_rows(static_cast<unsigned>(num_rows));
  const dim3 grid(blocks_of_rows.x, static_cast<unsigned>(pieces));
  cudaError_t error = ZeroBytes(OneRun(scratch, CutScratchBytes(num_rows)), stream);
  if (error == cudaSuccess) {
    error = Launch(CutMaxKernel, grid, kThreads, 0, stream, logits, rows, works);
  }
  if (error == cudaSuccess && kinds.top_k) {
    error = RunLevels<Search::kTopK>(logits, rows, works, grid, stream);
    if (error == cudaSuccess) {
      error = Launch(CutLeftKernel, grid, kThreads, 0, stream, logits, rows, works);
    }
  }
  if (error == cudaSuccess && kinds.top_p) {
    error = RunLevels<Search::kTopP>(logits, rows, works, grid, stream);
  }
  if (error == cudaSuccess && kinds.min_p) {
    error = Launch(CutMinKernel, grid, kThreads, 0, stream, logits, rows, works);
  }
  if (error != cudaSuccess) return error;
  return Launch(CutKernel, blocks_of_rows, kThreads, 0, stream, logits, rows, works, out);
}

}  // namespace phalanx::kernels::cuda
