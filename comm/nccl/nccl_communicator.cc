#include "comm/nccl/nccl_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/group/arguments.h"
#include "comm/group/reduce.h"
#include "comm/staged/staged_communicator.h"

namespace phalanx::comm {
namespace {

// What members tell each other before NCCL is asked.
struct Identity {
  int32_t version;   // of its NCCL, 0: it has none
  char device[80];   // Kernels::DeviceId
  char machine[80];  // for messages
  char error[400];   // why it has no NCCL
};

template <size_t size>
void Copy(std::string_view from, char (&to)[size]) {
  const size_t length = std::min(from.size(), size - 1);
  std::memcpy(to, from.data(), length);
  to[length] = 0;
}

// Whether these can be members of one NCCL communicator.
absl::Status CheckIdentities(const std::vector<Identity>& all) {
  constexpr const char* kRemedy = ", or use --device-comm staged";
  const int n = static_cast<int>(all.size());
  for (int r = 0; r < n; ++r) {
    const Identity& one = all[r];
    if (one.version == 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", r, " on ", one.machine, " has no NCCL: ", one.error));
    }
    if (one.version != all[0].version) {
      return absl::FailedPreconditionError(absl::StrCat(
          "NCCL: rank ", r, " on ", one.machine, " has version ", nccl::VersionText(one.version),
          ", rank 0 on ", all[0].machine, " has ", nccl::VersionText(all[0].version),
          "; expected one version: install the same on all machines", kRemedy));
    }
    if (one.device[0] == 0) {
      return absl::FailedPreconditionError(absl::StrCat("NCCL: rank ", r, " on ", one.machine,
                                                        " has no GPU; expected one GPU per rank"));
    }
    for (int q = 0; q < r; ++q) {
      if (std::strcmp(one.device, all[q].device) != 0) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("NCCL: rank ", q, " on ", all[q].machine, " and rank ", r, " on ",
                       one.machine, " share the GPU ", one.device,
                       "; expected one GPU per rank: start fewer ranks there", kRemedy));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    Communicator& host, kernels::Kernels& device,
    absl::StatusOr<std::shared_ptr<const nccl::Library>> library, const NcclOptions& options) {
  Identity mine;
  std::memset(&mine, 0, sizeof(mine));
  mine.version = library.ok() ? (*library)->version : 0;
  Copy(device.DeviceId(), mine.device);
  char machine[sizeof(mine.machine)] = {};
  gethostname(machine, sizeof(machine) - 1);
  Copy(machine, mine.machine);
  if (!library.ok()) Copy(std::string(library.status().message()), mine.error);
  std::vector<Identity> all(host.size());
  const std::vector<int64_t> bytes(host.size(), sizeof(Identity));
  if (absl::Status status = host.AllGather(&mine, all.data(), bytes); !status.ok()) return status;
  if (absl::Status status = CheckIdentities(all); !status.ok()) return status;
  return Connect(host, nullptr, device, *std::move(library),
                 options.beside == nullptr ? nullptr : options.beside->watchdog_, options);
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Connect(
    Communicator& host, std::unique_ptr<Communicator> owned, kernels::Kernels& device,
    std::shared_ptr<const nccl::Library> library, std::shared_ptr<NcclWatchdog> watchdog,
    const NcclOptions& options) {
  // NCCL takes the device that is the thread's.
  device.Synchronize();
  struct {
    nccl::UniqueId id;
    int32_t result;
  } start = {};
  if (host.rank() == 0) start.result = library->GetUniqueId(&start.id);
  if (absl::Status status = host.Broadcast(&start, sizeof(start), 0); !status.ok()) return status;
  auto alarm = host.Split(0, host.rank());
  if (!alarm.ok()) return alarm.status();
  auto roll_call = host.Split(0, host.rank());
  if (!roll_call.ok()) return roll_call.status();
  auto group = std::make_unique<NcclGroup>(library, host, std::move(owned), *std::move(alarm),
                                           *std::move(roll_call));
  absl::Status status;
  if (start.result != nccl::kSuccess) {
    status = absl::UnavailableError(
        absl::StrCat("NCCL on rank 0: starting a group: ",
                     library->GetErrorString(static_cast<nccl::Result>(start.result))));
  } else {
    status = group->Start(start.id, options.startup_timeout);
  }
  if (!status.ok()) {
    const std::string text = absl::StrCat(group->Prefix(), status.message());
    host.Abort(text);
    group->Close(absl::ZeroDuration());
    return absl::Status(status.code(), text);
  }
  if (watchdog == nullptr) watchdog = std::make_shared<NcclWatchdog>(library, options.watchdog);
  return std::unique_ptr<NcclCommunicator>(new NcclCommunicator(
      std::move(group), device, std::move(library), std::move(watchdog), options));
}

NcclCommunicator::NcclCommunicator(std::unique_ptr<NcclGroup> group, kernels::Kernels& device,
                                   std::shared_ptr<const nccl::Library> library,
                                   std::shared_ptr<NcclWatchdog> watchdog,
                                   const NcclOptions& options)
    : group_(std::move(group)),
      host_(group_->host()),
      device_(device),
      library_(std::move(library)),
      watchdog_(std::move(watchdog)),
      options_(options),
      staged_(StageDeviceMemory(host_, device)) {
  watchdog_->Add(group_.get());
}

NcclCommunicator::~NcclCommunicator() {
  group_->Close(timeout_);
  watchdog_->Remove(group_.get());
}

void NcclCommunicator::set_timeout(absl::Duration timeout) {
  timeout_ = timeout;
  host_.set_timeout(timeout);
}

absl::Status NcclCommunicator::Begin(Op op) {
  if (op != Op::kSend && op != Op::kRecv) group_->NoteBegun(op, ++collectives_);
  if (std::optional<std::string> reason = abort_reason(); reason.has_value()) {
    return absl::AbortedError(*reason);
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::End(Op op, absl::Status status) {
  if (status.ok()) return status;
  const bool numbered = op != Op::kSend && op != Op::kRecv;
  const std::string text = absl::StrCat(
      group_->Prefix(), OpName(op), " (", numbered ? "" : "after ", "collective ", collectives_,
      "): ", absl::IsAborted(status) ? "aborted: " : "", status.message());
  Abort(text);
  return absl::Status(status.code(), text);
}

void NcclCommunicator::Abort(std::string_view reason) {
  host_.Abort(reason);
  watchdog_->Wake();
}

absl::Status NcclCommunicator::Device(Op op, absl::Status checked, uint64_t digest, int peer,
                                      absl::FunctionRef<absl::Status()> enqueue) {
  absl::Status status = Begin(op);
  if (status.ok()) status = std::move(checked);
  if (!status.ok()) return End(op, std::move(status));
  const uint64_t id =
      watchdog_->Begin(group_.get(), {OpName(op), collectives_, digest, peer, timeout_});
  status = enqueue();
  watchdog_->Enqueued(id, status.ok() ? device_.Mark() : nullptr);
  return End(op, std::move(status));
}

void NcclCommunicator::WatchProgress(std::string_view what) {
  group_->NoteBegun(group_->last_op(), ++collectives_);
  const uint64_t id =
      watchdog_->Begin(group_.get(), {std::string(what), collectives_, 0, -1, timeout_});
  watchdog_->Enqueued(id, device_.Mark());
}

absl::Status NcclCommunicator::CheckAddends(const ReducePlan& plan,
                                            absl::Span<const float* const> parts) const {
  if (absl::Status status = CheckParts(*this, plan, parts); !status.ok()) return status;
  if (TotalParts(plan) > kernels::kMaxAddends) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the plan has ", TotalParts(plan), " parts; a device adds at most ", kernels::kMaxAddends));
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::BroadcastMessage(std::string& message, int root) {
  absl::Status status = Begin(Op::kBroadcastMessage);
  if (status.ok()) status = host_.BroadcastMessage(message, root);
  return End(Op::kBroadcastMessage, std::move(status));
}

absl::Status NcclCommunicator::Barrier() {
  absl::Status status = Begin(Op::kBarrier);
  if (status.ok()) status = host_.Barrier();
  return End(Op::kBarrier, std::move(status));
}

absl::Status NcclCommunicator::Send(const void* data, int64_t bytes, int peer, int tag) {
  absl::Status checked = CheckRank(*this, peer, "peer");
  if (checked.ok() && (bytes < 0 || tag < 0)) {
    checked = absl::InvalidArgumentError(
        absl::StrCat("bytes ", bytes, ", tag ", tag, "; expected 0 or more"));
  }
  if (checked.ok() && (peer == rank() || options_.messages == NcclMessages::kHost)) {
    if (absl::Status status = Begin(Op::kSend); !status.ok()) {
      return End(Op::kSend, std::move(status));
    }
    return End(Op::kSend, staged_->Send(data, bytes, peer, tag));
  }
  return Device(Op::kSend, std::move(checked), 0, peer, [&] {
    const Piece piece{data, bytes, peer, true};
    return Exchange({&piece, 1});
  });
}

absl::Status NcclCommunicator::Recv(void* data, int64_t bytes, int peer, int tag) {
  absl::Status checked = CheckRank(*this, peer, "peer");
  if (checked.ok() && (bytes < 0 || tag < 0)) {
    checked = absl::InvalidArgumentError(
        absl::StrCat("bytes ", bytes, ", tag ", tag, "; expected 0 or more"));
  }
  if (checked.ok() && (peer == rank() || options_.messages == NcclMessages::kHost)) {
    if (absl::Status status = Begin(Op::kRecv); !status.ok()) {
      return End(Op::kRecv, std::move(status));
    }
    return End(Op::kRecv, staged_->Recv(data, bytes, peer, tag));
  }
  return Device(Op::kRecv, std::move(checked), 0, peer, [&] {
    const Piece piece{data, bytes, peer, false};
    return Exchange({&piece, 1});
  });
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::Split(int color, int key) {
  if (absl::Status status = Begin(Op::kSplit); !status.ok()) {
    return End(Op::kSplit, std::move(status));
  }
  absl::StatusOr<std::unique_ptr<Communicator>> host = host_.Split(color, key);
  if (!host.ok()) return End(Op::kSplit, host.status());
  if (*host == nullptr) return nullptr;
  Communicator& members = **host;
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> split =
      Connect(members, *std::move(host), device_, library_, watchdog_, options_);
  if (!split.ok()) return End(Op::kSplit, split.status());
  (*split)->set_timeout(timeout_);
  return *std::move(split);
}

}  // namespace phalanx::comm
