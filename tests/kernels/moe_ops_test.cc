// Routing, combining and grouping of experts: every device, path and thread count against the plain
// reference, by bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Routes {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

// `kernels` null: by the reference.
Routes Route(Kernels* kernels, TensorView logits, int64_t top_k, bool normalise) {
  Routes routes;
  routes.experts.assign(logits.rows * top_k, -7);
  routes.weights.assign(logits.rows * top_k, -7.0f);
  RouterArgs args;
  args.logits = logits;
  args.top_k = top_k;
  args.normalise = normalise;
  args.experts = absl::MakeSpan(routes.experts);
  args.weights = absl::MakeSpan(routes.weights);
  if (kernels != nullptr) {
    kernels->RouteTopK(args);
  } else {
    reference::RouteTopK(args);
  }
  return routes;
}

// One row of logits.
Matrix Row(const std::vector<float>& logits) {
  Matrix m(DType::kF32, 1, static_cast<int64_t>(logits.size()));
  for (size_t j = 0; j < logits.size(); ++j) m.Set(0, static_cast<int64_t>(j), logits[j]);
  return m;
}

TEST(RouteTopK, EqualsReference) {
  Random random(21);
  const std::vector<NamedKernels> all = AllKernels();
  for (const int64_t experts : Sized<int64_t>({1, 17, 513}, {1, 6, 8, 15, 16, 17, 60, 128, 513})) {
    for (const int64_t rows : Sized<int64_t>({1, 9}, {1, 40})) {
      for (const float scale : {0.01f, 2.0f, 60.0f}) {
        Matrix logits = Matrix::Of(DType::kF32, rows, experts, random, scale);
        // Ties, also at the border of the chosen.
        for (int64_t i = 0; i < experts; i += 2) logits.Set(rows - 1, i, 0.5f);
        for (const int64_t top_k : {int64_t{1}, std::min<int64_t>(4, experts), experts}) {
          for (const bool normalise : {false, true}) {
            const Routes expected = Route(nullptr, logits.view(), top_k, normalise);
            for (const auto& [name, kernels] : all) {
              const Routes routes = Route(kernels.get(), logits.view(), top_k, normalise);
              ASSERT_EQ(routes.experts, expected.experts) << name << ", " << experts << " experts";
              ASSERT_TRUE(SameBits(routes.weights, expected.weights))
                  << name << ", " << experts << " experts, top " << top_k;
            }
          }
        }
      }
    }
  }
}

TEST(RouteTopK, IsCloseToTheFormulaInDouble) {
  Random random(22);
  Matrix logits = Matrix::Of(DType::kF32, 40, 60, random, 3.0f);
  for (const bool normalise : {false, true}) {
    const Routes routes = Route(nullptr, logits.view(), 4, normalise);
    for (int64_t row = 0; row < 40; ++row) {
      double total = 0, chosen = 0;
      for (int64_t e = 0; e < 60; ++e) total += std::exp(double{logits.Get(row, e)});
      for (int k = 0; k < 4; ++k) {
        chosen += std::exp(double{logits.Get(row, routes.experts[row * 4 + k])});
      }
      for (int k = 0; k < 4; ++k) {
        const int32_t id = routes.experts[row * 4 + k];
        const double p = std::exp(double{logits.Get(row, id)}) / (normalise ? chosen : total);
        EXPECT_NEAR(routes.weights[row * 4 + k] / p, 1.0, 1e-6);
        // No expert beyond the chosen has a larger logit, and they come in falling order.
        int64_t larger = 0;
        for (int64_t e = 0; e < 60; ++e) larger += logits.Get(row, e) > logits.Get(row, id);
        EXPECT_EQ(larger, k);
      }
    }
  }
}

TEST(RouteTopK, TiesGoToTheLowerExpert) {
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix equal = Row(std::vector<float>(40, 1.0f));
    EXPECT_EQ(Route(kernels.get(), equal.view(), 5, true).experts,
              (std::vector<int32_t>{0, 1, 2, 3, 4}))
        << name;
    std::vector<float> logits(40, -3.0f);
    logits[39] = logits[17] = logits[16] = logits[2] = 1.0f;
    logits[33] = 2.0f;
    Matrix some = Row(logits);
    EXPECT_EQ(Route(kernels.get(), some.view(), 4, false).experts,
              (std::vector<int32_t>{33, 2, 16, 17}))
        << name;
    // Probabilities that underflow are equal too.
    std::vector<float> tiny = {-500.0f, -400.0f, -450.0f, 0.0f};
    Matrix underflow = Row(tiny);
    const Routes routes = Route(kernels.get(), underflow.view(), 3, true);
    EXPECT_EQ(routes.experts, (std::vector<int32_t>{3, 0, 1})) << name;
    EXPECT_EQ(routes.weights, (std::vector<float>{1.0f, 0.0f, 0.0f})) << name;
  }
}

TEST(RouteTopK, FaultyLogitsGiveDistinctExpertsAndNanWeights) {
  const std::vector<std::vector<float>> rows = {std::vector<float>(20, kNan),
                                                std::vector<float>(20, -kInfinity),
                                                {kNan, 1.0f, -kNan, 3.0f, 2.0f},
                                                {1.0f, kInfinity, 3.0f, 2.0f, 0.0f},
                                                {-kInfinity, kNan, -kInfinity, kNan}};
  const std::vector<std::vector<int32_t>> expected = {
      {0, 1, 2, 3}, {0, 1, 2, 3}, {3, 4, 1, 0}, {0, 2, 3, 4}, {0, 1, 2, 3}};
  for (const auto& [name, kernels] : AllKernels()) {
    for (size_t i = 0; i < rows.size(); ++i) {
      for (const bool normalise : {false, true}) {
        Matrix logits = Row(rows[i]);
        const Routes routes = Route(kernels.get(), logits.view(), 4, normalise);
        EXPECT_EQ(routes.experts, expected[i]) << name << " row " << i;
        EXPECT_TRUE(SameBits(routes.weights, std::vector<float>(4, kNan))) << name << " row " << i;
        EXPECT_EQ(Route(nullptr, logits.view(), 4, normalise).experts, expected[i]) << "row " << i;
      }
    }
    // -inf beside numbers is an expert that is never wanted, and no fault.
    Matrix masked = Row({-kInfinity, 2.0f, -kInfinity, 2.0f});
    const Routes routes = Route(kernels.get(), masked.view(), 3, false);
    EXPECT_EQ(routes.experts, (std::vector<int32_t>{1, 3, 0})) << name;
    EXPECT_EQ(routes.weights, (std::vector<float>{0.5f, 0.5f, 0.0f})) << name;
  }
}

TEST(RouteTopK, DoesNotDependOnNeighbouringRows) {
  Random random(23);
  Matrix logits = Matrix::Of(DType::kF32, 70, 60, random, 2.0f);
  for (const auto& [name, kernels] : AllKernels()) {
    const Routes together = Route(kernels.get(), logits.view(), 6, true);
    for (int64_t row = 0; row < 70; row += 23) {
      TensorView one = logits.view();
      one.data = one.f32() + row * one.stride;
      one.rows = 1;
      const Routes alone = Route(kernels.get(), one, 6, true);
      for (int64_t k = 0; k < 6; ++k) {
        EXPECT_EQ(alone.experts[k], together.experts[row * 6 + k]) << name;
        EXPECT_EQ(alone.weights[k], together.weights[row * 6 + k]) << name;
      }
    }
  }
}

// The outputs of a step's experts, scattered, and what is combined from them.
struct Experts {
  int64_t rows, hidden, top_k;
  int num_parts;
  std::vector<int> program;
  std::vector<float> weights, outputs, gate;
  std::vector<const float*> parts;
  Matrix shared;

  Experts(int64_t m, int64_t h, int64_t k, int p, std::vector<int> steps, Random& random)
      : rows(m),
        hidden(h),
        top_k(k),
        num_parts(p),
        program(std::move(steps)),
        weights(random.Floats(m * k)),
        outputs(random.Floats(m * k * p * h)),
        gate(random.Floats(m, 4.0f)),
        shared(Matrix::Of(DType::kF32, m, h, random)) {
    for (int64_t i = 0; i < m * k * p; ++i) parts.push_back(outputs.data() + i * h);
    std::shuffle(parts.begin(), parts.end(), random.engine());
  }
  CombineExpertsArgs Args(bool with_shared, bool with_gate, TensorView out) {
    CombineExpertsArgs args;
    args.rows = rows;
    args.hidden = hidden;
    args.top_k = top_k;
    args.weights = weights.data();
    args.parts = parts;
    args.num_parts = num_parts;
    args.program = program;
    if (with_shared) args.shared = shared.view();
    if (with_gate) args.shared_gate_logit = gate.data();
    args.out = out;
    return args;
  }
};

TEST(CombineExperts, EqualsReference) {
  Random random(24);
  const std::vector<NamedKernels> all = AllKernels();
  const std::vector<std::vector<int>> programs = {
      {0}, {0, 1, -1}, {0, 1, 2, -1, -1}, {0, 1, -1, 2, 3, -1, -1, 4, -1}};
  for (const int64_t hidden : {1, 15, 16, 33, 515}) {
    for (const int64_t rows : {1, 7}) {
      for (const int64_t top_k : {1, 4}) {
        for (const std::vector<int>& program : programs) {
          const int parts = static_cast<int>(program.size() + 1) / 2;
          Experts experts(rows, hidden, top_k, parts, program, random);
          for (const int shared : {0, 1, 2}) {
            Matrix expected(DType::kF32, rows, hidden);
            reference::CombineExperts(experts.Args(shared > 0, shared > 1, expected.view()));
            for (const auto& [name, kernels] : all) {
              Matrix out(DType::kF32, rows, hidden);
              kernels->CombineExperts(experts.Args(shared > 0, shared > 1, out.view()));
              ASSERT_EQ(out.Difference(expected), "") << name << ", " << parts << " parts";
            }
          }
        }
      }
    }
  }
}

TEST(CombineExperts, AddsInTheRoutersOrderWithTheSharedExpertLast) {
  // 2^24 + 1 - 2^24: the order shows.
  const std::vector<float> big = {16777216.0f}, one = {1.0f}, minus = {-16777216.0f};
  const std::vector<float> weights = {1.0f, 1.0f, 1.0f};
  float out = 0;
  CombineExpertsArgs args;
  args.rows = args.hidden = 1;
  args.top_k = 3;
  args.weights = weights.data();
  const std::vector<int> program = {0};
  args.program = program;
  args.out = {&out, DType::kF32, 1, 1, 1};
  for (const auto& [name, kernels] : AllKernels()) {
    std::vector<const float*> parts = {big.data(), one.data(), minus.data()};
    args.parts = parts;
    kernels->CombineExperts(args);
    EXPECT_EQ(out, 0.0f) << name;
    parts = {big.data(), minus.data(), one.data()};
    kernels->CombineExperts(args);
    EXPECT_EQ(out, 1.0f) << name;
    // Half of the shared expert, after the experts.
    float shared = 6.0f;
    const float gate = 0.0f;
    CombineExpertsArgs with = args;
    with.shared = {&shared, DType::kF32, 1, 1, 1};
    kernels->CombineExperts(with);
    EXPECT_EQ(out, 7.0f) << name;
    with.shared_gate_logit = &gate;
    with.out = with.shared;  // in place
    kernels->CombineExperts(with);
    EXPECT_EQ(shared, 4.0f) << name;
  }
}

TEST(CombineExperts, DoesNotDependOnNeighbouringRows) {
  Random random(25);
  Experts experts(30, 77, 4, 2, {0, 1, -1}, random);
  for (const auto& [name, kernels] : AllKernels()) {
    Matrix together(DType::kF32, 30, 77);
    kernels->CombineExperts(experts.Args(true, true, together.view()));
    for (int64_t row = 0; row < 30; row += 7) {
      Matrix alone(DType::kF32, 1, 77);
      CombineExpertsArgs args = experts.Args(true, true, alone.view());
      args.rows = 1;
      args.weights += row * 4;
      args.parts = args.parts.subspan(row * 8, 8);
      args.shared = RowsOf(args.shared, row, 1);
      args.shared_gate_logit += row;
      kernels->CombineExperts(args);
      for (int64_t j = 0; j < 77; ++j) EXPECT_EQ(alone.Get(0, j), together.Get(row, j)) << name;
    }
  }
}

TEST(GatherTokens, CopiesRowsOfAnyDtypeWithTheirPadding) {
  Random random(26);
  const std::vector<NamedKernels> all = AllKernels();
  for (const DType type : kAllTypes) {
    for (const int64_t width : {1, 31, 64, 3000}) {
      Matrix in = Matrix::Of(type, 9, width, random);
      const std::vector<int32_t> rows = {8, 0, 3, 3, -1, 8, 1, 0};
      // With two of the three columns beyond the matrix.
      Matrix expected(type, static_cast<int64_t>(rows.size()), width + 2);
      reference::GatherTokens(in.view(), rows, expected.view());
      EXPECT_EQ(expected.Get(2, width - 1), in.Get(3, width - 1));
      EXPECT_EQ(expected.Get(4, 0), 0.0f);
      for (const auto& [name, kernels] : all) {
        Matrix out(type, static_cast<int64_t>(rows.size()), width + 2);
        kernels->GatherTokens(in.view(), rows, out.view());
        EXPECT_EQ(out.Difference(expected), "") << name << " " << Name(type);
      }
    }
  }
}

// Experts of one shape, packed.
class Bank {
 public:
  Bank(Kernels& kernels, DType type, int64_t experts, int64_t n, const std::vector<KLeaf>& leaves,
       const std::vector<std::vector<int>>& parts, Random& random) {
    const int64_t cols = leaves.back().end;
    for (int64_t e = 0; e < experts; ++e) {
      Matrix source = Matrix::Of(type, n, cols, random);
      WeightSpec spec;
      spec.dtype = type;
      spec.rows = {{source.view().data, n, source.view().stride}};
      spec.leaves = leaves;
      spec.parts = parts;
      auto packed = kernels.Pack(spec);
      EXPECT_TRUE(packed.ok()) << packed.status();
      weights_.push_back(*std::move(packed));
    }
  }
  const PackedWeight* operator[](int64_t e) const { return weights_[e].get(); }

 private:
  std::vector<std::unique_ptr<PackedWeight>> weights_;
};

// Compares GroupedMatMul with one MatMul for each group, untouched rows included.
void ExpectGroupsEqualMatMuls(Kernels& kernels, const std::string& what, TensorView x,
                              const std::vector<ExpertRows>& groups, int64_t n, int parts) {
  std::vector<Matrix> expected, outs;
  for (int p = 0; p < parts; ++p) {
    expected.emplace_back(DType::kF32, x.rows, n);
    outs.emplace_back(DType::kF32, x.rows, n);
  }
  std::vector<TensorView> views;
  for (Matrix& out : outs) views.push_back(out.view());
  for (const ExpertRows& group : groups) {
    TensorView rows = x;
    rows.data = static_cast<uint8_t*>(x.data) + group.begin * x.stride * SizeOf(x.dtype);
    rows.rows = group.count;
    std::vector<TensorView> to;
    for (Matrix& out : expected) {
      TensorView view = out.view();
      view.data = view.f32() + group.begin * view.stride;
      view.rows = group.count;
      to.push_back(view);
    }
    if (group.count > 0) kernels.MatMul(rows, *group.w, to);
  }
  kernels.GroupedMatMul(x, groups, views);
  for (int p = 0; p < parts; ++p) {
    ASSERT_EQ(outs[p].Difference(expected[p]), "") << what << ", part " << p;
  }
}

TEST(GroupedMatMul, EqualsOneMatMulForEachGroup) {
  Random random(27);
  const std::vector<KLeaf> leaves = {{0, 64}, {64, 96}, {96, 150}};
  const std::vector<std::vector<int>> parts = {{0, 1, -1}, {2}};
  for (const NamedKernels& named : AllKernels()) {
    Kernels& kernels = *named.kernels;
    for (const DType type : kAllTypes) {
      const Bank bank(kernels, type, 8, 70, leaves, parts, random);
      const int64_t k = bank[0]->k();
      const auto check = [&](const std::vector<int64_t>& counts, const std::string& what) {
        // A row that belongs to nobody before each group.
        std::vector<ExpertRows> groups;
        int64_t rows = 0;
        for (size_t e = 0; e < counts.size(); ++e) {
          groups.push_back({bank[static_cast<int64_t>(e)], rows + 1, counts[e]});
          rows += 1 + counts[e];
        }
        Matrix x = Matrix::Of(ActivationType(type), rows, k, random);
        const std::string context =
            absl::StrCat(named.name, " ", std::string(Name(type)), " ", what);
        ExpectGroupsEqualMatMuls(kernels, context, x.view(), groups, 70, 2);
      };
      check({1, 1, 1, 1, 1, 1, 1, 1}, "a row each");
      check({0, 3, 0, 0, 40, 1, 17, 0}, "uneven, some empty");
      check({0, 0, 90, 0}, "all tokens to one expert");
      check({0, 0, 0}, "no token at all");
      if (type == DType::kBF16) {
        check({300, 5, 300, 600, 2}, "more rows than are held at once");
      }
    }
  }
}

TEST(GroupedMatMul, TakesGroupsInAnyOrderAndAnExpertTwice) {
  Random random(28);
  for (const auto& [name, kernels] : AllKernels()) {
    const Bank bank(*kernels, DType::kBF16, 3, 33, {{0, 64}}, {{0}}, random);
    Matrix x = Matrix::Of(DType::kBF16, 20, 64, random);
    ExpectGroupsEqualMatMuls(*kernels, name, x.view(),
                             {{bank[2], 12, 8}, {bank[0], 0, 3}, {bank[2], 5, 6}}, 33, 1);
    ExpectGroupsEqualMatMuls(*kernels, name, x.view(), {}, 33, 1);
  }
}

}  // namespace
}  // namespace phalanx::kernels
