// Recorded launches and their replay, with a driver that executes: a node that wasn't updated, or
// was updated wrongly, gives another result than launching kernel by kernel.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/step_graphs.h"

namespace phalanx::kernels::cuda {
namespace {

// "Kernels": grid and block come first, as a launch would give them.
struct Shape {
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
};
Shape launched;  // of the kernel that runs

// With padding between its members.
struct Term {
  int8_t factor;
  int64_t addend;
};
void Affine(const int64_t* from, int64_t* to, Term term) {
  for (uint32_t i = 0; i < launched.grid[0] * launched.threads; ++i) {
    to[i] = from[i] * term.factor + term.addend + launched.shared_bytes;
  }
}
void Fill(int64_t* to, int8_t value) {
  std::fill_n(to, launched.grid[0] * launched.grid[1] * launched.threads, int64_t{value});
}
void Gather(const int64_t* from, const int32_t* rows, int64_t* to) {
  for (uint32_t i = 0; i < launched.grid[0]; ++i) to[i] = from[rows[i]];
}

// A driver that keeps its own copy of what each node holds and runs it.
class ExecutingDriver : public GraphApi {
 public:
  ExecutingDriver() {
    Know(Affine);
    Know(Fill);
    Know(Gather);
  }
  ~ExecutingDriver() override { EXPECT_TRUE(graphs_.empty()) << graphs_.size() << " left"; }

  void Launch(const Segment& segment) override { RunNodes(NodesOf(segment)); }
  Graph Build(const Segment& segment) override {
    if (graphs_.size() >= room) return nullptr;
    auto* nodes = new Nodes(NodesOf(segment));
    graphs_.insert(nodes);
    return nodes;
  }
  bool UpdateUpload(Graph graph, const Segment& segment) override {
    ++upload_updates;
    Of(graph).upload = segment.upload;
    return updates_work;
  }
  bool UpdateKernel(Graph graph, const Segment& segment, size_t index) override {
    Of(graph).kernels.at(index) = NodeOf(segment, segment.kernels()[index]);
    return updates_work;
  }
  void Launch(Graph graph) override { RunNodes(Of(graph)); }
  void Destroy(Graph graph) override {
    Nodes* nodes = &Of(graph);
    graphs_.erase(nodes);
    delete nodes;
  }
  size_t num_graphs() const { return graphs_.size(); }

  bool updates_work = true;
  size_t room = 1000;
  int upload_updates = 0;

 private:
  struct Node {
    const void* kernel;
    Shape shape;
    std::vector<std::vector<char>> arguments;
  };
  struct Nodes {
    Upload upload;
    std::vector<Node> kernels;
  };
  struct Kernel {
    std::vector<size_t> sizes;
    std::function<void(const std::vector<std::vector<char>>&)> run;
  };

  template <typename... Parameters>
  void Know(void (*kernel)(Parameters...)) {
    Kernel& known = known_[reinterpret_cast<const void*>(kernel)];
    known.sizes = {sizeof(Parameters)...};
    known.run = [kernel](const std::vector<std::vector<char>>& arguments) {
      [&]<size_t... kI>(std::index_sequence<kI...>) {
        std::tuple<Parameters...> values;
        (std::memcpy(&std::get<kI>(values), arguments[kI].data(), sizeof(Parameters)), ...);
        std::apply(kernel, values);
      }
      (std::index_sequence_for<Parameters...>());
    };
  }
  Node NodeOf(const Segment& segment, const KernelNode& node) {
    Node out = {node.kernel, {{}, node.threads, node.shared_bytes}, {}};
    std::copy(node.grid, node.grid + 3, out.shape.grid);
    const Kernel& kernel = known_.at(node.kernel);
    EXPECT_EQ(node.num_arguments, kernel.sizes.size());
    for (uint32_t i = 0; i < node.num_arguments; ++i) {
      const char* at = static_cast<const char*>(segment.argument(node, i));
      out.arguments.emplace_back(at, at + kernel.sizes[i]);
    }
    return out;
  }
  Nodes NodesOf(const Segment& segment) {
    Nodes out;
    out.upload = segment.upload;
    for (const KernelNode& node : segment.kernels()) out.kernels.push_back(NodeOf(segment, node));
    return out;
  }
  void RunNodes(const Nodes& nodes) {
    if (nodes.upload.bytes > 0) {
      std::memcpy(nodes.upload.to, nodes.upload.from, static_cast<size_t>(nodes.upload.bytes));
    }
    for (const Node& node : nodes.kernels) {
      launched = node.shape;
      known_.at(node.kernel).run(node.arguments);
    }
  }
  Nodes& Of(Graph graph) {
    Nodes* nodes = static_cast<Nodes*>(graph);
    EXPECT_EQ(graphs_.count(nodes), 1u) << "a graph that isn't there";
    return *nodes;
  }

  std::map<const void*, Kernel> known_;
  std::set<Nodes*> graphs_;
};

template <typename... Parameters, typename... Arguments>
void Record(Recorder& recorder, void (*kernel)(Parameters...), uint32_t blocks, int threads,
            size_t shared_bytes, Arguments... arguments) {
  recorder.Record(kernel, {blocks, 1, 1}, threads, shared_bytes, arguments...);
}

// Four kernels over `memory`: Fill, Affine, Affine, Fill.
Segment FourKernels(int64_t* memory, int8_t value) {
  Recorder recorder(nullptr);
  Record(recorder, Fill, 2, 4, 0, memory, value);
  Record(recorder, Affine, 2, 4, 8, memory, memory + 10, Term{3, 5});
  Record(recorder, Affine, 2, 4, 0, memory + 10, memory + 20, Term{-1, value});
  Record(recorder, Fill, 1, 4, 0, memory + 30, 1);
  return recorder.segment();
}

TEST(Segment, KeepsArgumentsOfEveryAlignmentAsTheirParametersTypes) {
  Recorder recorder(nullptr);
  int64_t memory[4];
  const Term term = {7, -9};
  // A literal int becomes the int8_t of the parameter.
  Record(recorder, Fill, 1, 1, 0, memory, 5);
  Record(recorder, Affine, 1, 1, 0, memory, memory + 2, term);
  const Segment& segment = recorder.segment();
  ASSERT_EQ(segment.kernels().size(), 2u);
  const KernelNode& fill = segment.kernels()[0];
  ASSERT_EQ(fill.num_arguments, 2u);
  EXPECT_EQ(*static_cast<int64_t* const*>(segment.argument(fill, 0)), memory);
  EXPECT_EQ(*static_cast<const int8_t*>(segment.argument(fill, 1)), 5);
  const KernelNode& affine = segment.kernels()[1];
  EXPECT_EQ(reinterpret_cast<uintptr_t>(segment.argument(affine, 2)) % alignof(Term), 0u);
  EXPECT_EQ(static_cast<const Term*>(segment.argument(affine, 2))->addend, -9);
}

TEST(Segment, DoesNotSeeThePaddingOfArguments) {
  alignas(Term) char bytes[2][sizeof(Term)];
  std::memset(bytes[0], 0x11, sizeof(Term));
  std::memset(bytes[1], 0xEE, sizeof(Term));
  Segment segments[2];
  for (int i = 0; i < 2; ++i) {
    Term* term = reinterpret_cast<Term*>(bytes[i]);
    term->factor = 2;
    term->addend = 3;
    Recorder recorder(nullptr);
    Record(recorder, Affine, 1, 1, 0, static_cast<int64_t*>(nullptr),
           static_cast<int64_t*>(nullptr), *term);
    segments[i] = recorder.segment();
  }
  EXPECT_TRUE(segments[0].SameKernel(segments[1], 0));
}

TEST(Segment, TopologyIsKernelsTheirOrderAndWhetherThereIsAnUpload) {
  int64_t memory[40];
  const Segment segment = FourKernels(memory, 1);
  EXPECT_TRUE(segment.SameTopology(FourKernels(memory + 1, 9)));
  Segment uploading = segment;
  uploading.upload = {memory, memory + 1, 8};
  EXPECT_FALSE(segment.SameTopology(uploading));
  EXPECT_NE(segment.topology(), uploading.topology());
  Recorder other(nullptr);
  Record(other, Affine, 1, 1, 0, memory, memory, Term{1, 1});
  Record(other, Fill, 1, 1, 0, memory, 1);
  Recorder swapped(nullptr);
  Record(swapped, Fill, 1, 1, 0, memory, 1);
  Record(swapped, Affine, 1, 1, 0, memory, memory, Term{1, 1});
  EXPECT_FALSE(other.segment().SameTopology(swapped.segment()));
  EXPECT_NE(other.segment().topology(), swapped.segment().topology());
}

TEST(Recorder, TakesTheLaunchesOfItsThreadAndStreamOnly) {
  int a = 0;
  int b = 0;
  {
    Recorder first(&a);
    Recorder second(&b);
    EXPECT_EQ(Recorder::Of(&a), nullptr);
    first.Enter();
    EXPECT_EQ(Recorder::Of(&a), &first);
    EXPECT_EQ(Recorder::Of(&b), nullptr);
    std::thread([&] { EXPECT_EQ(Recorder::Of(&a), nullptr); }).join();
    second.Enter();
    EXPECT_EQ(Recorder::Of(&a), nullptr);
    first.Leave();
    EXPECT_EQ(Recorder::Of(&b), &second);
  }
  EXPECT_EQ(Recorder::Of(&b), nullptr);
}

TEST(StepGraphs, BuildsWhatComesTwiceAndThenUpdatesOnlyWhatDiffers) {
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[40] = {};
  const auto step = [&](int8_t value) {
    graphs.BeginStep(1);
    graphs.Run(FourKernels(memory, value));
    for (int i = 0; i < 8; ++i) ASSERT_EQ(memory[20 + i], -(value * 3 + 5 + 8) + value);
  };
  step(1);
  EXPECT_EQ(graphs.counts().plain, 1);
  EXPECT_EQ(graphs.counts().built, 0);
  step(1);
  EXPECT_EQ(graphs.counts().built, 1);
  EXPECT_EQ(graphs.counts().launched, 1);
  step(1);
  EXPECT_EQ(graphs.counts().updated_nodes, 0);
  step(2);  // the first kernel and the third
  EXPECT_EQ(graphs.counts().updated_nodes, 2);
  step(2);
  EXPECT_EQ(graphs.counts().updated_nodes, 2);
  EXPECT_EQ(graphs.counts().built, 1);
  EXPECT_EQ(graphs.counts().plain, 1);
  EXPECT_EQ(graphs.counts().launched, 4);
}

TEST(StepGraphs, UpdatesTheUploadThatComesFromTheOtherHalf) {
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[40] = {};
  int64_t pinned[2][2];
  for (int i = 0; i < 6; ++i) {
    int64_t* from = pinned[i % 2];
    from[0] = 100 + i;
    from[1] = 200 + i;
    Segment segment = FourKernels(memory, 1);
    segment.upload = {memory + 38, from, 16};
    graphs.BeginStep(1);
    graphs.Run(segment);
    EXPECT_EQ(memory[38], 100 + i);
    EXPECT_EQ(memory[39], 200 + i);
  }
  EXPECT_EQ(driver.upload_updates, 4);
  EXPECT_EQ(graphs.counts().updated_nodes, 0);
}

TEST(StepGraphs, RowsOfABucketShareAGraphAndOthersKeepTheirOwn) {
  EXPECT_EQ(StepGraphs::Bucket(0), 0);
  EXPECT_EQ(StepGraphs::Bucket(1), 0);
  EXPECT_EQ(StepGraphs::Bucket(2), 1);
  EXPECT_EQ(StepGraphs::Bucket(3), 2);
  EXPECT_EQ(StepGraphs::Bucket(4), 2);
  EXPECT_EQ(StepGraphs::Bucket(5), 3);
  EXPECT_EQ(StepGraphs::Bucket(8192), 13);
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[40];
  for (int round = 0; round < 3; ++round) {
    for (const int rows : {1, 3, 4}) {
      graphs.BeginStep(rows);
      graphs.Run(FourKernels(memory, static_cast<int8_t>(rows == 1 ? 1 : 2)));
    }
  }
  // Row counts of one bucket meet in one graph; that of one row never sees another's arguments.
  EXPECT_EQ(graphs.counts().built, 2);
  EXPECT_EQ(graphs.counts().updated_nodes, 0);
  EXPECT_EQ(driver.num_graphs(), 2u);
}

TEST(StepGraphs, SegmentsOfAStepHaveTheirOwnGraphsInTheirOrder) {
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[80];
  for (int round = 0; round < 4; ++round) {
    graphs.BeginStep(1);
    graphs.Run(FourKernels(memory, 1));
    graphs.Run(Segment());  // nothing was recorded: not a segment
    graphs.Run(FourKernels(memory + 40, 2));
    EXPECT_EQ(memory[20], -(1 * 3 + 5 + 8) + 1);
    EXPECT_EQ(memory[60], -(2 * 3 + 5 + 8) + 2);
  }
  EXPECT_EQ(driver.num_graphs(), 2u);
  EXPECT_EQ(graphs.counts().updated_nodes, 0);
}

TEST(StepGraphs, FewKernelsAreLaunchedOneByOne) {
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[4] = {};
  for (int i = 1; i < 5; ++i) {
    Recorder recorder(nullptr);
    Record(recorder, Fill, 1, 4, 0, memory, static_cast<int8_t>(i));
    graphs.BeginStep(1);
    graphs.Run(recorder.segment());
    EXPECT_EQ(memory[3], i);
  }
  EXPECT_EQ(graphs.counts().plain, 4);
  EXPECT_EQ(driver.num_graphs(), 0u);
}

TEST(StepGraphs, ForgetsWhatWasUnusedForLongest) {
  ExecutingDriver driver;
  StepGraphsOptions options;
  options.most_graphs = 2;
  StepGraphs graphs(driver, options);
  int64_t memory[40];
  const auto step = [&](int64_t rows) {
    graphs.BeginStep(rows);
    graphs.Run(FourKernels(memory, 1));
  };
  for (int i = 0; i < 2; ++i) {
    step(1);
    step(2);
  }
  EXPECT_EQ(driver.num_graphs(), 2u);
  step(1);
  step(4);  // in place of the graph of two rows
  EXPECT_EQ(graphs.counts().evicted, 1);
  EXPECT_EQ(driver.num_graphs(), 1u);
  const int64_t launched = graphs.counts().launched;
  step(1);
  EXPECT_EQ(graphs.counts().launched, launched + 1);
  step(2);
  EXPECT_EQ(graphs.counts().launched, launched + 1);
  EXPECT_EQ(graphs.counts().evicted, 2);
}

TEST(StepGraphs, BuildsAnewWhereTheDriverCannotUpdate) {
  ExecutingDriver driver;
  StepGraphs graphs(driver);
  int64_t memory[40] = {};
  for (int8_t i = 0; i < 6; ++i) {
    driver.updates_work = i % 2 == 0;
    graphs.BeginStep(1);
    graphs.Run(FourKernels(memory, i));
    EXPECT_EQ(memory[20], -(i * 3 + 5 + 8) + i);
    EXPECT_LE(driver.num_graphs(), 1u);
  }
  // The second step's, then the fourth's and the sixth's.
  EXPECT_EQ(graphs.counts().built, 3);
}

TEST(StepGraphs, GoesOnWithoutGraphsWhereTheDriverHasNoRoom) {
  ExecutingDriver driver;
  driver.room = 0;
  StepGraphs graphs(driver);
  int64_t memory[40] = {};
  for (int8_t i = 0; i < 4; ++i) {
    graphs.BeginStep(1);
    graphs.Run(FourKernels(memory, i));
    EXPECT_EQ(memory[20], -(i * 3 + 5 + 8) + i);
  }
  EXPECT_EQ(graphs.counts().plain, 4);
  EXPECT_EQ(graphs.counts().built, 0);
}

// Steps of a few shapes with arguments drawn anew, against the same launches made one by one.
TEST(StepGraphs, ReplaysGiveWhatPlainLaunchesGive) {
  constexpr int64_t kWords = 256;
  std::mt19937 random(5);
  const auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random);
  };
  ExecutingDriver driver;
  ExecutingDriver plain;
  StepGraphsOptions options;
  options.most_graphs = 6;
  StepGraphs graphs(driver, options);
  std::vector<int64_t> memory(kWords);
  std::vector<int64_t> expected(kWords);
  std::vector<int32_t> rows(32);
  for (int step = 0; step < 3000; ++step) {
    const int64_t shape = below(4);
    graphs.BeginStep(1 + below(4));
    for (int64_t s = 0; s <= shape % 2; ++s) {
      for (int32_t& row : rows) row = static_cast<int32_t>(below(64));
      // The same launches on two memories.
      const auto draws = random;
      const auto record = [&](int64_t* words, Recorder& recorder) {
        const auto some = [&] { return words + 64 + below(4) * 40; };
        auto* staged = reinterpret_cast<int32_t*>(words);
        recorder.segment().upload = {staged, rows.data(), static_cast<int64_t>(4 * (1 + shape))};
        const auto blocks = static_cast<uint32_t>(1 + shape);
        Record(recorder, Gather, blocks, 1, 0, words + 64, staged, some());
        for (int64_t i = 0; i < 3 + shape; ++i) {
          if ((shape + i) % 3 == 0) {
            Record(recorder, Fill, blocks, 2, 0, some(), static_cast<int8_t>(below(3)));
          } else {
            Record(recorder, Affine, blocks, 4, static_cast<size_t>(below(2)), some(), some(),
                   Term{static_cast<int8_t>(below(3) - 1), below(2)});
          }
        }
      };
      Recorder mine(nullptr);
      record(memory.data(), mine);
      random = draws;
      Recorder theirs(nullptr);
      record(expected.data(), theirs);
      graphs.Run(mine.segment());
      plain.Launch(theirs.segment());
      ASSERT_EQ(memory, expected) << "step " << step;
    }
  }
  EXPECT_GT(graphs.counts().launched, 1000);
  EXPECT_GT(graphs.counts().updated_nodes, 1000);
  EXPECT_GT(graphs.counts().evicted, 10);
}

}  // namespace
}  // namespace phalanx::kernels::cuda
