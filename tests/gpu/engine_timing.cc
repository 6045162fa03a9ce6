#include "tests/gpu/engine_timing.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/kernels.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/worker/in_process_group.h"
#include "tests/gpu/made_checkpoint.h"
#include "tests/gpu/step_clock.h"

namespace phalanx::timing {
namespace {

using coordinator::GenerateRequest;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr int kWarmPrefills = 2;

// What is known of one plan.
struct PlanNote {
  int64_t sequences = 0;
  bool decode = true;  // each of them feeds one token
  bool ahead = false;  // it feeds what the plan before it chooses: it was made before that had run
  int64_t kv_tokens = 0;  // whose keys and values its attention reads
  SteadyTime finished;    // its result was there
};

struct PlanLog {
  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::vector<PlanNote> plans;
  size_t results = 0;
  bool failed = false;
  bool held = false;  // plans wait: not all requests of a run are there
};

class NotedGroup : public coordinator::WorkerGroup {
 public:
  NotedGroup(std::unique_ptr<coordinator::WorkerGroup> group, PlanLog& log)
      : group_(std::move(group)), log_(log) {}

  absl::StatusOr<coordinator::GroupInfo> Start(ResultCallback on_result) override {
    return group_->Start(
        [this, on_result = std::move(on_result)](absl::StatusOr<scheduler::StepResult> result) {
          const SteadyTime now = std::chrono::steady_clock::now();
          {
            const std::lock_guard<std::mutex> lock(log_.mutex);
            if (result.ok()) {
              log_.plans[log_.results++].finished = now;
            } else {
              log_.failed = true;
            }
            log_.changed.notify_all();
          }
          on_result(std::move(result));
        });
  }
  absl::Status Submit(scheduler::StepPlan plan) override {
    PlanNote note;
    note.sequences = static_cast<int64_t>(plan.sequences.size());
    for (const scheduler::SequenceStep& step : plan.sequences) {
      note.decode &= step.token_ids.size() == 1 && step.start > 0;
      note.ahead |= step.pending_slot >= 0;
      note.kv_tokens += step.start + static_cast<int64_t>(step.token_ids.size());
    }
    {
      std::unique_lock<std::mutex> lock(log_.mutex);
      log_.changed.wait(lock, [this] { return !log_.held; });
      log_.plans.push_back(note);
    }
    return group_->Submit(std::move(plan));
  }
  void Stop() override { group_->Stop(); }

 private:
  const std::unique_ptr<coordinator::WorkerGroup> group_;
  PlanLog& log_;
};

// What requests gave that ran at once.
struct Ran {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<double> first_token;  // seconds from each one's acceptance
  std::vector<PlanNote> plans;
  std::vector<DeviceStep> device;  // of each plan, where a clock ran
};

class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Start(worker::WorkerOptions options,
                                                       int64_t vocab_size, int64_t sequences) {
    std::unique_ptr<Engine> engine(new Engine());
    if (options.device.kind == kernels::DeviceKind::kCuda) {
      engine->clock_.emplace(options.device.cuda.device);
      options.device.cuda.observer = &*engine->clock_;
    }
    coordinator::CoordinatorOptions service;
    service.limits.vocab_size = vocab_size;
    service.limits.max_context = options.max_positions;
    service.scheduler.max_batch_tokens = options.max_step_tokens;
    service.scheduler.max_batch_sequences = sequences;
    service.scheduler.max_context = options.max_positions;
    service.scheduler.look_ahead = true;
    // Every prompt is computed.
    service.scheduler.prefix_reuse = false;
    engine->coordinator_.emplace(
        std::move(service),
        std::make_unique<NotedGroup>(worker::CreateInProcessGroup(options), engine->log_));
    if (absl::Status status = engine->coordinator_->Start(); !status.ok()) return status;
    return engine;
  }

  coordinator::GroupInfo group() const { return coordinator_->GetStatus().group; }
  bool has_clock() const { return clock_.has_value(); }

  absl::StatusOr<Ran> Run(const std::vector<GenerateRequest>& requests, bool on_clock) {
    if (clock_) clock_->TurnOn(on_clock);
    {
      const std::lock_guard<std::mutex> lock(log_.mutex);
      log_.plans.clear();
      log_.results = 0;
      // However long it takes to hand them over: they run at once.
      log_.held = true;
    }
    Ran ran;
    ran.tokens.resize(requests.size());
    ran.first_token.resize(requests.size());
    absl::Status failure;  // guarded by log_.mutex, as `open` is
    size_t open = requests.size();
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto accepted =
          coordinator_->Submit(requests[i], [&, i](const coordinator::Event& event) {
            for (const coordinator::SampleOutput& output : event.outputs) {
              for (const auto& token : output.tokens) ran.tokens[i].push_back(token.id);
            }
            if (!event.done) return;
            ran.first_token[i] = absl::ToDoubleSeconds(event.usage.time_to_first_token);
            const std::lock_guard<std::mutex> lock(log_.mutex);
            failure.Update(event.status);
            --open;
            log_.changed.notify_all();
          });
      if (accepted.ok()) continue;
      // The others' callbacks must not outlive this call.
      const std::lock_guard<std::mutex> lock(log_.mutex);
      failure.Update(accepted.status());
      open -= requests.size() - i;
      break;
    }
    std::unique_lock<std::mutex> lock(log_.mutex);
    log_.held = false;
    log_.changed.notify_all();
    log_.changed.wait(
        lock, [&] { return open == 0 && (log_.failed || log_.results == log_.plans.size()); });
    if (!failure.ok()) return failure;
    if (log_.failed) return absl::UnavailableError("the rank has failed");
    ran.plans = log_.plans;
    if (clock_ && on_clock) {
      ran.device = clock_->Take();
      if (ran.device.size() != ran.plans.size()) {
        return absl::InternalError(absl::StrCat("the device saw ", ran.device.size(), " steps of ",
                                                ran.plans.size(), " plans"));
      }
    }
    return ran;
  }

 private:
  Engine() = default;

  PlanLog log_;
  std::optional<StepClock> clock_;
  std::optional<coordinator::Coordinator> coordinator_;  // stops before what its rank uses goes
};

// Prompts without a common beginning.
GenerateRequest Request(int64_t index, int64_t prompt, int64_t new_tokens, int64_t vocab_size) {
  GenerateRequest request;
  for (int64_t i = 0; i < prompt; ++i) {
    request.prompt_token_ids.push_back(
        static_cast<int32_t>((index * 7919 + i * 31 + i * i % 17) % vocab_size));
  }
  request.max_tokens = new_tokens;
  request.ignore_eos = true;
  request.seed = 1;
  request.sampling.temperature = 0.0f;
  return request;
}

// The last `count` plans in which all of `sequences` decode, with those before them doing so, too.
absl::StatusOr<std::pair<size_t, size_t>> SteadyPlans(const std::vector<PlanNote>& plans,
                                                      int64_t sequences, int64_t count) {
  const auto steady = [&](size_t i) { return plans[i].decode && plans[i].sequences == sequences; };
  size_t end = plans.size();
  while (end > 0 && !steady(end - 1)) --end;
  size_t begin = end;
  while (begin > 0 && steady(begin - 1)) --begin;
  if (static_cast<int64_t>(end - begin) <= count) {
    return absl::InternalError(absl::StrCat("in ", end - begin, " steps of ", plans.size(), " all ",
                                            sequences, " sequences decode; ", count,
                                            " and one before them are wanted"));
  }
  return std::pair{end - static_cast<size_t>(count), end};
}

// Of windows of `steps` steps, seconds of one.
Times StepTimes(const std::vector<PlanNote>& plans, std::pair<size_t, size_t> steady,
                int64_t steps) {
  std::vector<double> seconds;
  for (size_t at = steady.first; at < steady.second; at += static_cast<size_t>(steps)) {
    const std::chrono::duration<double> window =
        plans[at + static_cast<size_t>(steps) - 1].finished - plans[at - 1].finished;
    seconds.push_back(window.count() / static_cast<double>(steps));
  }
  return TimesOf(seconds);
}

// What the device says of its steps [first, second).
Json DeviceTimes(const std::vector<DeviceStep>& all, std::pair<size_t, size_t> steady,
                 const Times& steps) {
  std::vector<double> spans, gaps;
  double whole = 0, idle = 0, waited = 0;
  int64_t late = 0, waits = 0;
  for (size_t i = steady.first; i < steady.second; ++i) {
    spans.push_back(all[i].span);
    gaps.push_back(all[i].gap);
    whole += all[i].gap + all[i].span;
    idle += all[i].gap;
    waited += all[i].waits;
    late += all[i].late ? 1 : 0;
    waits += all[i].num_waits;
  }
  return {{"steps", spans.size()},
          {"span", Microseconds(TimesOf(spans))},
          {"gap",
           {{"median", Percentile(gaps, 0.5) * 1e6},
            {"p99", Percentile(gaps, 0.99) * 1e6},
            {"most", Percentile(gaps, 1) * 1e6}}},
          {"idle_between_steps", whole > 0 ? idle / whole : 0},
          {"late_steps", late},
          {"waits_in_steps", waits},
          {"idle_in_waits", whole > 0 ? waited / whole : 0},
          {"step_on_clock", Microseconds(steps)}};
}

class EngineTiming {
 public:
  EngineTiming(const EngineTimingOptions& options, const checkpoint::ModelConfig& config,
               Engine& engine)
      : options_(options),
        config_(config),
        engine_(engine),
        kv_blocks_(engine.group().kv_blocks()),
        kv_token_bytes_(static_cast<double>(engine.group().ranks[0].kv_block_bytes) /
                        static_cast<double>(kernels::kBlockTokens)) {}

  absl::Status Decode(int64_t sequences, EngineFigures& out) {
    const int64_t count = options_.windows * options_.window_steps;
    const int64_t new_tokens = NewTokens(options_, sequences);
    // The scheduler admits no sequence that would leave less than a hundredth free.
    const int64_t blocks =
        sequences * ((options_.context + new_tokens) / kernels::kBlockTokens + 1) +
        std::max<int64_t>(1, kv_blocks_ / 100);
    Json& json = out.json["decode"].emplace_back(Json{{"sequences", sequences}});
    if (blocks > kv_blocks_) {
      json["left_out"] = absl::StrCat("the KV memory holds ", kv_blocks_, " blocks, and ",
                                      sequences, " sequences need ", blocks);
      return absl::OkStatus();
    }
    std::vector<GenerateRequest> requests;
    for (int64_t i = 0; i < sequences; ++i) {
      requests.push_back(Request(i, options_.context, new_tokens, config_.vocab_size));
    }
    if (absl::Status status = WarmUp(requests); !status.ok()) return status;
    absl::StatusOr<Ran> ran = engine_.Run(requests, /*on_clock=*/false);
    if (!ran.ok()) return ran.status();
    const auto steady = SteadyPlans(ran->plans, sequences, count);
    if (!steady.ok()) return steady.status();
    const Times times = StepTimes(ran->plans, *steady, options_.window_steps);
    json.update(Microseconds(times));
    json["steps"] = count;
    json["tokens_per_second"] = static_cast<double>(sequences) / times.median;
    double kv_tokens = 0;
    int64_t ahead = 0;
    for (size_t i = steady->first; i < steady->second; ++i) {
      kv_tokens += static_cast<double>(ran->plans[i].kv_tokens) / static_cast<double>(count);
      ahead += ran->plans[i].ahead ? 1 : 0;
    }
    json["mean_context"] = kv_tokens / static_cast<double>(sequences);
    json["steps_ahead"] = ahead;
    if (const std::optional<int64_t> weights = WeightsRead(config_, sequences)) {
      const double bytes = static_cast<double>(*weights * kernels::SizeOf(config_.weight_dtype)) +
                           kv_tokens * kv_token_bytes_;
      json["bytes_read"] = bytes;
      if (options_.read_bandwidth > 0) {
        json["of_read_bandwidth"] = bytes / times.median / options_.read_bandwidth;
      }
    }
    out.tokens.push_back(std::move(ran->tokens));
    if (!engine_.has_clock()) return absl::OkStatus();

    // The same once more, for the clock takes time itself.
    ran = engine_.Run(requests, /*on_clock=*/true);
    if (!ran.ok()) return ran.status();
    const auto on_clock = SteadyPlans(ran->plans, sequences, count);
    if (!on_clock.ok()) return on_clock.status();
    json["device"] = DeviceTimes(ran->device, *on_clock,
                                 StepTimes(ran->plans, *on_clock, options_.window_steps));
    out.tokens_on_clock.push_back(std::move(ran->tokens));
    return absl::OkStatus();
  }

  absl::Status Prefill(int64_t tokens, EngineFigures& out) {
    std::vector<double> first_token, device;
    absl::Status warm = WarmUp({Request(0, tokens, 1, config_.vocab_size)});
    if (!warm.ok()) return warm;
    for (int i = 0; i < kWarmPrefills + options_.repeats; ++i) {
      const absl::StatusOr<Ran> ran =
          engine_.Run({Request(i, tokens, 1, config_.vocab_size)}, /*on_clock=*/true);
      if (!ran.ok()) return ran.status();
      if (ran->plans.size() != 1) {
        return absl::InternalError(absl::StrCat("a prefill of ", tokens, " tokens took ",
                                                ran->plans.size(), " steps; expected one"));
      }
      if (i < kWarmPrefills) continue;
      first_token.push_back(ran->first_token[0]);
      if (engine_.has_clock()) device.push_back(ran->device[0].span);
    }
    const Times to_first = TimesOf(first_token);
    Json& json = out.json["prefill"].emplace_back(Json{{"rows", tokens}});
    json["time_to_first_token"] = Microseconds(to_first);
    json["tokens_per_second"] = static_cast<double>(tokens) / to_first.median;
    if (device.empty()) return absl::OkStatus();
    const Times step = TimesOf(device);
    json.update(Microseconds(step));
    json["teraflops"] =
        static_cast<double>(StepFlops(config_, tokens, /*past=*/0)) / step.median / 1e12;
    return absl::OkStatus();
  }

  // So many that all sequences decode for long enough: those that were prefilled first have begun
  // when the last ones join.
  static int64_t NewTokens(const EngineTimingOptions& options, int64_t sequences) {
    const int64_t rows = std::max<int64_t>(1, options.worker.max_step_tokens - sequences);
    const int64_t prefills = sequences * options.context / rows + 2;
    return prefills + options.warm_steps + options.windows * options.window_steps;
  }

 private:
  absl::Status WarmUp(const std::vector<GenerateRequest>& requests) {
    const SteadyTime begin = std::chrono::steady_clock::now();
    const std::chrono::duration<double> wanted(options_.warm_seconds);
    while (std::chrono::steady_clock::now() - begin < wanted) {
      const absl::StatusOr<Ran> ran = engine_.Run(requests, /*on_clock=*/false);
      if (!ran.ok()) return ran.status();
    }
    return absl::OkStatus();
  }

  const EngineTimingOptions& options_;
  const checkpoint::ModelConfig& config_;
  Engine& engine_;
  const int64_t kv_blocks_;
  const double kv_token_bytes_;  // over all layers
};

int64_t Most(const std::vector<int64_t>& values, int64_t least) {
  int64_t most = least;
  for (const int64_t value : values) most = std::max(most, value);
  return most;
}

}  // namespace

absl::Status CheckSameTokens(const EngineFigures& figures, const EngineFigures& in_turn) {
  const auto compare = [](const std::vector<int32_t>& a, const std::vector<int32_t>& b,
                          const std::string& what) {
    const size_t both = std::min(a.size(), b.size());
    const auto differs =
        std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(both), b.begin());
    if (differs.first == a.begin() + static_cast<ptrdiff_t>(both)) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("token ", differs.first - a.begin(), " is ",
                                            *differs.first, ", but ", *differs.second, " ", what,
                                            ": in exact they must be the same"));
  };
  absl::Status status;
  for (size_t i = 0; i < figures.tokens.size(); ++i) {
    const std::vector<std::vector<int32_t>>& batch = figures.tokens[i];
    const std::string of = absl::StrCat(" of ", batch.size(), " sequences");
    for (size_t s = 0; s < batch.size() && i < figures.tokens_on_clock.size(); ++s) {
      status.Update(compare(batch[s], figures.tokens_on_clock[i][s],
                            absl::StrCat("with the device's clock, in sequence ", s, of)));
    }
    status.Update(compare(figures.tokens[0][0], batch[0], absl::StrCat("in a step", of)));
  }
  if (!figures.tokens.empty() && !in_turn.tokens.empty()) {
    status.Update(
        compare(figures.tokens[0][0], in_turn.tokens[0][0], "where kernels don't start early"));
  }
  return status;
}

absl::StatusOr<EngineFigures> TimeEngine(const EngineTimingOptions& wanted) {
  EngineTimingOptions options = wanted;
  const auto opened = checkpoint::Checkpoint::Open(options.worker.model_directory);
  if (!opened.ok()) return opened.status();
  const checkpoint::ModelConfig& config = (*opened)->config();
  const int64_t longest = Most(options.prompts, 1);
  const int64_t sequences = Most(options.batches, 1);
  options.worker.max_step_tokens = std::max(longest, 2 * sequences);
  options.worker.max_positions =
      std::max(longest + 1, options.context + EngineTiming::NewTokens(options, sequences));
  options.worker.max_kv_sequences = 2 * sequences;
  if (options.worker.max_positions > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("sequences of ", options.worker.max_positions,
                                                   " tokens with a context of ",
                                                   config.max_position_embeddings));
  }
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Start(options.worker, config.vocab_size, sequences);
  if (!engine.ok()) return engine.status();
  EngineTiming timing(options, config, **engine);
  EngineFigures out;
  const coordinator::GroupInfo group = (*engine)->group();
  out.json["weight_bytes"] = group.ranks[0].weight_bytes;
  out.json["kv_blocks"] = group.kv_blocks();
  for (const int64_t batch : options.batches) {
    if (absl::Status status = timing.Decode(batch, out); !status.ok()) return status;
  }
  for (const int64_t prompt : options.prompts) {
    if (absl::Status status = timing.Prefill(prompt, out); !status.ok()) return status;
  }
  return out;
}

}  // namespace phalanx::timing
