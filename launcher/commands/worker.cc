// One rank, as mpirun or srun starts it.

#include "launcher/commands/worker.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "comm/mpi/mpi_environment.h"
#include "launcher/env.h"
#include "launcher/exit_code.h"
#include "launcher/gpus.h"
#include "launcher/keeper.h"
#include "launcher/keeper_store.h"
#include "launcher/machine.h"
#include "launcher/options.h"
#include "launcher/service.h"
#include "launcher/step_trace.h"
#include "runtime/control/conversions.h"
#include "runtime/control/worker_client.h"
#include "runtime/worker/step_runner.h"
#include "runtime/worker/worker.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

struct WorkerCommandOptions {
  RankOptions rank;
  std::string coordinator;
  std::string token;
  int replica = 0;
  uint64_t epoch = 0;
  int ranks_per_host = 0;  // 0: as MPI says
  std::string gpu;         // empty: by the rank among its host's
  double connect_timeout = 60;
};

// What failed is worth more than what its failing has brought about.
absl::Status FirstError(absl::Status step, absl::Status other) {
  return step.ok() ? std::move(other) : std::move(step);
}

// Runs plans until the coordinator asks to leave. The lead takes them from its stream and hands
// them on; an empty message means "leave". The rank that samples sends the results. So the lead
// goes on to the next plan as soon as its own stage is done with one, and as many plans are under
// way as there are stages.
absl::Status RunPlans(worker::StepRunner& runner, comm::Communicator& group,
                      control::WorkerClient& client, const WorkerHooks& hooks) {
  while (true) {
    std::string message;
    std::optional<scheduler::StepPlan> plan;
    if (group.rank() == 0) {
      absl::StatusOr<std::optional<scheduler::StepPlan>> next = client.NextPlan();
      if (!next.ok()) return FirstError(runner.failure(), next.status());
      plan = *std::move(next);
      if (plan.has_value() && group.size() > 1) {
        v1::StepPlan proto;
        control::ToProto(*plan, &proto);
        message = proto.SerializeAsString();
      }
    }
    if (group.size() > 1) {
      if (absl::Status status = group.BroadcastMessage(message, 0); !status.ok()) {
        return FirstError(runner.failure(), status);
      }
      if (group.rank() != 0 && !message.empty()) {
        v1::StepPlan proto;
        if (!proto.ParseFromString(message)) {
          return absl::InternalError("a plan from the lead rank does not parse");
        }
        absl::StatusOr<scheduler::StepPlan> parsed = control::FromProto(proto);
        if (!parsed.ok()) return parsed.status();
        plan = *std::move(parsed);
      }
    }
    if (!plan.has_value()) return runner.Stop();
    client.NoteStep(plan->number);
    if (hooks.step_begin) hooks.step_begin(*plan);
    if (absl::Status status = runner.Run(*plan); !status.ok()) return status;
    if (hooks.step_end) hooks.step_end(*plan);
  }
}

// srun started several tasks, but MPI sees no others.
absl::Status SilentSingleton(const Environment& environment) {
  return absl::FailedPreconditionError(
      absl::StrCat("srun started ", environment.slurm_step_tasks,
                   " tasks, but MPI sees one rank: every task would be a group of its own; start "
                   "the workers with srun --mpi=pmix or mpirun"));
}

absl::Status RunWorker(const WorkerCommandOptions& options, const Environment& environment,
                       const WorkerHooks& hooks) {
  // mpirun's death must not leave a rank behind that holds memory.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // What can be checked is checked before MPI starts. Without --threads this host's cores are
  // shared by the ranks that are on it.
  absl::StatusOr<worker::WorkerOptions> worker_options =
      MakeWorkerOptions(options.rank, std::max(options.ranks_per_host, environment.local_ranks));
  if (!worker_options.ok()) return worker_options.status();
  if (worker_options->device.kind == kernels::DeviceKind::kCuda) {
    const auto place = PlaceOfRank(environment, options.gpu, options.ranks_per_host);
    if (!place.ok()) return place.status();
    const absl::StatusOr<int> devices = kernels::CudaDeviceCount();
    if (!devices.ok()) {
      return absl::Status(devices.status().code(),
                          absl::StrCat("host ", place->host, ": ", devices.status().message()));
    }
    absl::Status taken = TakeDevice(*place, *devices, *worker_options);
    if (!taken.ok()) return taken;
  }

  PreferSharedMemory();
  const absl::Time started = absl::Now();
  coordinator::RankTimes times;
  const bool by_srun = environment.slurm_step_tasks > 1 && !environment.launched_by_mpirun;
  if (by_srun && !environment.launched_by_pmix) return SilentSingleton(environment);

  comm::MpiOptions mpi_options;
  mpi_options.threads_per_rank = worker_options->device.cpu.threads;
  auto mpi = comm::MpiEnvironment::Init(mpi_options);
  if (!mpi.ok()) return mpi.status();
  times.mpi_init = absl::Now() - started;
  std::unique_ptr<comm::Communicator> wrapped;
  if (hooks.wrap) wrapped = hooks.wrap((*mpi)->World());
  comm::Communicator& group = wrapped != nullptr ? *wrapped : (*mpi)->World();
  if (by_srun && group.size() == 1) return SilentSingleton(environment);
  const absl::Time opening = absl::Now();
  auto worker = worker::Worker::Open(*worker_options, group);
  if (!worker.ok()) return worker.status();
  times.open = absl::Now() - opening;
  const coordinator::RankInfo& info = (*worker)->info();

  control::WorkerIdentity identity;
  identity.rank = group.rank();
  identity.world_size = group.size();
  identity.replica = options.replica;
  identity.epoch = options.epoch;
  identity.host = info.host;
  identity.pid = info.pid;
  identity.launcher_pid = getppid();
  identity.device = info.device;
  identity.layout = worker_options->layout.ToString();
  identity.profile = (*worker)->profile().ToString();
  identity.max_step_tokens = worker_options->max_step_tokens;
  identity.max_context = (*worker)->max_context();
  identity.op_digest = info.op_digest;
  identity.checkpoint_digest = info.checkpoint_digest;
  identity.build_version = BuildIdentity();
  control::WorkerClientOptions client_options;
  client_options.coordinator = options.coordinator;
  client_options.token = options.token;
  client_options.connect_timeout = absl::Seconds(options.connect_timeout);
  client_options.collective_number = [&worker] { return (*worker)->collective_number(); };
  client_options.layers_computed = [&worker] { return (*worker)->layers_computed(); };
  client_options.on_disconnect = [rank = group.rank()](const absl::Status& status) {
    spdlog::error("rank {}: {}; leaving", rank, std::string(status.message()));
    // Nobody is left to work for, and the main thread may be inside a collective.
    _exit(kExitFailed);
  };
  const absl::Time connecting = absl::Now();
  auto client = control::WorkerClient::Connect(client_options, identity);
  if (!client.ok()) {
    group.Abort(absl::StrCat("rank ", group.rank(), ": ", client.status().message()));
    return client.status();
  }

  times.registers = absl::Now() - connecting;

  KeeperStoreOptions store_options;
  store_options.socket_name = KeeperSocketName(options.coordinator);
  store_options.replica = options.replica;
  store_options.epoch = (*client)->epoch();
  store_options.threads = worker_options->device.cpu.threads;
  store_options.warn = [rank = group.rank()](const std::string& why) {
    spdlog::warn("rank {}: {}", rank, why);
  };
  if (environment.local_rank == 0) {
    store_options.start_keeper = [&options] {
      return StartDetached({OwnPath(), "keeper", "--coordinator", options.coordinator},
                           {{kControlTokenVariable, options.token}});
    };
  }
  KeeperStore store(std::move(store_options));
  if (options.rank.keep_weights) (*worker)->options().store = &store;
  (*worker)->options().packer = BuildIdentity();

  if (hooks.accepted) hooks.accepted(options.replica, group.rank(), (*client)->epoch());
  (*worker)->options().progress = [&client, &hooks](int64_t done, int64_t total) {
    if (hooks.loading) hooks.loading(done, total);
    (*client)->ReportProgress(done, total);
  };
  absl::Status status;
  if (!options.rank.step_trace.empty()) {
    auto trace = TraceSteps(options.rank.step_trace, options.replica, (*client)->epoch());
    status = trace.status();
    if (trace.ok()) (*worker)->options().trace = *std::move(trace);
  }
  if (status.ok()) status = (*worker)->Load();
  if (status.ok() && hooks.loaded) hooks.loaded();
  if (status.ok()) {
    const coordinator::RankInfo& loaded = (*worker)->info();
    const worker::Worker::LoadTimes& load = (*worker)->load_times();
    times.weights = load.weights;
    times.weights_were_kept = load.weights_were_kept;
    times.agreement = load.agreement;
    times.kv = load.kv;
    times.total = absl::Now() - started;
    status = (*client)->ReportReady(loaded.weight_bytes, loaded.kv_block_bytes, loaded.kv_blocks,
                                    loaded.content_digest, times);
  }
  // Told before anything is waited for: plans under way may wait for the very ranks that this
  // frees.
  std::once_flag told;
  const auto tell = [&](const absl::Status& error) {
    std::call_once(told, [&] {
      (*client)->SendError(error, 0);
      group.Abort(absl::StrCat("rank ", group.rank(), ": ", error.message()));
    });
  };
  if (!status.ok()) {
    tell(status);
    return status;
  }
  worker::StepRunner::Callbacks callbacks;
  callbacks.result = [&](const scheduler::StepResult& result) {
    return (*client)->SendResult(result);
  };
  // The main thread waits for a plan, or with the others for the lead's: the coordinator ends the
  // lead's stream, the abort ends what the others wait in.
  callbacks.failure = tell;
  worker::StepRunner runner(**worker, std::move(callbacks));
  status = RunPlans(runner, group, **client, hooks);
  if (!status.ok()) tell(status);
  return status;
}

}  // namespace

void AddWorkerCommand(CLI::App& parent, Command* run, const WorkerHooks& hooks) {
  CLI::App* app = parent.add_subcommand(
      "worker", "One rank; started by serve and run, or by hand: mpirun -np N phalanx worker ...");
  auto options = std::make_shared<WorkerCommandOptions>();
  AddRankOptions(*app, options->rank);
  app->get_option("--layout")
      ->description("Axes and sizes of the group, as serve has them, e.g. pp=2,tp=2");
  app->add_option("--coordinator", options->coordinator,
                  "Where the coordinator waits for ranks, HOST:PORT (serve prints it)")
      ->check(CheckHostPort)
      ->required()
      ->group("Workers");
  app->add_option("--token", options->token,
                  absl::StrCat("Secret to register with (default: ", kControlTokenVariable,
                               " from the environment)"))
      ->group("Workers");
  app->add_option("--replica", options->replica, "Data-parallel replica of this rank, from 0")
      ->check(CLI::NonNegativeNumber)
      ->group("Workers");
  app->add_option("--epoch", options->epoch,
                  "Worker group that this rank was started for (default: whichever is there)")
      ->group("Workers");
  app->add_option("--ranks-per-host", options->ranks_per_host,
                  "Ranks of all replicas that share this host (default: those of this mpirun)")
      ->check(CLI::NonNegativeNumber)
      ->group("Workers");
  app->add_option("--gpu", options->gpu,
                  "GPU of this rank, or of each rank of its group in rank order, 4,5,6,7; with "
                  "--device-comm staged counting goes on past the last GPU at the first (default: "
                  "the rank's number among its host's)")
      ->group("Workers");
  app->add_option("--connect-timeout", options->connect_timeout,
                  "Seconds to wait for the coordinator")
      ->check(CheckPositive)
      ->capture_default_str()
      ->group("Workers");
  app->callback([app, options, run, hooks] {
    *run = [app, options, hooks] {
      const Environment environment = ReadEnvironment();
      if (options->token.empty()) options->token = environment.control_token;
      absl::Status status = CheckDeviceFlags(*app, options->rank);
      if (status.ok()) status = RunWorker(*options, environment, hooks);
      return status.ok() ? kExitDone : Fail("worker", status);
    };
  });
}

}  // namespace phalanx::launcher
