// The collectives' side of a calibration.
#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "launcher/measure.h"
#include "launcher/statistics.h"
#include "parallel/machine.h"
#include "parallel/shard.h"

namespace phalanx::launcher {
namespace {

using parallel::Collective;

// Leaves of the sums that are measured: the default profile's, or more where more ranks share them.
int Leaves(int members) { return std::max(8, members); }

class GroupBench {
 public:
  GroupBench(comm::Communicator& world, comm::Communicator& group, int64_t max_bytes)
      : world_(world),
        group_(group),
        cut_(group.size(), Leaves(group.size())),
        plan_{cut_.parts_per_member(), cut_.finish_program()},
        send_(std::max<int64_t>(max_bytes, 4096)),
        recv_(send_.size() * group.size()),
        out_(send_.size() / sizeof(float)) {
    for (size_t p = 0; p < cut_.parts(group.rank()).size(); ++p) {
      parts_.emplace_back(out_.size(), 1.0F);
      part_pointers_.push_back(parts_.back().data());
    }
  }

  // One collective of `bytes`, as CollectiveTimes counts them.
  absl::Status Once(Collective op, int64_t bytes) {
    const int n = group_.size();
    const int64_t count = std::max<int64_t>(1, bytes / static_cast<int64_t>(sizeof(float)));
    switch (op) {
      case Collective::kAllReduce:
        return group_.AllReduce(plan_, part_pointers_, out_.data(), count);
      case Collective::kReduceScatter: {
        std::vector<int64_t> counts(n);
        for (int r = 0; r < n; ++r) counts[r] = count * (r + 1) / n - count * r / n;
        return group_.ReduceScatter(plan_, part_pointers_, out_.data(), counts);
      }
      case Collective::kAllGather:
        return group_.AllGather(send_.data(), recv_.data(), std::vector<int64_t>(n, bytes));
      case Collective::kGather:
        return group_.Gather(send_.data(), recv_.data(), std::vector<int64_t>(n, bytes), 0);
      case Collective::kAllToAll: {
        const std::vector<int64_t> each(n, bytes / n);
        return group_.AllToAll(send_.data(), each, recv_.data(), each);
      }
      case Collective::kSend: {
        // There and back, between each two: half of it is one way.
        const int peer = group_.rank() ^ 1;
        if (peer >= n) return absl::OkStatus();
        absl::Status status;
        if (group_.rank() % 2 == 0) {
          status = group_.Send(send_.data(), bytes, peer, 0);
          return status.ok() ? group_.Recv(recv_.data(), bytes, peer, 0) : status;
        }
        status = group_.Recv(recv_.data(), bytes, peer, 0);
        return status.ok() ? group_.Send(send_.data(), bytes, peer, 0) : status;
      }
    }
    return absl::OkStatus();
  }

  // Median seconds of one, of `rounds` rows of them.
  absl::StatusOr<double> Time(Collective op, int64_t bytes, int rounds) {
    std::vector<double> times;
    const int repeats = static_cast<int>(
        std::clamp<int64_t>((int64_t{1} << 20) / std::max<int64_t>(bytes, 1), 2, 16));
    for (int round = -1; round < rounds; ++round) {
      if (absl::Status status = world_.Barrier(); !status.ok()) return status;
      const double begin = SteadySeconds();
      for (int i = 0; i < repeats; ++i) {
        if (absl::Status status = Once(op, bytes); !status.ok()) return status;
      }
      const double seconds = (SteadySeconds() - begin) / repeats;
      if (round >= 0) times.push_back(op == Collective::kSend ? seconds / 2 : seconds);
    }
    return Median(std::move(times));
  }

 private:
  comm::Communicator& world_;
  comm::Communicator& group_;
  const parallel::TreeCut cut_;
  const comm::ReducePlan plan_;
  std::vector<char> send_;
  std::vector<char> recv_;
  std::vector<float> out_;
  std::vector<std::vector<float>> parts_;
  std::vector<const float*> part_pointers_;
};

}  // namespace

absl::StatusOr<std::vector<v1::CollectiveMeasurement>> MeasureCollectives(comm::Communicator& world,
                                                                          int nodes, bool quick) {
  std::vector<int64_t> sizes = {256,
                                int64_t{4} << 10,
                                int64_t{16} << 10,
                                int64_t{64} << 10,
                                int64_t{256} << 10,
                                int64_t{1} << 20,
                                int64_t{4} << 20};
  if (quick) sizes = {256, int64_t{64} << 10, int64_t{1} << 20};
  const int per_node = world.size() / nodes;
  std::vector<v1::CollectiveMeasurement> out;
  const auto measure = [&](int n, int color, bool across) -> absl::Status {
    auto group = world.Split(color, world.rank());
    if (!group.ok()) return group.status();
    GroupBench bench(world, **group, sizes.back());
    for (const Collective op : parallel::kCollectives) {
      if (op == Collective::kSend && n != 2) continue;
      v1::CollectiveMeasurement measured;
      // The enums' orders agree.
      measured.set_op(static_cast<v1::CollectiveMeasurement::Op>(static_cast<int>(op) + 1));
      measured.set_members(n);
      measured.set_running(std::max(2, per_node));
      if (across) measured.set_across_nodes(true);
      for (const int64_t bytes : sizes) {
        const absl::StatusOr<double> seconds = bench.Time(op, bytes, quick ? 3 : 9);
        if (!seconds.ok()) return seconds.status();
        v1::TransferPoint* point = measured.add_times();
        point->set_size(static_cast<double>(bytes));
        point->set_us(std::max(*seconds * 1e6, 1e-3));
      }
      out.push_back(std::move(measured));
    }
    return absl::OkStatus();
  };
  for (int n = 2; n <= per_node; ++n) {
    if (per_node % n != 0) continue;
    const absl::Status status = measure(n, world.rank() / n, false);
    if (!status.ok()) return status;
  }
  for (int n = nodes; n > 1 && n <= world.size(); n += nodes) {
    if (world.size() % n != 0) continue;
    // As many members on each node.
    const int groups = world.size() / n;
    const absl::Status status = measure(n, world.rank() % per_node % groups, true);
    if (!status.ok()) return status;
  }
  return out;
}

}  // namespace phalanx::launcher
