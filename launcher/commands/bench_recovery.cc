// `phalanx bench recovery`: from a rank's SIGKILL to the next token of a request that was running,
// and where the time goes.

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "launcher/commands/bench.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"
#include "launcher/measure.h"
#include "launcher/options.h"
#include "launcher/planning.h"
#include "launcher/random_checkpoint.h"
#include "launcher/scratch_directory.h"
#include "launcher/service.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

struct RecoveryBenchOptions {
  ServiceOptions service;
  int prompt_tokens = 64;
  int repeats = 9;
  int victim = -1;  // rank; -1: the last
  bool cold = false;
  bool json = false;
};

// 1.02 GB in BF16.
constexpr char kConfig[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
  "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8,
  "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
  "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
  "torch_dtype": "bfloat16"})";
constexpr int kVocabulary = 32000;
constexpr int kTokensBefore = 8;  // of the request, when the rank is killed
constexpr absl::Duration kPatience = absl::Minutes(2);

// Any text will do.
void WriteTokenizer(const std::string& directory) {
  nlohmann::json vocabulary = nlohmann::json::object();
  for (int i = 0; i < kVocabulary; ++i) vocabulary[absl::StrCat("t", i)] = i;
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", nlohmann::json::array()}}}};
  std::ofstream(directory + "/tokenizer.json") << tokenizer.dump();
}

// When each token of one request came.
class Tokens {
 public:
  void On(const coordinator::Event& event) {
    const absl::Time now = absl::Now();
    absl::MutexLock lock(&mutex_);
    for (const coordinator::SampleOutput& output : event.outputs) {
      times_.insert(times_.end(), output.tokens.size(), now);
    }
    if (event.done) {
      done_ = true;
      status_ = event.status;
    }
  }
  // Until `count` tokens are there. UNAVAILABLE: the request has ended, or nothing comes.
  absl::Status Await(size_t count) {
    const auto there = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return done_ || times_.size() >= count;
    };
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
    if (times_.size() >= count) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(
        "the request gave ", times_.size(), " tokens, not ", count,
        done_ ? absl::StrCat(", and ended: ", status_.message()) : ", and no more came"));
  }
  void AwaitEnd() {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&done_), kPatience);
  }
  size_t count() {
    absl::MutexLock lock(&mutex_);
    return times_.size();
  }
  // The first token at or after `time`; InfiniteFuture: none yet.
  absl::Time FirstFrom(absl::Time time) {
    absl::MutexLock lock(&mutex_);
    for (const absl::Time token : times_) {
      if (token >= time) return token;
    }
    return absl::InfiniteFuture();
  }

 private:
  absl::Mutex mutex_;
  std::vector<absl::Time> times_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// The parts of one recovery in ms, in the order in which they pass. Those of ranks: of the slowest.
const std::vector<std::string>& PartNames() {
  static const auto* names = new std::vector<std::string>{
      "death noticed",     "old group fenced", "new group prepared", "mpirun and exec",
      "MPI_Init",          "rank opened",      "rank registered",    "weights",
      "contents compared", "KV cache",         "said and heard",     "first token"};
  return *names;
}

struct Sample {
  double total_ms = 0;  // from the kill to the first token of the new group
  std::vector<double> parts_ms;
  // To the first token of a request of as many tokens, in the group that is up: the part of "first
  // token" that is computing.
  double undisturbed_ms = 0;
  bool mapped = true;  // every rank found its weights kept
};

double Ms(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

Sample MakeSample(absl::Time killed, const coordinator::ReplicaStatus& status, absl::Time token) {
  const coordinator::Recovery& recovery = *status.last_recovery;
  Sample out;
  out.total_ms = Ms(token - killed);
  coordinator::RankTimes slowest;
  for (const coordinator::RankInfo& rank : status.group.ranks) {
    if (rank.times.total >= slowest.total) slowest = rank.times;
    out.mapped &= rank.times.weights_were_kept;
  }
  const absl::Duration known = slowest.mpi_init + slowest.open + slowest.registers +
                               slowest.weights + slowest.agreement + slowest.kv;
  const absl::Duration rest = slowest.total - known;
  out.parts_ms = {Ms(recovery.noticed - killed),
                  Ms(recovery.fenced - recovery.noticed),
                  Ms(recovery.started - recovery.fenced),
                  Ms(recovery.up - recovery.started - slowest.total),
                  Ms(slowest.mpi_init),
                  Ms(slowest.open),
                  Ms(slowest.registers),
                  Ms(slowest.weights),
                  Ms(slowest.agreement),
                  Ms(slowest.kv),
                  Ms(rest),
                  Ms(token - recovery.up)};
  return out;
}

coordinator::GenerateRequest MakeRequest(int prompt_tokens) {
  coordinator::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.prompt_token_ids.push_back(3 + (i * 37) % 1000);
  }
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  return request;
}

absl::StatusOr<double> TimeToFirstToken(int prompt_tokens, Service& service) {
  Tokens tokens;
  coordinator::GenerateRequest request = MakeRequest(prompt_tokens);
  request.max_tokens = 1;
  request.cache_salt = RandomToken();  // nothing of it is cached
  const absl::Time begin = absl::Now();
  const auto handle = service.coordinator().Submit(
      request, [&tokens](const coordinator::Event& event) { tokens.On(event); });
  if (!handle.ok()) return handle.status();
  const absl::Status status = tokens.Await(1);
  tokens.AwaitEnd();
  if (!status.ok()) return status;
  return Ms(tokens.FirstFrom(begin) - begin);
}

absl::StatusOr<Sample> KillOnce(const RecoveryBenchOptions& options, Service& service) {
  Tokens tokens;
  const coordinator::GenerateRequest request = MakeRequest(options.prompt_tokens);
  const auto handle = service.coordinator().Submit(
      request, [&tokens](const coordinator::Event& event) { tokens.On(event); });
  if (!handle.ok()) return handle.status();
  const auto measure = [&]() -> absl::StatusOr<Sample> {
    if (absl::Status status = tokens.Await(kTokensBefore); !status.ok()) return status;
    const coordinator::ReplicaStatus before = service.coordinator().GetStatus().replicas[0];
    const auto& ranks = before.group.ranks;
    const size_t victim = options.victim < 0 ? ranks.size() - 1 : options.victim;
    if (victim >= ranks.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--rank ", options.victim, ": there are ", ranks.size(), " ranks"));
    }
    const absl::Time killed = absl::Now();
    if (kill(static_cast<pid_t>(ranks[victim].pid), SIGKILL) != 0) {
      return absl::InternalError("the rank is not there to be killed");
    }
    // What was on its way still comes; then the new group's first.
    const absl::Time deadline = killed + kPatience;
    while (absl::Now() < deadline) {
      if (absl::Status status = tokens.Await(tokens.count() + 1); !status.ok()) return status;
      const coordinator::ReplicaStatus after = service.coordinator().GetStatus().replicas[0];
      if (after.recoveries == before.recoveries || !after.last_recovery.has_value()) continue;
      const absl::Time token = tokens.FirstFrom(after.last_recovery->up);
      if (token != absl::InfiniteFuture()) return MakeSample(killed, after, token);
    }
    return absl::DeadlineExceededError("no recovery");
  };
  absl::StatusOr<Sample> sample = measure();
  service.coordinator().Cancel(handle->id);
  tokens.AwaitEnd();
  if (!sample.ok()) return sample;
  const absl::StatusOr<double> undisturbed =
      TimeToFirstToken(options.prompt_tokens + kTokensBefore, service);
  if (!undisturbed.ok()) return undisturbed.status();
  sample->undisturbed_ms = *undisturbed;
  return sample;
}

absl::StatusOr<std::vector<Sample>> Measure(RecoveryBenchOptions options, bool keep) {
  options.service.rank.keep_weights = keep;
  auto service = Service::Create(options.service, {}, /*one_process_by_default=*/false);
  if (!service.ok()) return service.status();
  if (absl::Status status = (*service)->Start(); !status.ok()) return status;
  std::vector<Sample> samples;
  // The first is for what a machine does only once.
  for (int i = -1; i < options.repeats; ++i) {
    absl::StatusOr<Sample> sample = KillOnce(options, **service);
    if (!sample.ok()) return sample.status();
    spdlog::info("{} ms{}", static_cast<int64_t>(sample->total_ms), i < 0 ? ", not counted" : "");
    if (keep && !sample->mapped) spdlog::warn("a rank packed its weights again");
    if (i >= 0) samples.push_back(*std::move(sample));
  }
  (*service)->Stop();
  return samples;
}

struct Spread {
  double least = 0;
  double median = 0;
  double most = 0;
};

Spread SpreadOf(const std::vector<Sample>& samples,
                const std::function<double(const Sample&)>& value) {
  std::vector<double> values;
  values.reserve(samples.size());
  for (const Sample& sample : samples) values.push_back(value(sample));
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {values.front(), median, values.back()};
}

nlohmann::json ToJson(const Spread& spread) {
  return {{"min", spread.least}, {"median", spread.median}, {"max", spread.most}};
}

nlohmann::json ToJson(const std::vector<Sample>& samples) {
  nlohmann::json out;
  out["kill_to_next_token_ms"] =
      ToJson(SpreadOf(samples, [](const Sample& sample) { return sample.total_ms; }));
  for (size_t p = 0; p < PartNames().size(); ++p) {
    out["parts_ms"].push_back(
        {{"part", PartNames()[p]},
         {"ms", ToJson(SpreadOf(samples, [p](const Sample& s) { return s.parts_ms[p]; }))}});
  }
  out["undisturbed_first_token_ms"] =
      ToJson(SpreadOf(samples, [](const Sample& sample) { return sample.undisturbed_ms; }));
  for (const Sample& sample : samples) out["samples_ms"].push_back(sample.total_ms);
  out["mapped"] = std::all_of(samples.begin(), samples.end(),
                              [](const Sample& sample) { return sample.mapped; });
  return out;
}

std::string Cell(const std::vector<Sample>& samples,
                 const std::function<double(const Sample&)>& value) {
  if (samples.empty()) return "";
  const Spread spread = SpreadOf(samples, value);
  return absl::StrFormat("%.0f [%.0f, %.0f]", spread.median, spread.least, spread.most);
}

absl::Status RunRecoveryBench(RecoveryBenchOptions options) {
  const ScratchDirectory scratch("bench recovery");
  if (options.service.rank.model.empty()) {
    absl::Status written = WriteRandomCheckpoint(scratch.path(), kConfig, 1);
    if (!written.ok()) return written;
    WriteTokenizer(scratch.path());
    options.service.rank.model = scratch.path();
  }
  options.service.workers = "mpirun";
  const ForeignLoad others;
  absl::StatusOr<std::vector<Sample>> warm = Measure(options, /*keep=*/true);
  absl::StatusOr<std::vector<Sample>> cold = std::vector<Sample>();
  if (warm.ok() && options.cold) cold = Measure(options, /*keep=*/false);
  const double busy = others.Cores();
  if (!warm.ok()) return warm.status();
  if (!cold.ok()) return cold.status();

  if (options.json) {
    nlohmann::json out;
    out["layout"] = options.service.rank.layout;
    out["prompt_tokens"] = options.prompt_tokens;
    out["repeats"] = options.repeats;
    out["cores"] = AvailableCores();
    out["foreign_cores"] = busy;
    out["kept"] = ToJson(*warm);
    if (options.cold) out["packed_again"] = ToJson(*cold);
    std::cout << out.dump() << "\n";
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat("%-22s %22s %22s\n", options.service.rank.layout + ", ms",
                               "weights kept", options.cold ? "packed again" : "");
  for (size_t p = 0; p < PartNames().size(); ++p) {
    const auto part = [p](const Sample& sample) { return sample.parts_ms[p]; };
    std::cout << absl::StrFormat("%-22s %22s %22s\n", PartNames()[p], Cell(*warm, part),
                                 Cell(*cold, part));
  }
  const auto total = [](const Sample& sample) { return sample.total_ms; };
  std::cout << absl::StrFormat("%-22s %22s %22s\n", "kill to next token", Cell(*warm, total),
                               Cell(*cold, total));
  const auto undisturbed = [](const Sample& sample) { return sample.undisturbed_ms; };
  std::cout << absl::StrFormat("%-22s %22s %22s\n", "undisturbed, to first",
                               Cell(*warm, undisturbed), Cell(*cold, undisturbed));
  std::cout << absl::StrFormat(
      "medians of %d [least, most]; of the slowest rank where ranks differ. Other processes were "
      "busy on %.2f of %d cores meanwhile.\n",
      options.repeats, busy, AvailableCores());
  return absl::OkStatus();
}

}  // namespace

void AddBenchRecoveryCommand(CLI::App& bench, Command* run) {
  CLI::App* app = bench.add_subcommand(
      "recovery", "From kill -9 of a rank to the next token of a running request, by parts");
  auto options = std::make_shared<RecoveryBenchOptions>();
  options->service.rank.layout = "tp=2";
  app->add_option("--model", options->service.rank.model,
                  "Checkpoint directory (default: random weights of 1 GB)");
  app->add_option("--layout", options->service.rank.layout, "Axes of one replica")
      ->capture_default_str();
  app->add_option("--threads", options->service.rank.threads,
                  "Compute threads per rank (default: cores / ranks)")
      ->check(CLI::Range(0, 1024));
  AddDeviceOptions(*app, options->service.rank);
  app->add_option("--kv-memory", options->service.rank.kv_memory,
                  "KV memory of a rank (default: as serve)");
  app->add_option("--prompt-tokens", options->prompt_tokens, "Of the request that is running")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app->add_option("--rank", options->victim, "Which rank is killed (default: the last)");
  app->add_option("--repeats", options->repeats, "Deaths that count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_option("--mpirun-arg", options->service.mpirun_args, "For mpirun, several times");
  app->add_flag("--cold", options->cold, "Also without the keeper of packed weights");
  app->add_flag("--json", options->json, "One JSON object");
  app->callback([app, options, run] {
    *run = [app, options] {
      absl::Status status = CheckDeviceFlags(*app, options->service.rank);
      if (status.ok()) status = RunRecoveryBench(*options);
      return status.ok() ? kExitDone : Fail("bench recovery", status);
    };
  });
}

}  // namespace phalanx::launcher
