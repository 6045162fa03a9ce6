#include "runtime/worker/parallel_context.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/shard.h"

namespace phalanx::worker {

absl::Status CheckLayout(const parallel::Layout& layout, int reduction_leaves) {
  const std::pair<const char*, int> axes[] = {
      {"dp", layout.dp}, {"pp", layout.pp}, {"sp", layout.sp}, {"ep", layout.ep}};
  for (const auto& [axis, size] : axes) {
    if (size > 1) {
      return absl::UnimplementedError(absl::StrCat(
          "layout: ", axis, "=", size, " is not supported by this version, which shards with tp ",
          "alone; use tp=1 to tp=", reduction_leaves));
    }
  }
  return parallel::DecoderShards::Check(layout.tp, reduction_leaves);
}

absl::StatusOr<ParallelContext> ParallelContext::Create(const parallel::Layout& layout,
                                                        comm::Communicator& group) {
  if (layout.group_size() != group.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout ", layout.ToString(), " needs ", layout.group_size(), " ranks, but ",
                     group.size(), " were started; start that many or change --layout"));
  }
  ParallelContext context;
  context.mesh = parallel::Mesh(layout);
  context.at = context.mesh.coordinates(group.rank());
  context.group = &group;
  absl::StatusOr<std::unique_ptr<comm::Communicator>> tp =
      group.Split(/*color=*/context.at.p * layout.sp + context.at.s, /*key=*/context.at.t);
  if (!tp.ok()) return tp.status();
  context.tp = *std::move(tp);
  return context;
}

}  // namespace phalanx::worker
