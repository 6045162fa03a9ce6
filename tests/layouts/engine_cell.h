// One cell of the exactness matrix: a request run through the whole engine (coordinator, scheduler,
// ranks as threads) under a layout and circumstances that must not change a bit of its answer.
#ifndef PHALANX_TESTS_LAYOUTS_ENGINE_CELL_H_
#define PHALANX_TESTS_LAYOUTS_ENGINE_CELL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "kernels/kernels.h"
#include "parallel/mesh.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::testing {

enum class Sampling { kGreedy, kSeeded, kStopped };
inline const char* const kSamplingNames[] = {"greedy", "seeded", "stopped"};

struct Cell {
  std::string model;  // directory, from the repository's root
  Sampling sampling = Sampling::kGreedy;
  parallel::Layout layout = {};
  int threads = 1;
  int64_t chunk = 0;         // 0: whole prompts
  bool crowd = false;        // among 15 other requests
  bool tight = false;        // KV memory so small that the request is preempted
  bool prefix = false;       // its prompt's blocks are cached
  bool cancelled = false;    // a request with the same prompt is cancelled while it runs
  bool long_prompt = false;  // every KV stripe holds some of it
  int n = 1;
  bool prompt_logprobs = false;
  int64_t shard_rows = 32;  // rows from which the residual stream is sharded by token
  kernels::CpuPath path = kernels::AvailableCpuPaths().back();
  // Of the reference, too.
  kernels::WeightFormat weights = kernels::WeightFormat::kPlain;
  kernels::KvFormat kv = kernels::KvFormat::kPlain;

  std::string Name() const;
};

struct Sample {
  std::vector<scheduler::TokenLogprobs> tokens;
  std::string text;
  coordinator::FinishReason finish = coordinator::FinishReason::kNone;
};

struct Answer {
  std::vector<Sample> samples;
  std::vector<scheduler::TokenLogprobs> prompt_logprobs;
  absl::Status status;
  coordinator::Usage usage;
};

// Whether a cell of this layout can be `tight`: where a preemption can be brought about for sure.
bool CanBeTight(const parallel::Layout& layout);

// The answers of one reference layout (one rank, one thread, alone), and cells against them.
class EngineCells {
 public:
  // New tokens that a request asks for.
  static constexpr int64_t kNewTokens = 36;

  // tp=1, one thread, alone; computed once.
  const Answer& Reference(const Cell& cell);
  // Runs the cell. Empty when its answer equals the reference bit for bit and what the cell wants
  // to happen (preemption, prefix hit) has happened; else what is wrong. `found`: may be null.
  std::string Check(const Cell& cell, Answer* found = nullptr);

 private:
  // What is constant for one model.
  struct Fixture {
    int64_t vocab = 0;
    int64_t context = 0;
    std::unique_ptr<tokenizer::Tokenizer> tokenizer;  // null: the directory has none
    std::vector<int32_t> eos;
    std::vector<int32_t> prompt;
    std::vector<int32_t> long_prompt;
    std::string stop_string;     // occurs in the unstopped seeded answer
    int32_t stop_token_id = -1;  // likewise, where there is no tokenizer
  };

  const Fixture& FixtureOf(const std::string& model);
  static coordinator::GenerateRequest MakeRequest(const Cell& cell, const Fixture& fixture);
  static Answer Run(const Cell& cell, const Fixture& fixture);

  std::map<std::string, Fixture> fixtures_;
  std::map<std::tuple<std::string, Sampling, int, bool, kernels::WeightFormat, kernels::KvFormat>,
           Answer>
      references_;
};

// Empty when equal, else where they first differ.
std::string Difference(const std::vector<scheduler::TokenLogprobs>& expected,
                       const std::vector<scheduler::TokenLogprobs>& found);

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_LAYOUTS_ENGINE_CELL_H_
