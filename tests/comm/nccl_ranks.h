// Ranks as threads, each with a FakeDevice, over the fake NCCL.
#ifndef PHALANX_TESTS_COMM_NCCL_RANKS_H_
#define PHALANX_TESTS_COMM_NCCL_RANKS_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/nccl/nccl_communicator.h"
#include "tests/comm/fake_device.h"
#include "tests/comm/fake_nccl.h"
#include "tests/testing/rank_threads.h"

namespace phalanx::comm {

// Quick to notice and to end.
inline NcclOptions QuickOptions() {
  NcclOptions options;
  options.watchdog.tick = absl::Milliseconds(5);
  options.watchdog.abort_grace = absl::ZeroDuration();
  options.watchdog.roll_call_timeout = absl::Seconds(20);  // sanitizers are slow
  return options;
}

// What each of `n` ranks returned. A rank's communicator is destroyed before its device.
inline std::vector<absl::Status> RunNccl(
    int n, const std::function<absl::Status(NcclCommunicator&, FakeDevice&)>& rank,
    const NcclOptions& options = QuickOptions()) {
  return testing::RunRanks(n, [&](Communicator& host) -> absl::Status {
    FakeDevice device(absl::StrCat("GPU-", host.rank()));
    auto group = NcclCommunicator::Create(host, device, FakeNcclLibrary(), options);
    if (!group.ok()) return group.status();
    return rank(**group, device);
  });
}

// `count` floats of `value` on `device`.
inline kernels::Buffer Floats(FakeDevice& device, int64_t count, float value) {
  absl::StatusOr<kernels::Buffer> buffer = device.Allocate(count * 4);
  const std::vector<float> host(count, value);
  device.CopyIn(buffer->data(), host.data(), count * 4);
  return *std::move(buffer);
}

inline std::vector<float> OnHost(FakeDevice& device, const kernels::Buffer& memory) {
  std::vector<float> host(memory.bytes() / 4);
  device.CopyOut(host.data(), memory.data(), static_cast<int64_t>(memory.bytes()));
  return host;
}

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_NCCL_RANKS_H_
