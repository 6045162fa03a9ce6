// From a model's directory and a cluster configuration to a layout: what `plan` prints and what
// `--layout auto` uses. Starts nothing and reads no weights.
#ifndef PHALANX_LAUNCHER_PLANNING_H_
#define PHALANX_LAUNCHER_PLANNING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "launcher/config.h"
#include "launcher/options.h"
#include "parallel/planner.h"
#include "runtime/checkpoint/model_config.h"

// CLI11 (declared alone: its header takes the compiler ten seconds).
namespace CLI {
class App;
}  // namespace CLI

namespace phalanx::launcher {

// What a plan is made for, beside the model and the cluster.
struct PlanningOptions {
  std::string objective = "latency";  // or throughput
  std::string calibration;            // file; empty: stated rates
  std::string gpu_type;               // "8xh200" or "h200"; empty: this machine's
  int64_t prompt_tokens = 1024;
  int64_t output_tokens = 256;
  int64_t concurrency = 16;
};
// Adds --objective, --calibration, --gpu-type, --prompt-tokens, --output-tokens and --concurrency.
void AddPlanningOptions(CLI::App& app, PlanningOptions& options);

// `weights`: dtype of the linear weights.
parallel::ModelSpec MakeModelSpec(const checkpoint::ModelConfig& config, kernels::DType weights,
                                  const std::string& name);
// Of DIR/config.json; the weights' dtype is that of the tensors where they are there, else what
// config.json declares, else what the size in model.safetensors.index.json comes to, else BF16.
absl::StatusOr<parallel::ModelSpec> ReadModelSpec(const std::string& directory);
// Layouts in memory of kernels/cpu and kernels/cuda.
parallel::DeviceTraits CpuTraits(kernels::DType weights);
parallel::DeviceTraits CudaTraits(kernels::DType weights);

// The machines of `file` (null: none is given), else of `hosts` ("a:2,b", may be empty), each taken
// to be like this machine, else this machine. Of `rank`: threads of each rank (0: cores / ranks),
// device and gpu_memory_fraction. `gpu_type`: as in PlanningOptions; where neither it nor the file
// says what GPUs there are, this machine's driver is asked. Errors: INVALID_ARGUMENT where the file
// describes machines for another device, or GPUs are of no known type;
// kernels::CudaDeviceCount()'s.
absl::StatusOr<parallel::ClusterSpec> MakeCluster(const ConfigFile* file, const std::string& hosts,
                                                  const RankOptions& rank,
                                                  const std::string& gpu_type);

// That --gpu-type, where it is given, has something to say: INVALID_ARGUMENT where ranks are to
// compute on CPUs and where the file (null: none) describes the machines.
absl::Status CheckGpuType(const ConfigFile* file, const RankOptions& rank,
                          const std::string& gpu_type);

// All of it: the options of a planner for a service's flags. `file`: its --cluster file or null;
// axes that `options.rank.layout` gives are settled, "auto" and "" settle none.
absl::StatusOr<parallel::PlanOptions> MakePlanOptions(const ServiceOptions& options,
                                                      const PlanningOptions& planning,
                                                      const ConfigFile* file);

// Cuts the requests that `plan` is made for to the context, where that is shorter.
void FitWorkload(parallel::PlanOptions& plan);

// The best layout of `plan`, with why in the log, for requests that fit the context.
// FAILED_PRECONDITION where nothing fits.
absl::StatusOr<parallel::Layout> ChooseLayout(parallel::PlanOptions plan);

// For `run` and `serve`: where options.rank.layout is "auto", puts the best layout there and says
// why in the log. Call it after ApplyClusterFile() and before Service::Create().
// FAILED_PRECONDITION where nothing fits; INVALID_ARGUMENT where the file describes several
// machines and nobody names them (a warning, where the layout is given).
absl::Status SettleLayout(const PlanningOptions& planning, ServiceOptions& options);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_PLANNING_H_
