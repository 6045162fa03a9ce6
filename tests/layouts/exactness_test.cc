// The promise (section 1 of the design) as one matrix: whatever the layout, threads, neighbours,
// chunking, preemption, prefix hits, samples and kernel path, the same token ids and the same
// logprob bits. Every axis value is run by itself against the reference (tp=1, one thread, alone),
// then a seeded sample of the cross product.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/serving/text_decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/worker/in_process_group.h"

namespace phalanx {
namespace {

using coordinator::Event;
using coordinator::GenerateRequest;
using scheduler::TokenLogprobs;

// 90 prompt tokens are 3 blocks of 32. In a pool of 7 the elder takes the only spare block for its
// 7th new token, so the younger request waits, and takes one of the younger's for its 39th.
constexpr int64_t kPromptTokens = 90;
constexpr int64_t kNewTokens = 36;
constexpr int64_t kElderTokens = 44;
constexpr int64_t kTightBlocks = 7;
constexpr int64_t kRoomyBlocks = 160;
constexpr int kSampleCells = 40;

enum class Model { kDemoBf16, kMistralF32, kMistralF16 };
enum class Sampling { kGreedy, kSeeded, kStopped };

const char* const kModelNames[] = {"demo-bf16", "mistral-f32", "mistral-f16"};
const char* const kSamplingNames[] = {"greedy", "seeded", "stopped"};

std::string Directory(Model model) {
  const char* const directories[] = {"launcher/demo-model", "tests/goldens/models/mistral-full",
                                     "tests/goldens/models/mistral-full-f16"};
  return absl::StrCat(PHALANX_SOURCE_DIR, "/", directories[static_cast<int>(model)]);
}

struct Cell {
  Model model = Model::kDemoBf16;
  Sampling sampling = Sampling::kGreedy;
  int tp = 1;
  int threads = 1;
  int64_t chunk = 0;    // 0: whole prompts
  bool crowd = false;   // among 15 other requests
  bool tight = false;   // KV memory so small that the request is preempted
  bool prefix = false;  // its prompt's blocks are cached
  int n = 1;
  bool prompt_logprobs = false;
  kernels::CpuPath path = kernels::AvailableCpuPaths().back();

  std::string Name() const {
    return absl::StrCat(
        kModelNames[static_cast<int>(model)], " ", kSamplingNames[static_cast<int>(sampling)],
        " tp=", tp, " threads=", threads, " chunk=", chunk == 0 ? "all" : absl::StrCat(chunk),
        crowd ? " among-15" : " alone", tight ? " preempted" : "", prefix ? " prefix-hit" : "",
        " n=", n, prompt_logprobs ? " prompt-logprobs" : "",
        " path=", std::string(kernels::Name(path)));
  }
};

struct Sample {
  std::vector<TokenLogprobs> tokens;
  std::string text;
  coordinator::FinishReason finish = coordinator::FinishReason::kNone;
};

struct Answer {
  std::vector<Sample> samples;
  std::vector<TokenLogprobs> prompt_logprobs;
  absl::Status status;
  coordinator::Usage usage;
};

// What is constant for one model.
struct Fixture {
  int64_t vocab = 0;
  int64_t context = 0;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;  // null: the directory has none
  std::vector<int32_t> eos;
  std::vector<int32_t> prompt;
  std::string stop_string;     // occurs in the unstopped seeded answer
  int32_t stop_token_id = -1;  // likewise, where there is no tokenizer
};

std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t length, int64_t vocab) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(length);
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + rng() % (vocab - 3));
  return ids;
}

GenerateRequest MakeRequest(const Cell& cell, const Fixture& fixture) {
  GenerateRequest request;
  request.prompt_token_ids = fixture.prompt;
  request.max_tokens = kNewTokens;
  request.ignore_eos = true;
  request.n = cell.n;
  request.sampling.logprobs = 5;
  request.sampling.prompt_logprobs = cell.prompt_logprobs ? 2 : -1;
  request.seed = 20261121;
  if (cell.sampling == Sampling::kGreedy) {
    request.sampling.temperature = 0;
    return request;
  }
  request.sampling.temperature = 0.8f;
  request.sampling.top_p = 0.9f;
  request.sampling.repetition_penalty = 1.1f;
  request.sampling.frequency_penalty = 0.3f;
  request.sampling.presence_penalty = 0.2f;
  if (cell.sampling == Sampling::kStopped) {
    if (fixture.tokenizer != nullptr) {
      request.stop = {fixture.stop_string};
    } else {
      request.stop_token_ids = {fixture.stop_token_id};
    }
  }
  return request;
}

class Latch {
 public:
  void Open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

Answer RunCell(const Cell& cell, const Fixture& fixture) {
  Answer answer;
  answer.samples.resize(cell.n);
  worker::WorkerOptions options;
  options.model_directory = Directory(cell.model);
  options.layout.tp = cell.tp;
  options.cpu.threads = cell.threads;
  options.cpu.path = cell.path;
  options.kv_blocks = cell.tight ? kTightBlocks : kRoomyBlocks;
  coordinator::CoordinatorOptions service;
  service.limits.vocab_size = fixture.vocab;
  service.limits.max_context = fixture.context;
  service.eos_token_ids = fixture.eos;
  service.scheduler.max_batch_tokens = options.max_step_tokens;
  service.scheduler.prefill_chunk = cell.chunk;
  service.scheduler.max_context = fixture.context;
  if (fixture.tokenizer != nullptr) {
    service.text_decoder = serving::MakeTextDecoderFactory(*fixture.tokenizer);
  }
  coordinator::Coordinator coordinator(std::move(service), worker::CreateInProcessGroup(options));
  answer.status = coordinator.Start();
  if (!answer.status.ok()) return answer;

  const std::vector<int32_t> elder_prompt = RandomPrompt(6, kPromptTokens, fixture.vocab);
  if (cell.prefix && cell.tight) {
    // The elder must not lag behind because its prompt is the longer one to compute.
    GenerateRequest warm;
    warm.prompt_token_ids = elder_prompt;
    warm.max_tokens = 1;
    warm.ignore_eos = true;
    const auto accepted = coordinator.Submit(warm, [](const Event&) {});
    answer.status = accepted.status();
    if (!accepted.ok()) return answer;
  }
  // This request holds the loop thread until all others are queued, so that when a request
  // comes never depends on the machine's load. For a prefix hit it also leaves its prompt behind.
  Latch holding;
  Latch queued;
  Latch done;
  GenerateRequest gate;
  gate.prompt_token_ids = cell.prefix ? fixture.prompt : RandomPrompt(5, 8, fixture.vocab);
  gate.max_tokens = 1;
  gate.ignore_eos = true;
  auto handle = coordinator.Submit(gate, [&](const Event& event) {
    if (!event.done) return;
    holding.Open();
    queued.Wait();
  });
  answer.status = handle.status();
  if (!handle.ok()) return answer;
  holding.Wait();

  const auto add = [&](GenerateRequest request, const coordinator::EventCallback& callback) {
    const auto accepted = coordinator.Submit(std::move(request), callback);
    if (!accepted.ok()) answer.status = accepted.status();
  };
  const auto ignore = [](const Event&) {};
  // The elder comes before the request: when the pool runs out, the younger one has to go.
  if (cell.crowd || cell.tight) {
    GenerateRequest elder;
    elder.prompt_token_ids = elder_prompt;
    elder.max_tokens = kElderTokens;
    elder.ignore_eos = true;
    elder.sampling.temperature = 0;
    add(elder, ignore);
  }
  add(MakeRequest(cell, fixture), [&](const Event& event) {
    for (const coordinator::SampleOutput& output : event.outputs) {
      Sample& sample = answer.samples[output.sample_index];
      sample.tokens.insert(sample.tokens.end(), output.tokens.begin(), output.tokens.end());
      sample.text += output.text;
      sample.finish = output.finish;
    }
    if (!event.prompt_logprobs.empty()) answer.prompt_logprobs = event.prompt_logprobs;
    if (!event.done) return;
    answer.usage = event.usage;
    answer.status = event.status;
    done.Open();
  });
  for (uint32_t i = 0; cell.crowd && i < 14; ++i) {
    GenerateRequest other;
    other.prompt_token_ids = RandomPrompt(100 + i, 1 + i * 5, fixture.vocab);
    other.max_tokens = 2 + 2 * i;
    other.ignore_eos = true;
    other.sampling.temperature = i % 2 == 0 ? 0.0f : 1.3f;
    other.sampling.presence_penalty = i % 3 == 0 ? 0.0f : 0.5f;
    other.seed = i;
    add(other, ignore);
  }
  const bool accepted = answer.status.ok();
  queued.Open();
  if (accepted) done.Wait();
  coordinator.Stop();
  return answer;
}

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }

// Empty when equal, else where they first differ.
std::string Difference(const std::vector<TokenLogprobs>& expected,
                       const std::vector<TokenLogprobs>& found) {
  const auto text = [](const TokenLogprobs& t) {
    std::string out = absl::StrCat("id ", t.id, " logprob ");
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.9g", t.logprob);
    return out + digits;
  };
  for (size_t i = 0; i < std::min(expected.size(), found.size()); ++i) {
    const TokenLogprobs& a = expected[i];
    const TokenLogprobs& b = found[i];
    if (a.id != b.id || !SameBits(a.logprob, b.logprob)) {
      return absl::StrCat("token ", i, ": expected ", text(a), ", found ", text(b));
    }
    if (a.top.size() != b.top.size()) {
      return absl::StrCat("token ", i, ": expected ", a.top.size(), " top entries, found ",
                          b.top.size());
    }
    for (size_t k = 0; k < a.top.size(); ++k) {
      if (a.top[k].id != b.top[k].id || !SameBits(a.top[k].logprob, b.top[k].logprob)) {
        return absl::StrCat("token ", i, ": top entry ", k, " differs: expected id ", a.top[k].id,
                            ", found id ", b.top[k].id);
      }
    }
  }
  if (expected.size() != found.size()) {
    return absl::StrCat("expected ", expected.size(), " tokens, found ", found.size());
  }
  return "";
}

class Exactness : public ::testing::Test {
 protected:
  static Fixture& FixtureOf(Model model) {
    static auto* const fixtures = new std::map<Model, Fixture>();
    const auto [found, inserted] = fixtures->try_emplace(model);
    Fixture& fixture = found->second;
    if (!inserted) return fixture;
    const auto checkpoint = checkpoint::Checkpoint::Open(Directory(model));
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!checkpoint.ok()) return fixture;
    const auto& config = (*checkpoint)->config();
    fixture.vocab = config.vocab_size;
    fixture.context = config.max_position_embeddings;
    fixture.eos.assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
    fixture.prompt = RandomPrompt(1, kPromptTokens, fixture.vocab);
    if (model == Model::kDemoBf16) {
      auto tokenizer = tokenizer::Tokenizer::Load(Directory(model));
      EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
      if (tokenizer.ok()) fixture.tokenizer = *std::move(tokenizer);
    }
    Cell seeded;
    seeded.model = model;
    seeded.sampling = Sampling::kSeeded;
    const Answer answer = RunCell(seeded, fixture);
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    if (fixture.tokenizer != nullptr) {
      // Four ASCII bytes from the middle of the text are likely to lie across a token border.
      const std::string& text = answer.samples[0].text;
      size_t at = text.size() / 2;
      const auto ascii = [](char c) { return c >= ' ' && c <= '~'; };
      while (at + 4 <= text.size() && !std::all_of(&text[at], &text[at] + 4, ascii)) ++at;
      EXPECT_LE(at + 4, text.size()) << "no stop string in \"" << text << "\"";
      fixture.stop_string = text.substr(std::min(at, text.size()), 4);
    } else if (!answer.samples[0].tokens.empty()) {
      fixture.stop_token_id = answer.samples[0].tokens[answer.samples[0].tokens.size() / 2].id;
    }
    return fixture;
  }

  // tp=1, one thread, alone.
  static const Answer& ReferenceOf(const Cell& cell) {
    static auto* const answers = new std::map<std::tuple<Model, Sampling, int>, Answer>();
    const auto key = std::make_tuple(cell.model, cell.sampling, cell.n);
    const auto found = answers->find(key);
    if (found != answers->end()) return found->second;
    Cell reference;
    reference.model = cell.model;
    reference.sampling = cell.sampling;
    reference.n = cell.n;
    reference.prompt_logprobs = true;
    return answers->emplace(key, RunCell(reference, FixtureOf(cell.model))).first->second;
  }

  static void Check(const Cell& cell) {
    SCOPED_TRACE(cell.Name());
    const auto failures = [] {
      const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
      return info->result()->total_part_count();
    };
    const int failures_before = failures();
    const Fixture& fixture = FixtureOf(cell.model);
    const Answer& expected = ReferenceOf(cell);
    ASSERT_TRUE(expected.status.ok()) << expected.status;
    const Answer found = RunCell(cell, fixture);
    ASSERT_TRUE(found.status.ok()) << found.status;
    for (int i = 0; i < cell.n; ++i) {
      EXPECT_EQ(Difference(expected.samples[i].tokens, found.samples[i].tokens), "")
          << "sample " << i;
      EXPECT_EQ(found.samples[i].text, expected.samples[i].text) << "sample " << i;
      EXPECT_EQ(found.samples[i].finish, expected.samples[i].finish) << "sample " << i;
    }
    if (cell.prompt_logprobs) {
      EXPECT_EQ(found.prompt_logprobs.size(), fixture.prompt.size() - 1);
      EXPECT_EQ(Difference(expected.prompt_logprobs, found.prompt_logprobs), "") << "of the prompt";
    }
    if (cell.tight) {
      EXPECT_GT(found.usage.preemptions, 0);
    }
    if (cell.prefix) {
      EXPECT_GT(found.usage.cached_tokens, 0);
    }
    std::printf("  %-100s preemptions %d, cached %d: %s\n", cell.Name().c_str(),
                static_cast<int>(found.usage.preemptions),
                static_cast<int>(found.usage.cached_tokens),
                failures() > failures_before ? "DIFFERENT" : "equal");
    std::fflush(stdout);
  }

  static const std::vector<int>& Tps() {
    static const std::vector<int> tps = {1, 2, 3, 4, 5, 7, 8};
    return tps;
  }
};

TEST_F(Exactness, EachAxisByItselfChangesNoBit) {
  std::vector<Cell> cells;
  const auto add = [&](const auto& change) {
    Cell cell;
    change(cell);
    cells.push_back(cell);
  };
  for (const int tp : Tps()) add([&](Cell& c) { c.tp = tp; });
  for (const int64_t chunk : {1, 7, 64}) {
    add([&](Cell& c) { c.chunk = chunk, c.prompt_logprobs = true; });
  }
  for (const kernels::CpuPath path : kernels::AvailableCpuPaths()) {
    for (const Model model : {Model::kDemoBf16, Model::kMistralF32, Model::kMistralF16}) {
      add([&](Cell& c) { c.path = path, c.model = model; });
    }
  }
  for (const Sampling sampling : {Sampling::kGreedy, Sampling::kSeeded, Sampling::kStopped}) {
    add([&](Cell& c) { c.sampling = sampling, c.threads = 2; });
    add([&](Cell& c) { c.sampling = sampling, c.crowd = true; });
    add([&](Cell& c) { c.sampling = sampling, c.tight = true; });
    add([&](Cell& c) { c.sampling = sampling, c.prefix = true; });
    add([&](Cell& c) { c.sampling = sampling, c.n = 4, c.tp = 2; });
  }
  for (const Cell& cell : cells) Check(cell);
}

TEST_F(Exactness, ASeededSampleOfTheCrossProductChangesNoBit) {
  std::mt19937 rng(2026);
  const auto pick = [&](const auto& values) { return values[rng() % values.size()]; };
  for (int i = 0; i < kSampleCells; ++i) {
    Cell cell;
    cell.model = pick(std::vector<Model>{Model::kDemoBf16, Model::kMistralF32, Model::kMistralF16});
    cell.sampling =
        pick(std::vector<Sampling>{Sampling::kGreedy, Sampling::kSeeded, Sampling::kStopped});
    cell.tp = Tps()[i % Tps().size()];
    cell.threads = pick(std::vector<int>{1, 2});
    cell.chunk = pick(std::vector<int64_t>{1, 7, 64});
    cell.crowd = pick(std::vector<int>{0, 1}) != 0;
    cell.tight = pick(std::vector<int>{0, 1}) != 0;
    cell.prefix = pick(std::vector<int>{0, 1}) != 0;
    cell.n = pick(std::vector<int>{1, 4});
    // Rows that a prefix hit saves have no logprobs, so asking for them forgoes the hit.
    cell.prompt_logprobs = !cell.prefix && rng() % 2 == 0;
    cell.path = pick(kernels::AvailableCpuPaths());
    Check(cell);
  }
}

TEST_F(Exactness, TheFirstOfFourSamplesIsTheOnlySampleOfOne) {
  Cell four;
  four.sampling = Sampling::kSeeded;
  four.n = 4;
  Cell one = four;
  one.n = 1;
  const Answer& a = ReferenceOf(one);
  const Answer& b = ReferenceOf(four);
  ASSERT_TRUE(a.status.ok() && b.status.ok()) << a.status << b.status;
  EXPECT_EQ(Difference(a.samples[0].tokens, b.samples[0].tokens), "");
  EXPECT_NE(Difference(b.samples[0].tokens, b.samples[1].tokens), "");
}

TEST_F(Exactness, StopStringsEndTheReferenceEarly) {
  Cell stopped;
  stopped.sampling = Sampling::kStopped;
  const Answer& answer = ReferenceOf(stopped);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.samples[0].finish, coordinator::FinishReason::kStop);
  EXPECT_LT(answer.samples[0].tokens.size(), static_cast<size_t>(kNewTokens));
  EXPECT_GT(answer.samples[0].tokens.size(), 0u);
}

}  // namespace
}  // namespace phalanx
