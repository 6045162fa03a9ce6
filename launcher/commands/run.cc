// `phalanx run`: start, generate, stop.

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "launcher/answer.h"
#include "launcher/commands/commands.h"
#include "launcher/config.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"
#include "launcher/model_info.h"
#include "launcher/options.h"
#include "launcher/planning.h"
#include "launcher/request_builder.h"
#include "launcher/service.h"
#include "launcher/signals.h"
#include "launcher/slurm.h"
#include "runtime/serving/request.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

struct RunOptions {
  ServiceOptions service;
  PlanningOptions planning;  // --layout auto
  PromptOptions prompts;
  RequestOptions request;
};

// All prompts' answers, filled by the coordinator's thread.
class Answers {
 public:
  // `stream`: print the text as it comes (one prompt, one sample).
  Answers(size_t prompts, bool stream)
      : stream_(stream), pending_(prompts), done_(prompts), statuses_(prompts), answers_(prompts) {}

  void Expect(size_t prompt, const coordinator::GenerateRequest& request,
              const std::string& layout) {
    answers_[prompt].resize(request.n);
    for (int64_t i = 0; i < request.n; ++i) {
      Answer& answer = answers_[prompt][i];
      answer.request_id = request.id;
      answer.prompt_token_ids = request.prompt_token_ids;
      answer.has_logprobs = request.sampling.logprobs >= 0;
      answer.has_prompt_logprobs = request.sampling.prompt_logprobs >= 0;
      answer.layout = layout;
      if (request.n > 1) answer.index = static_cast<int>(i);
    }
  }

  void On(size_t prompt, const coordinator::Event& event) {
    absl::MutexLock lock(&mutex_);
    for (const coordinator::SampleOutput& output : event.outputs) {
      Answer& answer = answers_[prompt][output.sample_index];
      for (const scheduler::TokenLogprobs& token : output.tokens) {
        answer.token_ids.push_back(token.id);
        if (answer.has_logprobs) answer.logprobs.push_back(token);
      }
      answer.text += output.text;
      if (stream_) std::cout << output.text << std::flush;
      if (output.finish == coordinator::FinishReason::kStop) answer.finish_reason = "stop";
      if (output.finish == coordinator::FinishReason::kLength) answer.finish_reason = "length";
    }
    for (Answer& answer : answers_[prompt]) {
      answer.seed = event.seed;
      if (!event.prompt_logprobs.empty()) answer.prompt_logprobs = event.prompt_logprobs;
      if (!event.done) continue;
      if (!event.status.ok()) {
        answer.finish_reason = "error";
        answer.error = std::string(event.status.message());
      }
      answer.cached_tokens = event.usage.cached_tokens;
      answer.queue_ms = absl::ToDoubleMilliseconds(event.usage.queue_time);
      answer.time_to_first_token_ms = absl::ToDoubleMilliseconds(event.usage.time_to_first_token);
      answer.total_ms = absl::ToDoubleMilliseconds(event.usage.total_time);
      answer.preemptions = event.usage.preemptions;
    }
    if (!event.done) return;
    statuses_[prompt] = event.status;
    --pending_;
    done_[prompt] = true;
  }

  // Until fewer than `most` of the prompts that were submitted, `submitted`, are unanswered.
  void WaitForRoom(size_t submitted, size_t most) {
    absl::MutexLock lock(&mutex_);
    const size_t others = answers_.size() - submitted;
    const auto has_room = [this, others, most]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return pending_ - others < most;
    };
    mutex_.Await(absl::Condition(&has_room));
  }

  // Waits for the answers of a prompt, which don't change any more.
  const std::vector<Answer>& WaitFor(size_t prompt) {
    absl::MutexLock lock(&mutex_);
    const auto is_done = [this, prompt]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return static_cast<bool>(done_[prompt]);
    };
    mutex_.Await(absl::Condition(&is_done));
    return answers_[prompt];
  }

  // When all are done, by prompt.
  std::vector<absl::Status> statuses() {
    absl::MutexLock lock(&mutex_);
    return statuses_;
  }

 private:
  const bool stream_;
  absl::Mutex mutex_;
  size_t pending_;
  std::vector<char> done_;
  std::vector<absl::Status> statuses_;        // by prompt
  std::vector<std::vector<Answer>> answers_;  // [prompt][sample]
};

// The exit code, or why nothing was begun.
absl::StatusOr<int> Run(const RunOptions& options) {
  // Before other threads. The ranks end with this process.
  const StopOnSignal stop([](int signal) { ExitOnSignal("run", signal); });
  const absl::StatusOr<std::vector<Prompt>> prompts = ReadPrompts(options.prompts);
  if (!prompts.ok()) return prompts.status();
  ServiceOptions service_options = options.service;
  service_options.needs_text = std::any_of(prompts->begin(), prompts->end(),
                                           [](const Prompt& prompt) { return prompt.is_text; });
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(service_options, options.planning, /*one_process_by_default=*/true);
  if (!service.ok()) return service.status();
  const serving::ModelInfo model = MakeModelInfo(**service, /*name=*/"");
  const bool has_text = (*service)->tokenizer() != nullptr;

  // Every prompt is checked before anything is started.
  std::vector<coordinator::GenerateRequest> requests;
  std::map<std::string, size_t> ids;
  for (size_t i = 0; i < prompts->size(); ++i) {
    const auto named = [&](const absl::Status& status) {
      if (prompts->size() == 1) return status;
      return absl::Status(status.code(), absl::StrCat("prompt ", i + 1, ": ", status.message()));
    };
    absl::StatusOr<v1::GenerateRequest> built = BuildRequest(options.request, (*prompts)[i]);
    if (!built.ok()) return named(built.status());
    auto request = serving::ToCoordinatorRequest(*built, model, (*service)->tokenizer());
    if (!request.ok()) return named(request.status());
    const absl::Status valid =
        coordinator::ValidateRequest(*request, (*service)->limits(), has_text);
    if (!valid.ok()) {
      return named(serving::WithPublicFieldName(valid, (*prompts)[i].is_text));
    }
    const auto [first, is_new] = ids.emplace(request->id, i);
    if (!request->id.empty() && !is_new) {
      return named(absl::InvalidArgumentError(
          absl::StrCat("id \"", request->id, "\" is prompt ", first->second + 1,
                       "'s, too; all are answered side by side, and ids tell them apart")));
    }
    requests.push_back(*std::move(request));
  }

  if (absl::Status status = (*service)->Start(); !status.ok()) return status;
  const bool json = options.request.json;
  const bool stream = !json && requests.size() == 1 && requests[0].n == 1 && has_text;
  Answers answers(requests.size(), stream);
  if (stream && (*prompts)[0].is_text) std::cout << (*prompts)[0].text << std::flush;
  for (size_t i = 0; i < requests.size(); ++i) {
    answers.Expect(i, requests[i], (*service)->layout());
  }
  // As soon as a prompt and all before it are answered.
  std::thread printer([&] {
    for (size_t i = 0; i < requests.size(); ++i) {
      for (const Answer& answer : answers.WaitFor(i)) {
        std::cout << (json     ? ToJson(answer) + "\n"
                      : stream ? "\n"
                               : ToText(answer, (*prompts)[i], i + 1, has_text));
      }
      std::cout << std::flush;
    }
  });
  // No more than the queue holds: nobody else fills it.
  const auto most = static_cast<size_t>(std::max<int64_t>(1, options.service.max_queue));
  for (size_t i = 0; i < requests.size(); ++i) {
    answers.WaitForRoom(i, most);
    const auto handle = (*service)->coordinator().Submit(
        requests[i], [&answers, i](const coordinator::Event& event) { answers.On(i, event); });
    if (!handle.ok()) {
      coordinator::Event refused;
      refused.done = true;
      refused.status = handle.status();
      answers.On(i, refused);
    }
  }
  printer.join();
  const bool gone =
      (*service)->coordinator().GetStatus().state == coordinator::CoordinatorState::kFailed;
  (*service)->Stop();
  return EndOfPrompts("run", answers.statuses(), gone);
}

}  // namespace

void AddRunCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand("run", "Start the ranks, answer the prompts, stop");
  auto options = std::make_shared<RunOptions>();
  AddPromptOptions(*app, options->prompts);
  AddServiceOptions(*app, options->service);
  AddPlanningOptions(*app, options->planning);
  AddRequestOptions(*app, options->request);
  app->callback([app, options, run] {
    *run = [app, options] {
      absl::Status status = ApplyClusterFile(*app, options->service, /*serving=*/nullptr);
      if (status.ok()) status = SettleAllocation(ReadEnvironment(), options->service);
      if (status.ok()) status = SettleLayout(options->planning, options->service);
      if (!status.ok()) return Fail("run", status);
      const absl::StatusOr<int> code = Run(*options);
      return code.ok() ? *code : Fail("run", code.status());
    };
  });
}

}  // namespace phalanx::launcher
