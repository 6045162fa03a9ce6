#include "runtime/cache/block_striping.h"

#include <algorithm>

#include "kernels/check.h"
#include "parallel/leaves.h"

namespace phalanx::cache {

BlockStriping::BlockStriping(int ranks, int stripes) : first_stripe_(1, 0) {
  PHALANX_CHECK(ranks >= 1 && ranks <= stripes) << ranks << " ranks, " << stripes << " stripes";
  for (int rank = 0; rank < ranks; ++rank) {
    const parallel::Range run = parallel::LeafRun(rank, ranks, stripes);
    rank_of_stripe_.insert(rank_of_stripe_.end(), run.size(), rank);
    first_stripe_.push_back(run.end);
  }
}

int64_t BlockStriping::BlocksOn(int rank, int64_t num_blocks) const {
  const int64_t first = first_stripe_[rank];
  const int64_t owned = first_stripe_[rank + 1] - first;
  const int64_t rest = num_blocks % stripes();
  return num_blocks / stripes() * owned + std::clamp<int64_t>(rest - first, 0, owned);
}

BlockStriping::Limit BlockStriping::LimitOf(int64_t blocks_per_rank) const {
  Limit limit;
  for (int rank = 0; rank < ranks(); ++rank) {
    const int64_t first = first_stripe_[rank];
    const int64_t owned = first_stripe_[rank + 1] - first;
    // The absolute index of the rank's first block that has no room.
    const int64_t index = blocks_per_rank / owned * stripes() + first + blocks_per_rank % owned;
    if (rank == 0 || index < limit.num_blocks) limit = {rank, index};
  }
  return limit;
}

}  // namespace phalanx::cache
