// Brings a service up from flags: model, tokenizer, ranks, coordinator. What `run` and `serve`
// share.
#ifndef PHALANX_LAUNCHER_SERVICE_H_
#define PHALANX_LAUNCHER_SERVICE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/options.h"
#include "launcher/placement.h"
#include "launcher/planning.h"
#include "launcher/process_groups.h"
#include "launcher/progress_bar.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/control/control_server.h"
#include "runtime/control/remote_worker_group.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/worker/worker.h"

namespace phalanx::launcher {

// What a rank is started with, from its flags; `ranks_here`: ranks that share this machine, of all
// replicas. The layout of the result is that of one replica: dp is 1. Checks the layout and every
// flag. INVALID_ARGUMENT or UNIMPLEMENTED names the flag.
absl::StatusOr<worker::WorkerOptions> MakeWorkerOptions(const RankOptions& options, int ranks_here);

class Service {
 public:
  // Checks flags, configuration and tokenizer; starts nothing but, where ranks are processes, the
  // control port. `planning`: for the layout of a group on fewer hosts.
  static absl::StatusOr<std::unique_ptr<Service>> Create(const ServiceOptions& options,
                                                         const PlanningOptions& planning,
                                                         bool one_process_by_default);
  ~Service();  // Stop()s

  // How far Start() has got, for people. From any thread.
  std::string LoadingMessage() const { return loading_->Message(); }
  // CoordinatorOptions::replica_changed. Before Start().
  void OnReplicaChange(std::function<void()> call) { on_replica_change_ = std::move(call); }
  // Starts the ranks and waits until they have loaded; prints them to the log.
  absl::Status Start();
  void Stop();

  const checkpoint::ModelConfig& config() const { return config_; }
  // Null where the model has none and ServiceOptions::needs_text is not set.
  const tokenizer::Tokenizer* tokenizer() const { return tokenizer_.get(); }
  coordinator::Coordinator& coordinator() { return *coordinator_; }
  const model::Profile& profile() const { return worker_options_.profile; }
  const std::string& layout() const { return layout_; }
  int64_t max_context() const { return max_context_; }
  const std::string& model_directory() const { return options_.rank.model; }
  const std::string& checkpoint_digest() const { return checkpoint_digest_; }
  int64_t num_parameters() const { return num_parameters_; }
  const coordinator::ModelLimits& limits() const { return limits_; }
  // Last heartbeats of ranks that are processes; empty for threads.
  std::vector<control::RankHealth> Health() const;
  // How a replica's workers are started by hand, "mpirun -np 2 … worker …", quoted for a shell.
  std::string WorkerCommand(int replica) const;

 private:
  Service() = default;
  bool many_hosts() const { return !options_.hosts.empty() || !options_.hostfile.empty(); }
  // Divides named hosts among the replicas.
  absl::Status Place();
  // One per replica.
  absl::StatusOr<std::vector<std::unique_ptr<coordinator::GroupSource>>> CreateSources();

  ServiceOptions options_;
  PlanningOptions planning_;
  std::string layout_;  // of all replicas, as it is shown
  int replicas_ = 1;
  int group_size_ = 1;                // ranks of each replica
  std::vector<Placement> placement_;  // by replica; empty: this machine
  int64_t max_context_ = 0;
  int64_t num_parameters_ = 0;
  coordinator::ModelLimits limits_;
  checkpoint::ModelConfig config_;
  worker::WorkerOptions worker_options_;
  std::string checkpoint_digest_;
  std::string token_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  std::unique_ptr<control::ControlServer> control_;
  GroupSetup setup_;
  std::shared_ptr<LoadingProgress> loading_;
  std::function<void()> on_replica_change_ = [] {};
  // By replica, where ranks are processes; the coordinator owns them.
  std::vector<const ProcessGroupSource*> sources_;
  std::unique_ptr<coordinator::Coordinator> coordinator_;
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_SERVICE_H_
