#include "tests/layouts/engine_cell.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/serving/text_decoder.h"
#include "runtime/worker/in_process_group.h"

namespace phalanx::testing {

using coordinator::Event;
using coordinator::GenerateRequest;
using scheduler::TokenLogprobs;

namespace {

// How a preemption is brought about. 90 prompt tokens are 3 blocks of 32. In a pool of 7 the elder
// takes the only spare block for its 7th new token, so the younger request waits, and takes one of
// the younger's for its 39th. Where the blocks lie on several ranks, 250 prompt tokens are 8
// blocks, one of every stripe, and each rank has one to spare: the elder's next two, 8 and 9, lie
// on the first rank.
constexpr int64_t kPromptTokens = 90;
constexpr int64_t kLongPromptTokens = 250;
constexpr int64_t kElderTokens = 44;
constexpr int64_t kTightBlocks = 7;
constexpr int64_t kRoomyBlocks = 160;
constexpr int64_t kStripes = 8;

int64_t TightBlocks(const Cell& cell) {
  return cell.long_prompt ? 2 * (kStripes / cell.layout.sp) + 1 : kTightBlocks;
}

std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t length, int64_t vocab) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(length);
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + rng() % (vocab - 3));
  return ids;
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

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }

}  // namespace

bool CanBeTight(const parallel::Layout& layout) {
  return layout.sp == 1 || layout.sp == 2 || layout.sp == 4;
}

std::string Cell::Name() const {
  return absl::StrCat(
      model.substr(model.rfind('/') + 1), " ", kSamplingNames[static_cast<int>(sampling)], " ",
      layout.ToString(), " threads=", threads, " chunk=", chunk == 0 ? "all" : absl::StrCat(chunk),
      crowd ? " among-15" : " alone", tight ? " preempted" : "", prefix ? " prefix-hit" : "",
      cancelled ? " other-cancelled" : "", long_prompt ? " long" : "", " n=", n,
      prompt_logprobs ? " prompt-logprobs" : "",
      shard_rows == 32 ? "" : absl::StrCat(" shard-rows=", shard_rows),
      " path=", std::string(kernels::Name(path)),
      weights == kernels::WeightFormat::kF8E4M3 ? " weights=F8_E4M3" : "",
      kv == kernels::KvFormat::kF8E4M3 ? " kv=F8_E4M3" : "");
}

GenerateRequest EngineCells::MakeRequest(const Cell& cell, const Fixture& fixture) {
  GenerateRequest request;
  request.prompt_token_ids = cell.long_prompt ? fixture.long_prompt : fixture.prompt;
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

Answer EngineCells::Run(const Cell& cell, const Fixture& fixture) {
  Answer answer;
  answer.samples.resize(cell.n);
  worker::WorkerOptions options;
  options.model_directory = absl::StrCat(PHALANX_SOURCE_DIR, "/", cell.model);
  options.layout = cell.layout;
  options.shard_rows = cell.shard_rows;
  options.device.cpu.threads = cell.threads;
  options.device.cpu.path = cell.path;
  options.profile.weight_format = cell.weights;
  options.profile.kv = cell.kv;
  options.kv_blocks = cell.tight ? TightBlocks(cell) : kRoomyBlocks;
  coordinator::CoordinatorOptions service;
  service.limits.vocab_size = fixture.vocab;
  service.limits.max_context = fixture.context;
  service.eos_token_ids = fixture.eos;
  service.scheduler.max_batch_tokens = options.max_step_tokens;
  service.scheduler.prefill_chunk = cell.chunk;
  service.scheduler.look_ahead = true;
  service.scheduler.max_context = fixture.context;
  if (fixture.tokenizer != nullptr) {
    service.text_decoder = serving::MakeTextDecoderFactory(*fixture.tokenizer);
  }
  std::vector<std::unique_ptr<coordinator::WorkerGroup>> replicas;
  for (int i = 0; i < cell.layout.dp; ++i) {
    replicas.push_back(worker::CreateInProcessGroup(options));
  }
  coordinator::Coordinator coordinator(std::move(service), std::move(replicas));
  answer.status = coordinator.Start();
  if (!answer.status.ok()) return answer;

  const std::vector<int32_t>& prompt = cell.long_prompt ? fixture.long_prompt : fixture.prompt;
  // Each replica's elder has a prompt of its own, or all would go where the first one is.
  const auto elder_prompt = [&](int replica) {
    return RandomPrompt(60 + replica, static_cast<int64_t>(prompt.size()), fixture.vocab);
  };
  // Leaves a prompt's blocks behind.
  const auto warm = [&](const std::vector<int32_t>& ids) {
    Latch ended;
    GenerateRequest request;
    request.prompt_token_ids = ids;
    request.max_tokens = 1;
    request.ignore_eos = true;
    const auto accepted = coordinator.Submit(request, [&](const Event& event) {
      if (event.done) ended.Open();
    });
    answer.status.Update(accepted.status());
    if (accepted.ok()) ended.Wait();
  };
  if (cell.prefix) {
    warm(prompt);
    // The elder must not lag behind because its prompt is the longer one to compute.
    if (cell.tight) warm(elder_prompt(0));
    if (!answer.status.ok()) return answer;
  }
  // These requests, one on each replica, hold the loop threads until all others are queued, so that
  // when a request comes never depends on the machine's load. Each asks for much, so that the
  // router sends it to the replica that has none yet.
  std::vector<Latch> holding(cell.layout.dp);
  Latch queued;
  Latch done;
  for (Latch& held : holding) {
    GenerateRequest gate;
    gate.id = absl::StrCat("gate ", &held - holding.data());
    gate.prompt_token_ids = RandomPrompt(5, 8, fixture.vocab);
    gate.max_tokens = 4 * kNewTokens;
    gate.ignore_eos = true;
    const auto handle = coordinator.Submit(gate, [&, id = gate.id](const Event& event) {
      if (event.outputs.empty() || event.done) return;
      held.Open();
      queued.Wait();
      coordinator.Cancel(id);
    });
    answer.status.Update(handle.status());
    if (!handle.ok()) {
      queued.Open();
      return answer;
    }
  }
  for (Latch& held : holding) held.Wait();

  const auto add = [&](GenerateRequest request, const coordinator::EventCallback& callback) {
    const auto accepted = coordinator.Submit(std::move(request), callback);
    if (!accepted.ok()) answer.status = accepted.status();
  };
  const auto ignore = [](const Event&) {};
  // The elder (one on each replica) comes before the request: when the pool runs out, the younger
  // one has to go.
  for (int i = 0; (cell.crowd || cell.tight) && i < cell.layout.dp; ++i) {
    GenerateRequest elder;
    elder.prompt_token_ids = elder_prompt(i);
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
  // Cancelled from its own first token, so surely while it runs.
  Latch cancelled;
  if (cell.cancelled) {
    GenerateRequest other = MakeRequest(cell, fixture);
    other.max_tokens = 4 * kNewTokens;
    other.id = "to be cancelled";
    other.n = 1;
    other.stop.clear();
    other.stop_token_ids.clear();
    add(other, [&](const Event& event) {
      if (!event.outputs.empty()) coordinator.Cancel("to be cancelled");
      if (event.done) {
        if (!absl::IsCancelled(event.status)) answer.status = event.status;
        cancelled.Open();
      }
    });
  }
  const bool accepted = answer.status.ok();
  queued.Open();
  if (accepted && cell.cancelled) cancelled.Wait();
  if (accepted) done.Wait();
  coordinator.Stop();
  return answer;
}

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

const EngineCells::Fixture& EngineCells::FixtureOf(const std::string& model) {
  const auto [found, inserted] = fixtures_.try_emplace(model);
  Fixture& fixture = found->second;
  if (!inserted) return fixture;
  const std::string directory = absl::StrCat(PHALANX_SOURCE_DIR, "/", model);
  const auto checkpoint = checkpoint::Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return fixture;
  const auto& config = (*checkpoint)->config();
  fixture.vocab = config.vocab_size;
  fixture.context = config.max_position_embeddings;
  fixture.eos.assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  fixture.prompt = RandomPrompt(1, kPromptTokens, fixture.vocab);
  fixture.long_prompt = RandomPrompt(2, kLongPromptTokens, fixture.vocab);
  auto tokenizer = tokenizer::Tokenizer::Load(directory);
  if (tokenizer.ok()) fixture.tokenizer = *std::move(tokenizer);
  Cell seeded;
  seeded.model = model;
  seeded.sampling = Sampling::kSeeded;
  const Answer answer = Run(seeded, fixture);
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

const Answer& EngineCells::Reference(const Cell& cell) {
  const auto key =
      std::make_tuple(cell.model, cell.sampling, cell.n, cell.long_prompt, cell.weights, cell.kv);
  const auto found = references_.find(key);
  if (found != references_.end()) return found->second;
  Cell reference;
  reference.model = cell.model;
  reference.sampling = cell.sampling;
  reference.n = cell.n;
  reference.long_prompt = cell.long_prompt;
  reference.weights = cell.weights;
  reference.kv = cell.kv;
  reference.prompt_logprobs = true;
  return references_.emplace(key, Run(reference, FixtureOf(cell.model))).first->second;
}

std::string EngineCells::Check(const Cell& cell, Answer* out) {
  const Answer& expected = Reference(cell);
  if (!expected.status.ok()) return absl::StrCat("the reference: ", expected.status.ToString());
  Answer found = Run(cell, FixtureOf(cell.model));
  std::string wrong;
  if (!found.status.ok()) {
    wrong = found.status.ToString();
  } else {
    for (int i = 0; i < cell.n; ++i) {
      const std::string difference =
          Difference(expected.samples[i].tokens, found.samples[i].tokens);
      if (!difference.empty()) absl::StrAppend(&wrong, "sample ", i, ": ", difference, "; ");
      if (found.samples[i].text != expected.samples[i].text ||
          found.samples[i].finish != expected.samples[i].finish) {
        absl::StrAppend(&wrong, "sample ", i, ": another text or end; ");
      }
    }
    if (cell.prompt_logprobs) {
      const std::string difference = Difference(expected.prompt_logprobs, found.prompt_logprobs);
      if (!difference.empty()) absl::StrAppend(&wrong, "prompt: ", difference, "; ");
    }
    if (cell.tight && found.usage.preemptions == 0) wrong += "it was not preempted; ";
    if (cell.prefix && found.usage.cached_tokens == 0) wrong += "there was no prefix hit; ";
  }
  if (out != nullptr) *out = std::move(found);
  return wrong;
}

}  // namespace phalanx::testing
