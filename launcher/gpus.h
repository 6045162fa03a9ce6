// Which GPU of its host a rank computes on, and what is wrong where it can't.
//
// All GPUs of a host are visible to all its ranks; a rank takes the one of its own number among the
// ranks there. NCCL wants a GPU for each rank (ncclCommInitRank refuses two on one); ranks whose
// bytes are staged through the host's memory may share GPUs, by turns.
#ifndef PHALANX_LAUNCHER_GPUS_H_
#define PHALANX_LAUNCHER_GPUS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_device.h"
#include "launcher/env.h"
#include "launcher/options.h"
#include "runtime/worker/worker.h"

namespace phalanx::launcher {

// "auto", "nccl", "staged".
absl::StatusOr<worker::DeviceTransport> ParseDeviceTransport(const std::string& name);

// What --numerics says. INVALID_ARGUMENT where it is fast and ranks don't compute on GPUs.
absl::StatusOr<kernels::Numerics> ParseNumerics(const RankOptions& options);

// A rank among those of its host.
struct HostPlace {
  std::string host;   // for messages
  int number = 0;     // of this rank among its host's ranks of all replicas, from 0
  int ranks = 1;      // of the host, up to the last of this rank's replica
  int all_ranks = 1;  // of the host, with those of later replicas
};

// Where the environment and the flags put this rank. `gpus`: --gpu, a number, or one for each rank
// of the group in rank order, or empty: by the rank among its host's. `ranks_per_host`: at least so
// many ranks share the host. INVALID_ARGUMENT: --gpu is no such list, or too short for the rank.
absl::StatusOr<HostPlace> PlaceOfRank(const Environment& environment, const std::string& gpus,
                                      int ranks_per_host);

// INVALID_ARGUMENT where `ranks` ranks of `host` would need more than its `devices`, one for each.
absl::Status CheckDevicePerRank(const std::string& host, int ranks, int devices);

// Gives the rank at `place` its device of the host's `devices`, and, where ranks share that, its
// part of the memory. INVALID_ARGUMENT as CheckDevicePerRank, unless options.device_transport is
// kStaged. Precondition: devices >= 1.
absl::Status TakeDevice(const HostPlace& place, int devices, worker::WorkerOptions& options);

// Gives replica `replica` of `replicas` groups of `ranks` threads each, with --device cuda, its
// first device, and its part of the memory where the host's devices (1 or more) are fewer than all
// ranks: of what its group's ranks then share among themselves (worker::CreateInProcessGroup).
void PlaceReplica(int replica, int replicas, int ranks, int devices,
                  worker::WorkerOptions& options);
// The same on this machine's devices; nothing to do for other kinds. As CudaDeviceCount().
absl::Status PlaceReplica(int replica, int replicas, int ranks, worker::WorkerOptions& options);

// Before anything starts: whether this machine has the devices for `options`, whose `ranks` ranks
// all run here, as threads of this process or as processes. Errors: as kernels::CudaDeviceCount()
// and CheckDevicePerRank; INVALID_ARGUMENT: NCCL is asked for between threads.
absl::Status CheckDevicesHere(const RankOptions& options, int ranks, bool threads);

// Names of this machine's GPUs, e.g. "NVIDIA H100 80GB HBM3", as the driver lists them under
// `directory` (one folder a GPU); empty where there is no driver. CUDA isn't started for it.
std::vector<std::string> GpuModels(const std::string& directory = "/proc/driver/nvidia/gpus");

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_GPUS_H_
