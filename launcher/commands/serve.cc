// `phalanx serve`: coordinator and workers behind a gRPC port, until told to stop.

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "launcher/commands/commands.h"
#include "launcher/config.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"
#include "launcher/model_info.h"
#include "launcher/options.h"
#include "launcher/planning.h"
#include "launcher/serve_events.h"
#include "launcher/service.h"
#include "launcher/signals.h"
#include "launcher/slurm.h"
#include "launcher/version.h"
#include "runtime/serving/inference_server.h"
#include "runtime/tokenizer/utf8.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

struct ServeOptions {
  ServiceOptions service;
  PlanningOptions planning;  // --layout auto
  ServingOptions serving;
  std::string endpoint_file;
};

// The file that tells clients the address, while this server has it. Thread-safe.
class EndpointFile {
 public:
  explicit EndpointFile(std::string path) : path_(std::move(path)) {}
  EndpointFile(const EndpointFile&) = delete;
  EndpointFile& operator=(const EndpointFile&) = delete;

  absl::Status Write(const std::string& endpoint) {
    if (path_.empty()) return absl::OkStatus();
    absl::MutexLock lock(&mutex_);
    // Written beside it, then renamed: a reader never sees half an address.
    const std::string temporary = path_ + ".tmp";
    std::ofstream out(temporary);
    out << endpoint << "\n";
    out.close();
    if (!out || std::rename(temporary.c_str(), path_.c_str()) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--endpoint-file ", path_, ": ", std::strerror(errno)));
    }
    endpoint_ = endpoint;
    return absl::OkStatus();
  }
  // Where it isn't the next server's by now.
  void Remove() {
    absl::MutexLock lock(&mutex_);
    std::string written;
    if (endpoint_.empty() || !std::getline(std::ifstream(path_), written)) return;
    if (written == endpoint_) std::remove(path_.c_str());
    endpoint_.clear();
  }

 private:
  const std::string path_;
  absl::Mutex mutex_;
  std::string endpoint_ ABSL_GUARDED_BY(mutex_);  // empty: not written
};

// A signal that comes again so soon is the same one: `timeout` and batch systems send it to a
// process and to its group.
constexpr absl::Duration kSameSignal = absl::Seconds(1);

// What a replica went through, once per event, as lines of the log.
class RecoveryLog {
 public:
  void Look(const coordinator::CoordinatorStatus& status) {
    seen_.resize(status.replicas.size(), 0);
    for (const coordinator::ReplicaStatus& replica : status.replicas) {
      const std::string name =
          status.replicas.size() > 1 ? absl::StrCat("replica ", replica.replica, ": ") : "";
      if (replica.recoveries > seen_[replica.replica] && replica.last_recovery.has_value()) {
        seen_[replica.replica] = replica.recoveries;
        const coordinator::Recovery& recovery = *replica.last_recovery;
        spdlog::info("{}epoch {} with {} is up {} after the death was noticed", name,
                     recovery.epoch, replica.group.layout,
                     absl::FormatDuration(
                         absl::Trunc(recovery.up - recovery.noticed, absl::Milliseconds(1))));
      }
      if (!replica.failure.ok() && lost_.insert(replica.replica).second) {
        spdlog::error("{}lost, {} of {} go on: {}", name, status.replicas.size() - lost_.size(),
                      status.replicas.size(), std::string(replica.failure.message()));
      }
    }
  }

 private:
  std::vector<int64_t> seen_;  // recoveries, by replica
  std::set<int> lost_;
};

// The exit code, or why it failed.
absl::StatusOr<int> Serve(const ServeOptions& options) {
  // Whoever reads the log may go.
  (void)std::signal(SIGPIPE, SIG_IGN);
  ServeEvents events;
  EndpointFile endpoint_file(options.endpoint_file);
  absl::Time first_signal = absl::InfiniteFuture();
  StopOnSignal on_signal([&](int signal) {
    const absl::Time now = absl::Now();
    if (now - first_signal > kSameSignal) {
      spdlog::warn("second signal {}: stopping at once", signal);
      endpoint_file.Remove();
      _exit(kExitAgain);
    }
    if (first_signal != absl::InfiniteFuture()) return;
    // The next one is looked at when this one has been dealt with.
    const absl::Cleanup done = [&] { first_signal = absl::Now(); };
    events.RequestStop(signal);
  });

  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(options.service, options.planning, /*one_process_by_default=*/false);
  if (!service.ok()) return service.status();
  serving::InferenceServerOptions server_options;
  server_options.listen = options.serving.listen;
  server_options.max_request_bytes = options.serving.max_request_bytes;
  server_options.version = kVersion;
  server_options.log = [](const std::string& line) { spdlog::warn("{}", line); };
  server_options.model = ModelName(**service, options.serving.model_name);
  if (tokenizer::FindInvalidUtf8(server_options.model) != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model's name \"", absl::CHexEscape(server_options.model),
                     "\" is not UTF-8, and so can't be sent to clients; give one by --model-name"));
  }
  server_options.layout = (*service)->layout();
  server_options.loading_message = [&service] { return (*service)->LoadingMessage(); };
  absl::StatusOr<std::unique_ptr<serving::InferenceServer>> server =
      serving::InferenceServer::Listen(server_options);
  if (!server.ok()) return server.status();
  // Before the server goes: the next one may have the same address.
  const absl::Cleanup removed = [&endpoint_file] { endpoint_file.Remove(); };
  absl::Status written = endpoint_file.Write((*server)->address());
  if (!written.ok()) return written;
  spdlog::info("listening on {}, loading {}", (*server)->address(), (*service)->model_directory());

  (*service)->OnReplicaChange([&events] { events.ReplicaChanged(); });
  absl::Status started;
  const bool start = events.SetStart([&service](int signal) {
    spdlog::info("signal {}: stopping while the model loads", signal);
    (*service)->Stop();
  });
  if (start) started = (*service)->Start();
  // What is wrong with the command is not cured by starting again.
  if (!events.SetStart(nullptr) && ExitCode(started) != kExitUsage) {
    spdlog::info("stopped while the model loaded");
    return kExitAgain;
  }
  if (!started.ok()) return started;
  serving::ServedModel served;
  served.coordinator = &(*service)->coordinator();
  served.tokenizer = (*service)->tokenizer();
  served.info = MakeModelInfo(**service, options.serving.model_name);
  served.rank_health = [&service] { return (*service)->Health(); };
  (*server)->Serve(served);
  spdlog::info("serving \"{}\" ({}, {}) on {}", served.info.name, (*service)->layout(),
               served.info.profile, (*server)->address());

  absl::Status failure;
  RecoveryLog recovery_log;
  while (events.AwaitChange()) {
    const coordinator::CoordinatorStatus status = (*service)->coordinator().GetStatus();
    recovery_log.Look(status);
    if (status.state == coordinator::CoordinatorState::kFailed) {
      failure = status.failure;
      break;
    }
  }
  bool finished = true;
  if (failure.ok()) {
    spdlog::info("signal {}: taking no more requests, finishing what is running within {} s",
                 events.signal(), options.serving.grace);
    (*server)->BeginDrain();
    const absl::Status drained =
        (*service)->coordinator().Drain(absl::Seconds(options.serving.grace));
    finished = drained.ok();
    // They may have been lost meanwhile.
    failure = (*service)->coordinator().GetStatus().failure;
    if (!finished) {
      spdlog::warn("{} (--grace); they end with UNAVAILABLE", std::string(drained.message()));
    }
  }
  (*service)->Stop();
  endpoint_file.Remove();
  (*server)->Shutdown(absl::Seconds(1));
  if (!failure.ok()) {
    return absl::UnavailableError(absl::StrCat("the workers are gone: ", failure.message()));
  }
  return finished ? kExitDone : kExitAgain;
}

}  // namespace

void AddServeCommand(CLI::App& parent, Command* run) {
  CLI::App* app = parent.add_subcommand("serve", "Start the ranks and answer gRPC clients");
  auto options = std::make_shared<ServeOptions>();
  AddServiceOptions(*app, options->service);
  AddPlanningOptions(*app, options->planning);
  AddServingOptions(*app, options->serving);
  app->add_option("--endpoint-file", options->endpoint_file,
                  "Write the address to this file once it is bound")
      ->group("Service");
  app->callback([app, options, run] {
    *run = [app, options] {
      absl::Status status = ApplyClusterFile(*app, options->service, &options->serving);
      if (status.ok()) status = SettleAllocation(ReadEnvironment(), options->service);
      if (status.ok()) status = SettleLayout(options->planning, options->service);
      if (!status.ok()) return Fail("serve", status);
      const absl::StatusOr<int> code = Serve(*options);
      return code.ok() ? *code : Fail("serve", code.status());
    };
  });
}

}  // namespace phalanx::launcher
