// `phalanx generate`: a streaming client.

#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "launcher/answer.h"
#include "launcher/client.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/request_builder.h"
#include "launcher/signals.h"

namespace phalanx::launcher {
namespace {

struct GenerateOptions {
  std::string endpoint = "127.0.0.1:50051";
  std::string model;
  double timeout = 0;
  PromptOptions prompts;
  RequestOptions request;
};

scheduler::TokenLogprobs FromProto(const v1::TokenLogprobs& proto) {
  scheduler::TokenLogprobs out;
  out.id = proto.id();
  out.logprob = proto.logprob();
  for (const v1::RankedToken& token : proto.top()) out.top.push_back({token.id(), token.logprob()});
  return out;
}

// `number`: of the prompt, from 1; its answer is printed as it comes where it is the only one
// (`stream`), else when it is whole.
absl::Status GenerateOne(const GenerateOptions& options, const Prompt& prompt, size_t number,
                         bool stream) {
  absl::StatusOr<v1::GenerateRequest> request = BuildRequest(options.request, prompt);
  if (!request.ok()) return request.status();
  request->set_model(options.model);
  const Client client = Connect(options.endpoint);
  grpc::ClientContext context;
  if (options.timeout > 0) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(options.timeout)));
  }
  std::map<int, Answer> answers;
  Answer shared;
  shared.request_id = prompt.id;
  const auto reader = client.stub->Generate(&context, *request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    switch (response.event_case()) {
      case v1::GenerateResponse::kStarted: {
        const v1::Started& started = response.started();
        shared.prompt_token_ids.assign(started.prompt_token_ids().begin(),
                                       started.prompt_token_ids().end());
        shared.seed = started.seed();
        shared.layout = started.layout();
        shared.has_logprobs = options.request.logprobs.has_value();
        shared.has_prompt_logprobs = options.request.prompt_logprobs.has_value();
        if (stream && prompt.is_text) std::cout << prompt.text << std::flush;
        break;
      }
      case v1::GenerateResponse::kPromptLogprobs:
        for (const v1::TokenLogprobs& token : response.prompt_logprobs().tokens()) {
          shared.prompt_logprobs.push_back(FromProto(token));
        }
        break;
      case v1::GenerateResponse::kDelta: {
        const v1::Delta& delta = response.delta();
        Answer& answer = answers[delta.index()];
        answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                                delta.token_ids().end());
        for (const v1::TokenLogprobs& token : delta.logprobs()) {
          answer.logprobs.push_back(FromProto(token));
        }
        answer.text += delta.text();
        if (stream) std::cout << delta.text() << std::flush;
        break;
      }
      case v1::GenerateResponse::kFinished: {
        const v1::Finished& finished = response.finished();
        answers[finished.index()].finish_reason =
            finished.finish_reason() == v1::FINISH_REASON_LENGTH ? "length" : "stop";
        break;
      }
      case v1::GenerateResponse::kSummary: {
        const v1::Summary& summary = response.summary();
        shared.cached_tokens = summary.usage().cached_tokens();
        shared.queue_ms = summary.timings().queue_ms();
        shared.time_to_first_token_ms = summary.timings().time_to_first_token_ms();
        shared.total_ms = summary.timings().total_ms();
        shared.preemptions = summary.timings().preemptions();
        break;
      }
      case v1::GenerateResponse::EVENT_NOT_SET:
        break;
    }
  }
  absl::Status status = ToAbslStatus(reader->Finish(), options.endpoint);
  if (stream) {
    if (!shared.prompt_token_ids.empty()) std::cout << std::endl;  // something was printed
    return status;
  }
  // One that was refused has an answer, too.
  const bool begun = !answers.empty();
  if (!status.ok() && !begun) answers[0] = {};
  for (auto& [index, part] : answers) {
    Answer answer = shared;
    answer.token_ids = part.token_ids;
    answer.logprobs = part.logprobs;
    answer.text = part.text;
    answer.finish_reason = part.finish_reason.empty() ? "error" : part.finish_reason;
    if (part.finish_reason.empty()) answer.error = std::string(status.message());
    if (options.request.n > 1 && begun) answer.index = index;
    std::cout << (options.request.json ? ToJson(answer) + "\n"
                                       : ToText(answer, prompt, number, /*has_text=*/true));
  }
  return status;
}

// The exit code, or why nothing was asked.
absl::StatusOr<int> Generate(const GenerateOptions& options) {
  const StopOnSignal stop([](int signal) { ExitOnSignal("generate", signal); });
  const absl::StatusOr<std::vector<Prompt>> prompts = ReadPrompts(options.prompts);
  if (!prompts.ok()) return prompts.status();
  const bool stream = !options.request.json && prompts->size() == 1 && options.request.n == 1;
  std::vector<absl::Status> statuses;  // by prompt
  bool abandoned = false;
  for (size_t i = 0; i < prompts->size() && !abandoned; ++i) {
    const bool before = !statuses.empty() && absl::IsUnavailable(statuses.back());
    statuses.push_back(GenerateOne(options, (*prompts)[i], i + 1, stream));
    std::cout << std::flush;
    // One may have been lost alone; after two nobody would answer the others either.
    abandoned = before && absl::IsUnavailable(statuses.back());
  }
  if (abandoned) statuses.resize(prompts->size(), absl::Status(statuses.back()));
  return EndOfPrompts("generate", statuses, abandoned);
}

}  // namespace

void AddGenerateCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand(
      "generate",
      "Ask a running server and stream its answer; several are printed each when it is whole");
  auto options = std::make_shared<GenerateOptions>();
  app->add_option("--endpoint", options->endpoint, "HOST:PORT of the server")
      ->check(CheckHostPort)
      ->capture_default_str()
      ->group("Server");
  app->add_option("--model", options->model, "Model name (default: the one that is served)")
      ->group("Server");
  app->add_option("--timeout", options->timeout, "Seconds until the request is given up (0: never)")
      ->check(CLI::NonNegativeNumber)
      ->group("Server");
  AddPromptOptions(*app, options->prompts);
  AddRequestOptions(*app, options->request);
  app->callback([options, run] {
    *run = [options] {
      const absl::StatusOr<int> code = Generate(*options);
      return code.ok() ? *code : Fail("generate", code.status());
    };
  });
}

}  // namespace phalanx::launcher
