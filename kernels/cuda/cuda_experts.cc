// Experts of CudaKernels: routes on the host's demand, and whole layers without it.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/check.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rows.h"
#include "kernels/experts.h"

namespace phalanx::kernels {
namespace {

using cuda::CheckCuda;
using cuda::Staged;

// No product of several rows has lower tiles, so no list is longer than of these.
constexpr int64_t kLowestTile = cuda::kChainFewRows;

int64_t SlotsOf(TensorView logits, int64_t top_k) {
  static_assert(kMaxExperts == cuda::kMaxRouterWidth);
  const int64_t width = logits.cols;
  PHALANX_CHECK(width > 0 && width <= kMaxExperts) << width << " experts, at most " << kMaxExperts;
  PHALANX_CHECK(top_k > 0 && top_k <= width) << "top_k " << top_k << " of " << width << " experts";
  return logits.rows * top_k;
}

void CheckParts(int num_parts) {
  PHALANX_CHECK(num_parts > 0 && num_parts <= cuda::kMaxPartials)
      << "num_parts " << num_parts << ", at most " << cuda::kMaxPartials;
}

// What a sum over experts is told in either form of the op.
template <typename Args>
cuda::CombineParams CombineParamsOf(const Args& args, int num_parts,
                                    const cuda::DeviceProgram& program) {
  cuda::CombineParams p;
  p.top_k = args.top_k;
  p.num_parts = num_parts;
  p.program = program.codes;
  p.steps = program.steps;
  p.depth = program.depth;
  p.shared = args.shared;
  p.shared_gate_logit = args.shared_gate_logit;
  p.out = args.out;
  return p;
}

// Places of arrays one behind the other.
class Layout {
 public:
  template <typename T>
  int64_t Add(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), 256);
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace

void CudaKernels::RouteTopK(const RouterArgs& args) {
  const int64_t slots = SlotsOf(args.logits, args.top_k);
  PHALANX_CHECK(static_cast<int64_t>(args.experts.size()) >= slots &&
                static_cast<int64_t>(args.weights.size()) >= slots)
      << "room for " << args.experts.size() << " experts and " << args.weights.size()
      << " weights of " << slots << " slots";
  if (slots == 0) return;
  Enter();
  auto* experts = static_cast<int32_t*>(AtLeast(results_, slots * 8));
  auto* weights = reinterpret_cast<float*>(experts + slots);
  CheckCuda(cuda::RouteTopK(args.logits, args.top_k, args.normalise, experts, weights, stream_),
            "RouteTopK");
  fetched_.resize(static_cast<size_t>(slots * 8));
  Fetch(fetched_.data(), experts, slots * 8);
  std::memcpy(args.experts.data(), fetched_.data(), static_cast<size_t>(slots * 4));
  std::memcpy(args.weights.data(), fetched_.data() + slots * 4, static_cast<size_t>(slots * 4));
}

void CudaKernels::CombineExperts(const CombineExpertsArgs& args) {
  PHALANX_CHECK(args.top_k > 0) << "top_k " << args.top_k;
  CheckParts(args.num_parts);
  PHALANX_CHECK(static_cast<int64_t>(args.parts.size()) == args.rows * args.top_k * args.num_parts)
      << args.parts.size() << " parts for " << args.rows << " rows";
  if (args.rows == 0) return;
  Enter();
  cuda::CombineParams p =
      CombineParamsOf(args, args.num_parts, PutProgram(args.program, args.num_parts));
  p.rows = args.rows;
  p.hidden = args.hidden;
  p.weights =
      staging_.Put(Staged::kExpertWeights,
                   absl::MakeConstSpan(args.weights, static_cast<size_t>(args.rows * args.top_k)));
  p.parts = staging_.Put(Staged::kExpertParts, args.parts);
  CheckCuda(cuda::CombineExperts(p, stream_), "CombineExperts");
}

absl::StatusOr<std::unique_ptr<ExpertSet>> CudaKernels::MakeExpertSet(
    std::vector<ExpertWeights> weights) {
  std::vector<const void*> pointers;
  for (const auto weight : {&ExpertWeights::gate_up, &ExpertWeights::down}) {
    for (const ExpertWeights& expert : weights) {
      pointers.push_back(static_cast<const CudaPackedWeight*>(expert.*weight)->data.data());
    }
  }
  auto set = std::make_unique<CudaExpertSet>(std::move(weights));
  const auto bytes = static_cast<int64_t>(pointers.size() * sizeof(void*));
  absl::StatusOr<Buffer> buffer = Allocate(bytes);
  if (!buffer.ok()) return buffer.status();
  set->pointers = *std::move(buffer);
  CopyIn(set->pointers.data(), pointers.data(), bytes);
  return set;
}

void CudaKernels::RunExperts(const ExpertsArgs& args) {
  const int64_t slots = SlotsOf(args.logits, args.top_k);
  const int64_t num_experts = args.logits.cols;
  const int64_t m = args.logits.rows;
  const auto& set = static_cast<const CudaExpertSet&>(*args.experts);
  PHALANX_CHECK(static_cast<int64_t>(set.weights().size()) == num_experts)
      << set.weights().size() << " experts for logits of " << num_experts;
  const auto& gate_up = static_cast<const CudaPackedWeight&>(*set.weights()[0].gate_up);
  const auto& down = static_cast<const CudaPackedWeight&>(*set.weights()[0].down);
  const ExpertRoom& room = args.room;
  CheckMatMul(room.x, gate_up, {&room.gate_up, 1});
  CheckMatMul(room.activated, down, room.parts);
  CheckParts(down.num_parts());
  if (slots == 0) return;
  Enter();

  // Nothing of a plan depends on who goes where: the same launches in every step of m rows.
  const int64_t runs = std::min(num_experts, slots);
  const int64_t tallest = cuda::ExpectedTallestRun(slots, m, num_experts);
  TensorView activated = FirstRows(room.activated, slots);
  const auto gated = PlanGated(gate_up, activated, tallest, runs);
  const cuda::MatMulPlan plans[2] = {
      gated.has_value() ? *gated : PlanRows(gate_up, slots, tallest, runs),
      PlanRows(down, slots, tallest, runs)};
  Layout layout;
  const int64_t ids_at = layout.Add<int32_t>(slots);
  const int64_t weights_at = layout.Add<float>(slots);
  const int64_t begin_at = layout.Add<int32_t>(num_experts + 1);
  const int64_t place_at = layout.Add<int32_t>(slots);
  const int64_t row_at = layout.Add<int32_t>(slots);
  const int64_t counts_at = layout.Add<int32_t>(2);
  int64_t tiles_at[2];
  // As many for every plan, so that the largest step's scratch is room for all.
  for (int64_t& at : tiles_at) {
    at = layout.Add<cuda::MatMulTile>(cuda::MostTiles(slots, runs, kLowestTile));
  }
  auto* const scratch = static_cast<char*>(AtLeast(slots_, layout.bytes()));
  auto* const ids = reinterpret_cast<int32_t*>(scratch + ids_at);
  auto* const weights = reinterpret_cast<float*>(scratch + weights_at);
  cuda::PlacedSlots placed;
  placed.begin = reinterpret_cast<int32_t*>(scratch + begin_at);
  placed.place = reinterpret_cast<int32_t*>(scratch + place_at);
  placed.row = reinterpret_cast<int32_t*>(scratch + row_at);
  cuda::TileLists lists;
  Tiles tiles[2];
  for (int i = 0; i < 2; ++i) {
    cuda::TileList& list = lists.lists[i];
    list.weights = set.pointers.as<const void* const>() + i * num_experts;
    list.tile_rows = plans[i].tile_rows;
    list.tiles = reinterpret_cast<cuda::MatMulTile*>(scratch + tiles_at[i]);
    list.count = reinterpret_cast<int32_t*>(scratch + counts_at) + i;
    tiles[i] = {list.tiles, cuda::MostTiles(slots, runs, list.tile_rows), list.count};
  }

  CheckCuda(cuda::RouteTopK(args.logits, args.top_k, args.normalise, ids, weights, stream_),
            "routing");
  CheckCuda(cuda::PlaceSlots(ids, slots, args.top_k, num_experts, placed, args.tokens, stream_),
            "placing slots");
  CheckCuda(cuda::ListTiles(placed.begin, num_experts, std::max(tiles[0].count, tiles[1].count),
                            lists, stream_),
            "listing tiles");
  TensorView x = FirstRows(room.x, slots);
  CheckCuda(cuda::GatherTokens(args.x, placed.row, x, stream_), "gathering rows");
  x = AlignedRows(x);
  if (gated.has_value()) {
    RunGatedTiles(x, gate_up, /*bias=*/nullptr, activated, *gated, tiles[0]);
  } else {
    const TensorView gate_up_out = FirstRows(room.gate_up, slots);
    RunTiles(x, gate_up, {&gate_up_out, 1}, plans[0], tiles[0]);
    CheckCuda(cuda::SiluMul(gate_up_out, nullptr, gate_up_out.cols / 2, activated, stream_),
              "SiluMul");
  }
  activated = AlignedRows(activated);
  RunTiles(activated, down, room.parts, plans[1], tiles[1]);

  std::vector<const float*> bases;
  for (const TensorView& part : room.parts) {
    PHALANX_CHECK(part.stride == room.parts[0].stride)
        << "parts of strides " << part.stride << " and " << room.parts[0].stride;
    bases.push_back(part.f32());
  }
  cuda::CombineParams p =
      CombineParamsOf(args, down.num_parts(), PutProgram(args.program, down.num_parts()));
  p.rows = m;
  p.hidden = args.out.cols;
  p.weights = weights;
  p.places = placed.place;
  p.bases = staging_.Put(Staged::kExpertBases, absl::MakeConstSpan(bases));
  p.base_stride = room.parts[0].stride;
  CheckCuda(cuda::CombineExperts(p, stream_), "CombineExperts");
}

}  // namespace phalanx::kernels
