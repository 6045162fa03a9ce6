#include "runtime/worker/slice_agreement.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace phalanx::worker {

using model::SliceDigest;

namespace {

using Entry = std::pair<uint64_t, uint64_t>;  // key, digest

// Every member's values side by side. `counts`: by member.
template <typename T>
absl::StatusOr<std::vector<T>> GatherAll(comm::Communicator& group, const std::vector<T>& mine,
                                         std::vector<int64_t>* counts) {
  std::vector<int64_t> sizes(group.size());
  const int64_t size = static_cast<int64_t>(mine.size());
  const std::vector<int64_t> one_each(group.size(), sizeof(int64_t));
  absl::Status status = group.AllGather(&size, sizes.data(), one_each);
  if (!status.ok()) return status;
  std::vector<T> all(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
  *counts = sizes;
  for (int64_t& bytes : sizes) bytes *= sizeof(T);
  status = group.AllGather(mine.data(), all.data(), sizes);
  if (!status.ok()) return status;
  return all;
}

struct Member {
  std::array<char, 64> host = {};
  int64_t pid = 0;
};

}  // namespace

absl::StatusOr<uint64_t> AgreeOnSlices(
    comm::Communicator& group, const coordinator::RankInfo& info, const std::vector<int64_t>& files,
    const std::vector<SliceDigest>& own,
    const std::function<absl::StatusOr<std::vector<SliceDigest>>(int rank)>& digest_of) {
  const int size = group.size();
  const int me = group.rank();
  std::vector<Entry> mine;
  absl::flat_hash_map<uint64_t, const SliceDigest*> by_key;
  for (const SliceDigest& slice : own) {
    mine.emplace_back(slice.key, slice.digest);
    by_key[slice.key] = &slice;
  }
  Member self;
  info.host.copy(self.host.data(), self.host.size() - 1);
  self.pid = info.pid;

  std::vector<int64_t> counts;
  const absl::StatusOr<std::vector<Member>> members =
      GatherAll(group, std::vector<Member>{self}, &counts);
  if (!members.ok()) return members.status();
  std::vector<int64_t> file_counts;
  const absl::StatusOr<std::vector<int64_t>> all_files = GatherAll(group, files, &file_counts);
  if (!all_files.ok()) return all_files.status();
  const absl::StatusOr<std::vector<Entry>> all = GatherAll(group, mine, &counts);
  if (!all.ok()) return all.status();

  std::vector<int64_t> first(size + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), first.begin() + 1);
  std::vector<int64_t> first_file(size + 1, 0);
  std::partial_sum(file_counts.begin(), file_counts.end(), first_file.begin() + 1);
  const auto same_files = [&](int a, int b) {
    return std::equal(all_files->begin() + first_file[a], all_files->begin() + first_file[a + 1],
                      all_files->begin() + first_file[b], all_files->begin() + first_file[b + 1]);
  };
  const auto name = [&](int rank) {
    const Member& member = (*members)[rank];
    return absl::StrCat("rank ", rank, " (", member.host.data(), ", pid ", member.pid, ")");
  };
  const auto differ = [&](int rank, const SliceDigest& slice) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint's files differ: ", name(rank), " and ", name(me),
        " read different bytes for ", slice.name, "; copy the checkpoint again to one of them"));
  };

  for (int rank = 0; rank < size; ++rank) {
    if (rank == me) continue;
    for (int64_t i = first[rank]; i < first[rank + 1]; ++i) {
      const auto found = by_key.find((*all)[i].first);
      if (found != by_key.end() && found->second->digest != (*all)[i].second) {
        return differ(rank, *found->second);
      }
    }
  }
  for (int rank = 0; rank < size; ++rank) {
    int checker = (rank + 1) % size;
    while (checker != rank && same_files(rank, checker)) checker = (checker + 1) % size;
    if (checker != me || checker == rank) continue;
    const absl::StatusOr<std::vector<SliceDigest>> theirs = digest_of(rank);
    if (!theirs.ok()) return theirs.status();
    absl::flat_hash_map<uint64_t, uint64_t> said((*all).begin() + first[rank],
                                                 (*all).begin() + first[rank + 1]);
    for (const SliceDigest& slice : *theirs) {
      const auto found = said.find(slice.key);
      if (found == said.end() || found->second != slice.digest) return differ(rank, slice);
    }
  }
  return model::CombineDigests(*all);
}

}  // namespace phalanx::worker
