#include "launcher/gpus.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "launcher/service.h"

namespace phalanx::launcher {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using worker::DeviceTransport;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

Environment Rank(int rank, int local_rank, int local_ranks) {
  Environment out;
  out.rank = rank;
  out.local_rank = local_rank;
  out.local_ranks = local_ranks;
  return out;
}

HostPlace Place(int number, int ranks) {
  HostPlace out;
  out.host = "n1";
  out.number = number;
  out.ranks = out.all_ranks = ranks;
  return out;
}

// The device and the share of its memory of rank `number` of `ranks`.
std::pair<int, double> Taken(int number, int ranks, int devices) {
  worker::WorkerOptions options;
  options.device_transport = DeviceTransport::kStaged;
  options.gpu_memory_fraction = 0.9;
  const absl::Status status = TakeDevice(Place(number, ranks), devices, options);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(options.device.cuda.memory_is_shared, options.gpu_memory_fraction < 0.9);
  return {options.device.cuda.device, options.gpu_memory_fraction};
}

TEST(PlaceOfRank, IsTheRanksNumberAmongItsHosts) {
  const auto place = PlaceOfRank(Rank(11, 3, 8), "", 0);
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(place->number, 3);
  EXPECT_EQ(place->ranks, 8);
  EXPECT_EQ(place->all_ranks, 8);
  EXPECT_FALSE(place->host.empty());
}

TEST(PlaceOfRank, GpusAreOfTheRankOrOfEachRankOfItsGroup) {
  EXPECT_EQ(PlaceOfRank(Rank(0, 0, 1), "3", 0)->number, 3);
  // The second of two replicas of four ranks on a host of eight GPUs.
  const auto second = PlaceOfRank(Rank(2, 2, 4), "4,5,6,7", 8);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->number, 6);
  EXPECT_EQ(second->ranks, 8);
  // The first knows of the second by its ranks per host alone, and needs no GPU for it.
  const auto first = PlaceOfRank(Rank(2, 2, 4), "0,1,2,3", 8);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->ranks, 4);
  EXPECT_EQ(first->all_ranks, 8);
}

TEST(PlaceOfRank, RefusesWhatIsNoListOrTooShort) {
  for (const char* gpus : {"a", "0,", "-1", "0,,1"}) {
    const auto place = PlaceOfRank(Rank(0, 0, 1), gpus, 0);
    EXPECT_EQ(place.status().code(), absl::StatusCode::kInvalidArgument) << gpus;
    EXPECT_THAT(Text(place.status()), HasSubstr("--gpu"));
  }
  const auto place = PlaceOfRank(Rank(2, 2, 3), "0,1", 0);
  EXPECT_THAT(Text(place.status()), HasSubstr("numbers for 2 ranks, but this is rank 2"));
}

TEST(TakeDevice, NcclGivesEachRankTheDeviceOfItsNumberWhole) {
  for (const DeviceTransport transport : {DeviceTransport::kAuto, DeviceTransport::kNccl}) {
    worker::WorkerOptions options;
    options.device_transport = transport;
    const absl::Status status = TakeDevice(Place(5, 8), 8, options);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(options.device.cuda.device, 5);
    EXPECT_EQ(options.gpu_memory_fraction, 0.9);
  }
}

TEST(TakeDevice, NcclRefusesMoreRanksThanDevicesAndSaysTheWaysOut) {
  for (const DeviceTransport transport : {DeviceTransport::kAuto, DeviceTransport::kNccl}) {
    worker::WorkerOptions options;
    options.device_transport = transport;
    // The first rank, which would have a device, too.
    const absl::Status status = TakeDevice(Place(0, 8), 4, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Text(status), HasSubstr("host n1 has 4 CUDA devices for 8 ranks"));
    EXPECT_THAT(Text(status), HasSubstr("at most 4 ranks per host"));
    EXPECT_THAT(Text(status), HasSubstr("--device-comm staged"));
    EXPECT_THAT(Text(status), HasSubstr("--gpus-per-node"));
  }
}

TEST(TakeDevice, StagedRanksTakeDevicesByTurnsAndShareTheirMemory) {
  using ::testing::Pair;
  EXPECT_THAT(Taken(1, 2, 2), Pair(1, 0.9));
  EXPECT_THAT(Taken(3, 4, 2), Pair(1, 0.45));
  // Three ranks on two devices: the first has two of them.
  EXPECT_THAT(Taken(0, 3, 2), Pair(0, 0.45));
  EXPECT_THAT(Taken(1, 3, 2), Pair(1, 0.9));
  EXPECT_THAT(Taken(2, 3, 2), Pair(0, 0.45));
  EXPECT_THAT(Taken(5, 8, 1), Pair(0, 0.9 / 8));
}

TEST(TakeDevice, LaterReplicasShareTheMemoryToo) {
  HostPlace place = Place(0, 1);
  place.all_ranks = 2;
  worker::WorkerOptions options;
  options.device_transport = DeviceTransport::kStaged;
  ASSERT_TRUE(TakeDevice(place, 1, options).ok());
  EXPECT_EQ(options.gpu_memory_fraction, 0.45);
}

TEST(PlaceReplica, ThreadsShareDevicesWhereThereAreFewerThanRanks) {
  // First device, and the group's part of the memory.
  const auto placed = [](int replica, int replicas, int ranks, int devices) {
    worker::WorkerOptions options;
    options.gpu_memory_fraction = 0.9;
    PlaceReplica(replica, replicas, ranks, devices, options);
    EXPECT_EQ(options.device.cuda.memory_is_shared, replicas * ranks > devices);
    return std::pair(options.device.cuda.device, options.gpu_memory_fraction);
  };
  EXPECT_EQ(placed(0, 1, 2, 2), std::pair(0, 0.9));
  EXPECT_EQ(placed(1, 2, 1, 2), std::pair(1, 0.9));
  EXPECT_EQ(placed(1, 2, 1, 1), std::pair(0, 0.45));
  // Two groups of three on two devices: three ranks a device; a group itself divides by two.
  EXPECT_EQ(placed(1, 2, 3, 2), std::pair(1, 0.9 * (2.0 / 3)));
  // Of CPUs nothing changes.
  worker::WorkerOptions cpu;
  ASSERT_TRUE(PlaceReplica(1, 2, 1, cpu).ok());
  EXPECT_EQ(cpu.gpu_memory_fraction, worker::WorkerOptions().gpu_memory_fraction);
}

TEST(CheckDevicesHere, NcclIsNotBetweenThreads) {
  RankOptions options;
  options.device = "cuda";
  options.device_comm = "nccl";
  const absl::Status status = CheckDevicesHere(options, 1, /*threads=*/true);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(status), HasSubstr("--device-comm nccl: ranks that are threads"));
}

TEST(CheckDevicesHere, SaysWhatIsMissingWhereThereIsNoDevice) {
  EXPECT_TRUE(CheckDevicesHere(RankOptions(), 8, false).ok());
  RankOptions options;
  options.device = "cuda";
  const absl::Status status = CheckDevicesHere(options, 1, false);
  const auto devices = kernels::CudaDeviceCount();
  if (devices.ok()) {
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_THAT(Text(CheckDevicesHere(options, *devices + 1, false)),
                HasSubstr("NCCL needs one for each"));
    options.device_comm = "staged";
    EXPECT_TRUE(CheckDevicesHere(options, *devices + 1, false).ok());
  } else {
    EXPECT_EQ(status, devices.status());
    EXPECT_THAT(Text(status), HasSubstr("no CUDA device"));
  }
}

TEST(MakeWorkerOptions, LeaveAGpusKvMemoryToTheRank) {
  RankOptions options;
  options.device = "cuda";
  options.device_comm = "staged";
  options.gpu_memory_fraction = 0.5;
  options.threads = 3;
  const auto open = MakeWorkerOptions(options, 2);
  ASSERT_TRUE(open.ok()) << open.status();
  EXPECT_EQ(open->device.kind, kernels::DeviceKind::kCuda);
  EXPECT_EQ(open->device_transport, DeviceTransport::kStaged);
  EXPECT_EQ(open->gpu_memory_fraction, 0.5);
  EXPECT_EQ(open->device.cuda.pack_threads, 3);
  EXPECT_EQ(open->kv_memory_bytes, 0);
  EXPECT_EQ(open->max_kv_sequences, 0);
  options.kv_memory = "1GiB";
  EXPECT_EQ(MakeWorkerOptions(options, 2)->kv_memory_bytes, int64_t{1} << 30);
  // As before on CPUs.
  options.device = "cpu";
  options.kv_memory = "";
  EXPECT_GT(MakeWorkerOptions(options, 2)->kv_memory_bytes, 0);
  EXPECT_EQ(MakeWorkerOptions(options, 2)->device.kind, kernels::DeviceKind::kCpu);
}

TEST(MakeWorkerOptions, SayInTheProfileWhatIsComputedOnAndHow) {
  RankOptions options;
  EXPECT_EQ(MakeWorkerOptions(options, 1)->profile.ToString(),
            "cpu-exact weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32");
  options.device = "cuda";
  EXPECT_EQ(MakeWorkerOptions(options, 1)->profile.ToString(),
            "cuda-exact weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32");
  EXPECT_EQ(MakeWorkerOptions(options, 1)->device.cuda.numerics, kernels::Numerics::kExact);
  options.numerics = "fast";
  EXPECT_EQ(MakeWorkerOptions(options, 1)->profile.ToString(),
            "cuda-fast weights=BF16 activations=BF16 kv=BF16 leaves=8 stripes=8 block=32");
  options.kv_dtype = "fp8_e4m3";
  EXPECT_EQ(MakeWorkerOptions(options, 1)->profile.ToString(),
            "cuda-fast weights=BF16 activations=BF16 kv=F8_E4M3 leaves=8 stripes=8 block=32");
  options.weight_dtype = "fp8_e4m3";
  EXPECT_EQ(MakeWorkerOptions(options, 1)->profile.ToString(),
            "cuda-fast weights=F8_E4M3 activations=BF16 kv=F8_E4M3 leaves=8 stripes=8 block=32");
  EXPECT_EQ(MakeWorkerOptions(options, 1)->device.cuda.numerics, kernels::Numerics::kFast);
}

TEST(MakeWorkerOptions, RefuseFastWithoutGpus) {
  RankOptions options;
  options.numerics = "fast";
  const absl::Status status = MakeWorkerOptions(options, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(status), HasSubstr("--numerics fast is of GPUs alone"));
  EXPECT_THAT(Text(status), HasSubstr("add --device cuda, or leave --numerics exact"));
}

TEST(GpuModels, AreThoseThatTheDriverLists) {
  std::string name = fs::temp_directory_path() / "phalanx-gpus-XXXXXX";
  const fs::path root = mkdtemp(name.data());
  for (const char* bus : {"0000:18:00.0", "0000:2a:00.0"}) {
    fs::create_directories(root / bus);
    std::ofstream(root / bus / "information")
        << "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t GPU-0\n";
  }
  EXPECT_THAT(GpuModels(root), ElementsAre("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"));
  fs::remove_all(root);
  EXPECT_THAT(GpuModels(root), IsEmpty());
}

}  // namespace
}  // namespace phalanx::launcher
