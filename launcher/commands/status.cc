// `phalanx status`: ranks, layout, queue and KV use of a running server.

#include "absl/status/status.h"

#include <google/protobuf/util/json_util.h>

#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "launcher/client.h"
#include "launcher/commands/commands.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/status_table.h"

namespace phalanx::launcher {
namespace {

struct StatusOptions {
  std::string endpoint = "127.0.0.1:50051";
  bool json = false;
};

const char* StateName(v1::ServerState state) {
  switch (state) {
    case v1::SERVER_STATE_LOADING:
      return "loading";
    case v1::SERVER_STATE_SERVING:
      return "serving";
    case v1::SERVER_STATE_DRAINING:
      return "draining";
    case v1::SERVER_STATE_FAILED:
      return "failed";
    case v1::SERVER_STATE_RECOVERING:
      return "recovering";
    default:
      return "unknown";
  }
}

void PrintEngine(const v1::EngineStatus& e) {
  std::cout << absl::StrFormat(
      "requests   %d running, %d waiting, %d finished\n"
      "KV blocks  %d in use, %d cached, %d free of %d\n"
      "tokens     %d prompt, %d from the prefix cache, %d generated in %d steps, %d preemptions\n",
      e.running_requests(), e.queued_requests(), e.finished_requests(), e.kv_blocks_in_use(),
      e.kv_blocks_cached(), e.kv_blocks_free(), e.kv_blocks_total(), e.prompt_tokens(),
      e.cached_prompt_tokens(), e.generated_tokens(), e.steps(), e.preemptions());
  if (e.expert_tokens_size() == 0) return;
  std::cout << absl::StrFormat(
      "experts    %d, the busiest has %.2f times the mean; tokens of each:", e.expert_tokens_size(),
      e.expert_imbalance());
  for (int i = 0; i < e.expert_tokens_size(); ++i) {
    std::cout << (i % 8 == 0 ? absl::StrFormat("\n  %5d:", i) : "")
              << absl::StrFormat(" %10d", e.expert_tokens(i));
  }
  std::cout << "\n";
}

void PrintRecovery(const v1::ReplicaStatus& replica) {
  if (replica.recoveries() == 0) return;
  const v1::Recovery& last = replica.last_recovery();
  std::cout << absl::StrFormat("recovered  %d times; epoch %d was up in %.2f s after: %s\n",
                               replica.recoveries(), last.epoch(), last.up_ms() / 1e3,
                               last.cause());
}

void PrintTable(const v1::GetStatusResponse& s, const std::string& endpoint) {
  std::cout << absl::StrFormat("%s: %s, model %s, layout %s, version %s, up %.0f s\n", endpoint,
                               StateName(s.state()), s.model(), s.layout(), s.version(),
                               s.uptime_seconds());
  if (!s.status_message().empty()) std::cout << s.status_message() << "\n";
  // Nothing has been counted.
  if (s.state() == v1::SERVER_STATE_LOADING) return;
  PrintEngine(s.engine());
  const bool replicas = s.replicas_size() > 1;
  if (s.replicas_size() == 1) PrintRecovery(s.replicas(0));
  for (const v1::ReplicaStatus& replica : s.replicas()) {
    if (!replicas) break;
    std::cout << absl::StrFormat("-- replica %d: %s, layout %s, %d tokens to come\n",
                                 replica.replica(), StateName(replica.state()), replica.layout(),
                                 replica.engine().reckoned_tokens());
    if (!replica.status_message().empty()) std::cout << replica.status_message() << "\n";
    PrintEngine(replica.engine());
    PrintRecovery(replica);
  }
  std::cout << RankTable(s);
}

absl::Status ShowStatus(const StatusOptions& options) {
  const Client client = Connect(options.endpoint);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
  v1::GetStatusResponse response;
  absl::Status status = ToAbslStatus(
      client.stub->GetStatus(&context, v1::GetStatusRequest(), &response), options.endpoint);
  if (!status.ok()) return status;
  if (options.json) {
    google::protobuf::util::JsonPrintOptions print;
    print.always_print_primitive_fields = true;
    print.preserve_proto_field_names = true;
    std::string text;
    (void)google::protobuf::util::MessageToJsonString(response, &text, print);
    std::cout << text << std::endl;
  } else {
    PrintTable(response, options.endpoint);
  }
  return absl::OkStatus();
}

}  // namespace

void AddStatusCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand("status", "Ranks, layout, queue and KV use of a server");
  auto options = std::make_shared<StatusOptions>();
  app->add_option("--endpoint", options->endpoint, "HOST:PORT of the server")
      ->check(CheckHostPort)
      ->capture_default_str();
  app->add_flag("--json", options->json, "One JSON object");
  app->callback([options, run] {
    *run = [options] {
      const absl::Status status = ShowStatus(*options);
      return status.ok() ? kExitDone : Fail("status", status);
    };
  });
}

}  // namespace phalanx::launcher
