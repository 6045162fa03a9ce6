#include "runtime/worker/parallel_context.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/nccl/nccl_communicator.h"
#include "comm/staged/staged_communicator.h"
#include "parallel/shard.h"

namespace phalanx::worker {

absl::Status CheckLayout(const parallel::Layout& layout, int reduction_leaves,
                         int sequence_stripes) {
  return parallel::DecoderShards::CheckAxes(layout, reduction_leaves, sequence_stripes);
}

int ResultRank(const parallel::Layout& layout) { return (layout.pp - 1) * layout.sp * layout.tp; }

int ParallelContext::result_rank() const { return ResultRank(groups_.layout); }

void ParallelContext::set_timeout(absl::Duration timeout) {
  group_->set_timeout(timeout);
  for (comm::Communicator* axis : {tp_.get(), sp_.get(), pp_.get(), stage_.get()}) {
    if (axis != nullptr) axis->set_timeout(timeout);
  }
  for (const auto& axis : device_axes_) axis->set_timeout(timeout);
}

uint64_t ParallelContext::collective_number() const {
  uint64_t sum = group_->collective_number();
  for (const comm::Communicator* axis : {tp_.get(), sp_.get(), pp_.get(), stage_.get()}) {
    if (axis != nullptr) sum += axis->collective_number();
  }
  for (const auto& axis : device_axes_) {
    if (counts_device_calls_) sum += axis->collective_number();
  }
  return sum;
}

absl::StatusOr<ParallelContext> ParallelContext::Create(const parallel::Layout& layout,
                                                        comm::Communicator& group) {
  if (layout.group_size() != group.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout ", layout.ToString(), " needs ", layout.group_size(), " ranks, but ",
                     group.size(), " were started; start that many or change --layout"));
  }
  ParallelContext context;
  context.group_ = &group;
  model::ParallelGroups& groups = context.groups_;
  groups.layout = layout;
  groups.at = parallel::Mesh(layout).coordinates(group.rank());
  const auto [p, s, t] = groups.at;
  absl::Status status;
  // `color`: ranks of one color share the axis; `place`: this rank's rank on it.
  const auto bind = [&](int size, int color, int place, std::unique_ptr<comm::Communicator>& owned,
                        comm::Communicator*& axis) {
    if (!status.ok() || size == 1) return;
    if (size == group.size()) {
      axis = &group;
      return;
    }
    auto split = group.Split(color, place);
    if (!split.ok()) {
      status = split.status();
      return;
    }
    owned = *std::move(split);
    axis = owned.get();
  };
  bind(layout.tp, p * layout.sp + s, t, context.tp_, groups.tp);
  bind(layout.sp, p * layout.tp + t, s, context.sp_, groups.sp);
  bind(layout.pp, s * layout.tp + t, p, context.pp_, groups.pp);
  // Where one of its axes has one rank, the stage is the other one.
  if (layout.sp == 1) {
    groups.stage = groups.tp;
  } else if (layout.tp == 1) {
    groups.stage = groups.sp;
  } else {
    bind(layout.sp * layout.tp, p, groups.stage_rank(), context.stage_, groups.stage);
  }
  if (!status.ok()) return status;
  groups.host_pp = groups.pp;
  groups.host_stage = groups.stage;
  return context;
}

absl::Status ParallelContext::BindDevice(kernels::Kernels& device, DeviceTransport transport,
                                         kernels::Numerics numerics,
                                         std::shared_ptr<const comm::nccl::Library> given) {
  if (device.host_accessible()) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<const comm::nccl::Library>> nccl =
      absl::UnavailableError("NCCL was not asked for");
  counts_device_calls_ = transport != DeviceTransport::kStaged;
  if (given != nullptr) {
    nccl = std::move(given);
  } else if (counts_device_calls_ && group_->size() > 1) {
    nccl = comm::nccl::LoadLibrary();
  }
  comm::NcclOptions options;
  options.profile =
      numerics == kernels::Numerics::kFast ? comm::NcclProfile::kFast : comm::NcclProfile::kExact;
  std::map<comm::Communicator*, comm::Communicator*> bound;  // by the host's
  for (comm::Communicator** axis : {&groups_.tp, &groups_.sp, &groups_.pp, &groups_.stage}) {
    if (*axis == nullptr) continue;
    comm::Communicator*& on_device = bound[*axis];
    if (on_device == nullptr) {
      if (transport == DeviceTransport::kStaged) {
        device_axes_.push_back(comm::StageDeviceMemory(**axis, device));
      } else {
        auto created = comm::NcclCommunicator::Create(**axis, device, nccl, options);
        if (!created.ok()) return created.status();
        if (options.beside == nullptr) options.beside = created->get();
        device_axes_.push_back(*std::move(created));
      }
      on_device = device_axes_.back().get();
    }
    *axis = on_device;
  }
  return absl::OkStatus();
}

absl::Status ParallelContext::CheckDeviceCalls() const {
  for (const auto& axis : device_axes_) {
    if (const auto reason = axis->abort_reason()) return absl::AbortedError(*reason);
  }
  return absl::OkStatus();
}

}  // namespace phalanx::worker
