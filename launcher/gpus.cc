#include "launcher/gpus.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launcher/machine.h"

namespace phalanx::launcher {

absl::StatusOr<worker::DeviceTransport> ParseDeviceTransport(const std::string& name) {
  if (name == "auto") return worker::DeviceTransport::kAuto;
  if (name == "nccl") return worker::DeviceTransport::kNccl;
  if (name == "staged") return worker::DeviceTransport::kStaged;
  return absl::InvalidArgumentError(
      absl::StrCat("--device-comm ", name, ": expected auto, nccl or staged"));
}

absl::StatusOr<kernels::Numerics> ParseNumerics(const RankOptions& options) {
  if (options.numerics == "exact") return kernels::Numerics::kExact;
  if (options.numerics != "fast") {
    return absl::InvalidArgumentError(
        absl::StrCat("--numerics ", options.numerics, ": expected exact or fast"));
  }
  if (options.device != "cuda") {
    return absl::InvalidArgumentError(
        "--numerics fast is of GPUs alone; add --device cuda, or leave --numerics exact");
  }
  return kernels::Numerics::kFast;
}

absl::StatusOr<HostPlace> PlaceOfRank(const Environment& environment, const std::string& gpus,
                                      int ranks_per_host) {
  HostPlace place;
  place.host = HostName();
  place.number = environment.local_rank;
  if (!gpus.empty()) {
    std::vector<int> numbers;
    for (const absl::string_view item : absl::StrSplit(gpus, ',')) {
      int number = 0;
      if (!absl::SimpleAtoi(item, &number) || number < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("--gpu: \"", item, "\" is not the number of a GPU; write 0, or one for ",
                         "each rank of the group as 0,1,2,3"));
      }
      numbers.push_back(number);
    }
    const size_t at = numbers.size() == 1 ? 0 : environment.rank;
    if (at >= numbers.size()) {
      return absl::InvalidArgumentError(absl::StrCat("--gpu ", gpus, " has numbers for ",
                                                     numbers.size(), " ranks, but this is rank ",
                                                     environment.rank, "; give one for each"));
    }
    place.number = numbers[at];
  }
  // The group's ranks on this host follow one another.
  const int last = place.number - environment.local_rank + environment.local_ranks;
  place.ranks = std::max({1, place.number + 1, last});
  place.all_ranks = std::max(place.ranks, ranks_per_host);
  return place;
}

absl::Status CheckDevicePerRank(const std::string& host, int ranks, int devices) {
  if (ranks <= devices) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "host ", host, " has ", devices, devices == 1 ? " CUDA device" : " CUDA devices", " for ",
      ranks, " ranks, and NCCL needs one for each: use at most ", devices,
      devices == 1 ? " rank" : " ranks",
      " per host (a smaller --layout, more --hosts), or --device-comm staged, with which ranks "
      "share devices; all of a host's devices must be visible to all its ranks (Slurm: "
      "--gpus-per-node, not --gpus-per-task)"));
}

absl::Status TakeDevice(const HostPlace& place, int devices, worker::WorkerOptions& options) {
  if (options.device_transport != worker::DeviceTransport::kStaged) {
    if (absl::Status status = CheckDevicePerRank(place.host, place.ranks, devices); !status.ok()) {
      return status;
    }
  }
  const int device = place.number % devices;
  options.device.cuda.device = device;
  // Ranks `device`, `device` + devices, and so on.
  const int sharing = (std::max(place.all_ranks, place.number + 1) - 1 - device) / devices + 1;
  options.gpu_memory_fraction /= sharing;
  options.device.cuda.memory_is_shared = sharing > 1;
  return absl::OkStatus();
}

void PlaceReplica(int replica, int replicas, int ranks, int devices,
                  worker::WorkerOptions& options) {
  const auto of_one = [devices](int all) { return (all + devices - 1) / devices; };
  options.device.cuda.device = replica * ranks % devices;
  options.gpu_memory_fraction *= static_cast<double>(of_one(ranks)) / of_one(replicas * ranks);
  options.device.cuda.memory_is_shared = of_one(replicas * ranks) > 1;
}

absl::Status PlaceReplica(int replica, int replicas, int ranks, worker::WorkerOptions& options) {
  if (options.device.kind != kernels::DeviceKind::kCuda) return absl::OkStatus();
  const absl::StatusOr<int> devices = kernels::CudaDeviceCount();
  if (!devices.ok()) return devices.status();
  PlaceReplica(replica, replicas, ranks, *devices, options);
  return absl::OkStatus();
}

absl::Status CheckDevicesHere(const RankOptions& options, int ranks, bool threads) {
  if (options.device != "cuda") return absl::OkStatus();
  if (threads && options.device_comm == "nccl") {
    return absl::InvalidArgumentError(
        "--device-comm nccl: ranks that are threads of one process share its devices and stage "
        "through its memory; use --workers mpirun or srun, or --device-comm staged");
  }
  const absl::StatusOr<int> devices = kernels::CudaDeviceCount();
  if (!devices.ok()) return devices.status();
  if (threads || options.device_comm == "staged") return absl::OkStatus();
  return CheckDevicePerRank(HostName(), ranks, *devices);
}

std::vector<std::string> GpuModels(const std::string& directory) {
  std::vector<std::string> out;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    std::ifstream in(entry.path() / "information");
    std::string line;
    while (std::getline(in, line)) {
      absl::string_view name = line;
      if (!absl::ConsumePrefix(&name, "Model:")) continue;
      out.emplace_back(absl::StripAsciiWhitespace(name));
      break;
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace phalanx::launcher
