// Layers of experts (Kernels::RunExperts): every device, path and thread count against the same
// layer put together from plain ops, expert by expert, by bits.
#include "kernels/experts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

using ::testing::ElementsAre;

// Rows that every profile adds in its kernels' own order.
constexpr int64_t kOrderedRows = 16;

struct Shape {
  int64_t experts = 4;
  int64_t hidden = 50;
  int64_t channels = 40;  // with 64 a device may compute gates, ups and SiLU at once
  int num_parts = 1;      // of `down`: 1 or 2
  DType type = DType::kBF16;
  WeightFormat format = WeightFormat::kPlain;
};

// A layer's weights, drawn at random.
class Layer {
 public:
  Layer(Kernels& kernels, const Shape& shape, Random& random) : shape_(shape) {
    const int64_t cut = std::min<int64_t>(32, shape.channels);
    std::vector<ExpertWeights> weights;
    for (int64_t e = 0; e < shape.experts; ++e) {
      ExpertWeights expert;
      expert.gate_up = Pack(kernels, 2 * shape.channels, {{0, shape.hidden}}, {{0}}, random);
      expert.down =
          shape.num_parts == 1
              ? Pack(kernels, shape.hidden, {{0, cut}, {cut, shape.channels}}, {{0, 1, -1}}, random)
              : Pack(kernels, shape.hidden, {{0, cut}, {cut, shape.channels}}, {{0}, {1}}, random);
      weights.push_back(expert);
    }
    auto set = kernels.MakeExpertSet(std::move(weights));
    EXPECT_TRUE(set.ok()) << set.status();
    set_ = *std::move(set);
  }

  const Shape& shape() const { return shape_; }
  const ExpertSet& set() const { return *set_; }
  const ExpertWeights& operator[](int64_t e) const { return set_->weights()[e]; }
  std::vector<int> program() const {
    return shape_.num_parts == 1 ? std::vector<int>{0} : std::vector<int>{0, 1, -1};
  }

 private:
  const PackedWeight* Pack(Kernels& kernels, int64_t n, const std::vector<KLeaf>& leaves,
                           const std::vector<std::vector<int>>& parts, Random& random) {
    Matrix source = Matrix::Of(shape_.type, n, leaves.back().end, random, 0.3f);
    WeightSpec spec;
    spec.dtype = shape_.type;
    spec.format = shape_.format;
    spec.rows = {{source.view().data, n, source.view().stride}};
    spec.leaves = leaves;
    spec.parts = parts;
    auto packed = kernels.Pack(spec);
    EXPECT_TRUE(packed.ok()) << packed.status();
    packed_.push_back(*std::move(packed));
    return packed_.back().get();
  }

  const Shape shape_;
  std::vector<std::unique_ptr<PackedWeight>> packed_;
  std::unique_ptr<ExpertSet> set_;
};

// What a step brings to a layer.
struct Input {
  int64_t top_k;
  bool normalise;
  Matrix logits;
  Matrix x;
  Matrix shared;
  std::vector<float> gate;

  Input(const Layer& layer, int64_t rows, int64_t k, bool normalised, Random& random)
      : top_k(k),
        normalise(normalised),
        logits(Matrix::Of(DType::kF32, rows, layer.shape().experts, random, 2.0f)),
        x(ActivationType(layer.shape().type), rows, layer[0].gate_up->k()),
        shared(Matrix::Of(DType::kF32, rows, layer.shape().hidden, random)),
        gate(random.Floats(rows, 4.0f)) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < layer[0].gate_up->k(); ++j) {
        x.Set(i, j, j < layer.shape().hidden ? random.Normal() : 0.0f);
      }
    }
  }
  int64_t rows() { return logits.view().rows; }
};

enum class Shared { kNone, kPlain, kGated };

struct Output {
  Matrix sum;
  std::vector<int64_t> tokens;
};

// Expert by expert, a few rows at a time.
Output ByPlainOps(Kernels& kernels, const Layer& layer, Input& in, Shared shared) {
  const Shape& shape = layer.shape();
  const int64_t slots = in.rows() * in.top_k;
  std::vector<int32_t> ids(slots);
  std::vector<float> weights(slots);
  reference::RouteTopK(
      {in.logits.view(), in.top_k, in.normalise, absl::MakeSpan(ids), absl::MakeSpan(weights)});
  Output out = {Matrix(DType::kF32, in.rows(), shape.hidden),
                std::vector<int64_t>(shape.experts, 0)};
  std::vector<Matrix> of_slots;  // by part
  for (int p = 0; p < shape.num_parts; ++p) of_slots.emplace_back(DType::kF32, slots, shape.hidden);
  for (int32_t e = 0; e < shape.experts; ++e) {
    std::vector<int64_t> own;
    for (int64_t i = 0; i < slots; ++i) {
      if (ids[i] == e) own.push_back(i);
    }
    out.tokens[e] = static_cast<int64_t>(own.size());
    for (size_t begin = 0; begin < own.size(); begin += kOrderedRows) {
      const auto count = std::min<int64_t>(kOrderedRows, own.size() - begin);
      Matrix x(ActivationType(shape.type), count, layer[e].gate_up->k());
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < layer[e].gate_up->k(); ++j) {
          x.Set(i, j, in.x.Get(own[begin + i] / in.top_k, j));
        }
      }
      Matrix gate_up(DType::kF32, count, 2 * shape.channels);
      const TensorView gate_up_view = gate_up.view();
      kernels.MatMul(x.view(), *layer[e].gate_up, {&gate_up_view, 1});
      Matrix activated(ActivationType(shape.type), count, layer[e].down->k());
      kernels.SiluMul(gate_up_view, nullptr, shape.channels, activated.view());
      std::vector<Matrix> parts;
      for (int p = 0; p < shape.num_parts; ++p)
        parts.emplace_back(DType::kF32, count, shape.hidden);
      std::vector<TensorView> views;
      for (Matrix& part : parts) views.push_back(part.view());
      kernels.MatMul(activated.view(), *layer[e].down, views);
      for (int64_t i = 0; i < count; ++i) {
        for (int p = 0; p < shape.num_parts; ++p) {
          for (int64_t j = 0; j < shape.hidden; ++j) {
            of_slots[p].Set(own[begin + i], j, parts[p].Get(i, j));
          }
        }
      }
    }
  }
  std::vector<const float*> parts;
  for (int64_t i = 0; i < slots; ++i) {
    for (Matrix& part : of_slots) parts.push_back(RowsOf(part.view(), i, 1).f32());
  }
  const std::vector<int> program = layer.program();
  CombineExpertsArgs combine;
  combine.rows = in.rows();
  combine.hidden = shape.hidden;
  combine.top_k = in.top_k;
  combine.weights = weights.data();
  combine.parts = parts;
  combine.num_parts = shape.num_parts;
  combine.program = program;
  if (shared != Shared::kNone) combine.shared = in.shared.view();
  if (shared == Shared::kGated) combine.shared_gate_logit = in.gate.data();
  combine.out = out.sum.view();
  reference::CombineExperts(combine);
  return out;
}

// Rows [begin, begin + count) of `in` in one call. `by_default`: the op as it is made of others.
Output OneCall(Kernels& kernels, const Layer& layer, Input& in, Shared shared, int64_t begin,
               int64_t count, bool by_default = false) {
  const Shape& shape = layer.shape();
  const int64_t slots = count * in.top_k;
  Output out = {Matrix(DType::kF32, count, shape.hidden), std::vector<int64_t>(shape.experts, 0)};
  Matrix x(ActivationType(shape.type), slots, layer[0].gate_up->k());
  Matrix gate_up(DType::kF32, slots, 2 * shape.channels);
  Matrix activated(ActivationType(shape.type), slots, layer[0].down->k());
  std::vector<Matrix> parts;
  for (int p = 0; p < shape.num_parts; ++p) parts.emplace_back(DType::kF32, slots, shape.hidden);
  std::vector<TensorView> part_views;
  for (Matrix& part : parts) part_views.push_back(part.view());
  const std::vector<int> program = layer.program();
  ExpertsArgs args;
  args.logits = RowsOf(in.logits.view(), begin, count);
  args.top_k = in.top_k;
  args.normalise = in.normalise;
  args.x = RowsOf(in.x.view(), begin, count);
  args.experts = &layer.set();
  args.room = {x.view(), gate_up.view(), activated.view(), part_views};
  args.program = program;
  if (shared != Shared::kNone) args.shared = RowsOf(in.shared.view(), begin, count);
  if (shared == Shared::kGated) args.shared_gate_logit = in.gate.data() + begin;
  args.out = out.sum.view();
  args.tokens = out.tokens.data();
  if (by_default) {
    kernels.Kernels::RunExperts(args);
  } else {
    kernels.RunExperts(args);
  }
  return out;
}

std::vector<NamedKernels> SetsOfAllProfiles() {
  std::vector<NamedKernels> all = AllKernels();
  for (const KernelSet& set : FastKernelSets()) all.push_back({set.name, set.make(1)});
  return all;
}

void ExpectBits(const NamedKernels& named, const Layer& layer, Input& in, Shared shared,
                const Output& expected, const std::string& what) {
  const std::string context =
      absl::StrCat(named.name, ", ", std::string(Name(layer.shape().type)), ", ", what);
  for (const bool by_default : {false, true}) {
    const Output out = OneCall(*named.kernels, layer, in, shared, 0, in.rows(), by_default);
    ASSERT_EQ(out.sum.Difference(expected.sum), "") << context << ", default " << by_default;
    ASSERT_EQ(out.tokens, expected.tokens) << context << ", default " << by_default;
  }
}
void ExpectPlainOpsBits(const NamedKernels& named, const Layer& layer, Input& in, Shared shared,
                        const std::string& what) {
  ExpectBits(named, layer, in, shared, ByPlainOps(*named.kernels, layer, in, shared), what);
}

TEST(RunExperts, EqualsPlainOps) {
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(31);
    for (const DType type : kAllTypes) {
      for (const int parts : {1, 2}) {
        const Layer layer(*named.kernels,
                          {.channels = parts == 1 ? 64 : 40, .num_parts = parts, .type = type},
                          random);
        for (const int64_t rows : {int64_t{1}, int64_t{7}, int64_t{40}}) {
          for (const int64_t top_k : {int64_t{1}, int64_t{2}, layer.shape().experts}) {
            const auto shared = static_cast<Shared>((rows + top_k) % 3);
            Input in(layer, rows, top_k, /*normalised=*/parts == 1, random);
            ExpectPlainOpsBits(named, layer, in, shared,
                               absl::StrCat(rows, " rows, top ", top_k, ", ", parts, " parts"));
          }
        }
      }
    }
  }
}

// With weights of FP8, too: the plan's tiles are the same, their bytes aren't.
TEST(RunExperts, EqualsPlainOpsWithFp8Weights) {
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(36);
    const Layer layer(*named.kernels,
                      {.channels = 64, .num_parts = 2, .format = WeightFormat::kF8E4M3}, random);
    for (const int64_t rows : {int64_t{1}, int64_t{7}, int64_t{100}}) {
      Input in(layer, rows, 2, true, random);
      ExpectPlainOpsBits(named, layer, in, Shared::kPlain, absl::StrCat(rows, " rows of FP8"));
    }
  }
}

// Products are planned for what is expected, so an expert of many rows takes several tiles of them.
TEST(RunExperts, EqualsPlainOpsHoweverUnevenTheExpertsAre) {
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(32);
    for (const DType type : kAllTypes) {
      const Layer layer(*named.kernels, {.experts = 12, .channels = 64, .type = type}, random);
      // 100 rows: tiles of 32 for BF16; 30: of eight.
      for (const int64_t rows : {30, 100}) {
        Input in(layer, rows, 1, true, random);
        for (const int64_t one : Sized<int64_t>({0, 11}, {0, 5, 11})) {
          for (int64_t i = 0; i < rows; ++i) in.logits.Set(i, one, 100.0f);
          ExpectPlainOpsBits(named, layer, in, Shared::kNone,
                             absl::StrCat(rows, " rows to expert ", one));
          // Most of them.
          for (int64_t i = 0; i < rows; i += 9) in.logits.Set(i, (one + i) % 12, 200.0f);
          ExpectPlainOpsBits(named, layer, in, Shared::kPlain,
                             absl::StrCat("most of ", rows, " rows to expert ", one));
          for (int64_t i = 0; i < rows; ++i) in.logits.Set(i, one, -100.0f);
        }
      }
    }
  }
}

// More slots than a block has threads, and more experts. Products of F32 have the CPU's bits.
TEST(RunExperts, EqualsPlainOpsOfACpuForManyExpertsAndRows) {
  const Shape shape = {.experts = 300, .hidden = 9, .channels = 5, .type = DType::kF32};
  const auto cpu = CreateCpuKernels({});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  Random random(33);
  const Layer on_cpu(**cpu, shape, random);
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random same(33);
    const Layer layer(*named.kernels, shape, same);
    for (const int64_t rows : {3, 230}) {
      Input in(layer, rows, 3, false, random);
      ExpectBits(named, layer, in, Shared::kGated, ByPlainOps(**cpu, on_cpu, in, Shared::kGated),
                 absl::StrCat(rows, " rows"));
    }
  }
}

TEST(RunExperts, RowsDoNotDependOnEachOther) {
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(34);
    for (const DType type : kAllTypes) {
      const Layer layer(*named.kernels, {.experts = 6, .num_parts = 2, .type = type}, random);
      Input in(layer, 60, 2, true, random);
      const Output all = OneCall(*named.kernels, layer, in, Shared::kGated, 0, 60);
      std::vector<int64_t> tokens(6, 0);
      for (const auto& [begin, count] :
           std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 1}, {2, 13}, {15, 45}}) {
        const Output some = OneCall(*named.kernels, layer, in, Shared::kGated, begin, count);
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t j = 0; j < layer.shape().hidden; ++j) {
            ASSERT_EQ(some.sum.Get(i, j), all.sum.Get(begin + i, j))
                << named.name << ", row " << begin + i;
          }
        }
        for (size_t e = 0; e < tokens.size(); ++e) tokens[e] += some.tokens[e];
      }
      EXPECT_EQ(tokens, all.tokens) << named.name;
    }
  }
}

TEST(RunExperts, AFaultyRowHarmsNoOther) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(35);
    const Layer layer(*named.kernels, {.experts = 5}, random);
    Input in(layer, 9, 2, true, random);
    const Output sound = OneCall(*named.kernels, layer, in, Shared::kPlain, 0, 9);
    for (int64_t e = 0; e < 5; ++e) in.logits.Set(4, e, kNan);
    const Output out = OneCall(*named.kernels, layer, in, Shared::kPlain, 0, 9);
    int64_t total = 0;
    for (const int64_t tokens : out.tokens) total += tokens;
    EXPECT_EQ(total, 18) << named.name;
    for (int64_t row = 0; row < 9; ++row) {
      for (int64_t j = 0; j < layer.shape().hidden; ++j) {
        if (row == 4) {
          EXPECT_TRUE(std::isnan(out.sum.Get(row, j))) << named.name;
        } else {
          EXPECT_EQ(out.sum.Get(row, j), sound.sum.Get(row, j)) << named.name << ", row " << row;
        }
      }
    }
  }
}

TEST(RunExperts, CountersAreRaisedAndTheSharedExpertMayBeTheSum) {
  for (const NamedKernels& named : SetsOfAllProfiles()) {
    Random random(36);
    const Layer layer(*named.kernels, {}, random);
    Input in(layer, 6, 2, true, random);
    const Output expected = ByPlainOps(*named.kernels, layer, in, Shared::kPlain);
    Matrix x(DType::kBF16, 12, layer[0].gate_up->k());
    Matrix gate_up(DType::kF32, 12, 2 * layer.shape().channels);
    Matrix activated(DType::kBF16, 12, layer[0].down->k());
    Matrix part(DType::kF32, 12, layer.shape().hidden);
    const TensorView part_view = part.view();
    const std::vector<int> program = {0};
    std::vector<int64_t> tokens = {int64_t{1} << 40, 0, 3, 0};
    ExpertsArgs args;
    args.logits = in.logits.view();
    args.top_k = 2;
    args.normalise = true;
    args.x = in.x.view();
    args.experts = &layer.set();
    args.room = {x.view(), gate_up.view(), activated.view(), {&part_view, 1}};
    args.program = program;
    args.shared = args.out = in.shared.view();
    args.tokens = tokens.data();
    named.kernels->RunExperts(args);
    EXPECT_EQ(in.shared.Difference(expected.sum), "") << named.name;
    EXPECT_THAT(tokens, ElementsAre((int64_t{1} << 40) + expected.tokens[0], expected.tokens[1],
                                    3 + expected.tokens[2], expected.tokens[3]))
        << named.name;
  }
}

TEST(PlaceSlots, StandByExpertThenInTheirOwnOrder) {
  const std::vector<int32_t> ids = {3, 1, 2, 1, 5, 2, 1, 4};
  const SlotPlaces all = PlaceSlots(ids, 0, 6);
  EXPECT_THAT(all.begin, ElementsAre(0, 0, 3, 5, 6, 7, 8));
  EXPECT_THAT(all.place, ElementsAre(5, 0, 3, 1, 7, 4, 2, 6));
  const SlotPlaces some = PlaceSlots(ids, 2, 2);
  EXPECT_THAT(some.begin, ElementsAre(0, 2, 3));
  EXPECT_THAT(some.place, ElementsAre(2, -1, 0, -1, -1, 1, -1, -1));
}

}  // namespace
}  // namespace phalanx::kernels
