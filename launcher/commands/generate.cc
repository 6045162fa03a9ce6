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
#include "launcher/client.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/request_builder.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

struct GenerateOptions {
  std::string endpoint = "127.0.0.1:50051";
  std::string model;
  double timeout = 0;
  PromptOptions prompts;
  RequestOptions request;
  bool json = false;
};

scheduler::TokenLogprobs FromProto(const v1::TokenLogprobs& proto) {
  scheduler::TokenLogprobs out;
  out.id = proto.id();
  out.logprob = proto.logprob();
  for (const v1::RankedToken& token : proto.top()) out.top.push_back({token.id(), token.logprob()});
  return out;
}

absl::Status GenerateOne(const GenerateOptions& options, const Prompt& prompt) {
  absl::StatusOr<v1::GenerateRequest> request = BuildRequest(options.request, prompt);
  if (!request.ok()) return request.status();
  request->set_model(options.model);
  const Client client = Connect(options.endpoint);
  grpc::ClientContext context;
  if (options.timeout > 0) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(options.timeout)));
  }
  const bool stream = !options.json && options.request.n == 1;
  std::map<int, Answer> answers;
  Answer shared;
  if (options.request.n == 1) shared.request_id = prompt.id;
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
  if (!status.ok() && options.json && answers.empty()) answers[0] = {};
  for (auto& [index, part] : answers) {
    Answer answer = shared;
    answer.token_ids = part.token_ids;
    answer.logprobs = part.logprobs;
    answer.text = part.text;
    answer.finish_reason = part.finish_reason.empty() ? "error" : part.finish_reason;
    if (part.finish_reason.empty()) answer.error = std::string(status.message());
    if (options.request.n > 1) answer.index = index;
    if (options.json) {
      std::cout << ToJson(answer) << std::endl;
    } else {
      std::cout << "== answer " << index + 1 << " (" << answer.finish_reason << ")\n"
                << (prompt.is_text ? prompt.text : "") << answer.text << std::endl;
    }
  }
  return status;
}

absl::Status Generate(const GenerateOptions& options) {
  const absl::StatusOr<std::vector<Prompt>> prompts = ReadPrompts(options.prompts);
  if (!prompts.ok()) return prompts.status();
  absl::Status first;
  for (size_t i = 0; i < prompts->size(); ++i) {
    const absl::Status status = GenerateOne(options, (*prompts)[i]);
    if (status.ok()) continue;
    if (first.ok()) first = status;
    // Nobody would answer the others either.
    if (absl::IsUnavailable(status) || prompts->size() == 1) break;
    spdlog::error("prompt {} of {}: {}", i + 1, prompts->size(), std::string(status.message()));
  }
  return first;
}

}  // namespace

void AddGenerateCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand("generate", "Ask a running server and stream its answer");
  auto options = std::make_shared<GenerateOptions>();
  app->add_option("--endpoint", options->endpoint, "HOST:PORT of the server")
      ->capture_default_str()
      ->group("Server");
  app->add_option("--model", options->model, "Model name (default: the one that is served)")
      ->group("Server");
  app->add_option("--timeout", options->timeout, "Seconds until the request is given up (0: never)")
      ->check(CLI::NonNegativeNumber)
      ->group("Server");
  AddPromptOptions(*app, options->prompts);
  AddRequestOptions(*app, options->request);
  app->add_flag("--json", options->json, "One JSON object per answer");
  app->callback([options, run] {
    *run = [options] {
      const absl::Status status = Generate(*options);
      return status.ok() ? kExitDone : Fail("generate", status);
    };
  });
}

}  // namespace phalanx::launcher
