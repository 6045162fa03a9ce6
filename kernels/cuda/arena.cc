#include "kernels/cuda/arena.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels::cuda {
namespace {

int64_t RoundUp(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(int64_t bytes) : bytes_(bytes / kAlignment * kAlignment), free_bytes_(bytes_) {
  PHALANX_CHECK(bytes >= 0) << "an arena of " << bytes << " bytes";
  if (bytes_ > 0) free_[0] = bytes_;
}

int64_t Arena::largest_free() const {
  int64_t largest = 0;
  for (const auto& [offset, size] : free_) largest = std::max(largest, size);
  return largest;
}

absl::StatusOr<int64_t> Arena::Allocate(int64_t bytes, Side side) {
  PHALANX_CHECK(bytes >= 0) << "a piece of " << bytes << " bytes";
  // Rounded where that can't overflow: what is larger than the arena doesn't fit anyway.
  const int64_t size = bytes > bytes_ ? bytes : std::max(RoundUp(bytes), kAlignment);
  auto fit = free_.end();
  if (side == Side::kFront) {
    fit = std::find_if(free_.begin(), free_.end(),
                       [&](const auto& piece) { return piece.second >= size; });
  } else {
    const auto from_back = std::find_if(free_.rbegin(), free_.rend(),
                                        [&](const auto& piece) { return piece.second >= size; });
    if (from_back != free_.rend()) fit = std::prev(from_back.base());
  }
  if (fit == free_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes: of ", bytes_, " bytes ", free_bytes_,
                     " are free, ", largest_free(), " of them in the largest piece"));
  }
  const auto [begin, available] = *fit;
  const int64_t rest = available - size;
  int64_t offset = begin;
  if (side == Side::kFront) {
    free_.erase(fit);
    if (rest > 0) free_[begin + size] = rest;
  } else {
    offset = begin + rest;
    if (rest > 0) {
      fit->second = rest;
    } else {
      free_.erase(fit);
    }
  }
  taken_[offset] = size;
  free_bytes_ -= size;
  return offset;
}

void Arena::Free(int64_t offset) {
  const auto piece = taken_.find(offset);
  PHALANX_CHECK(piece != taken_.end()) << "no piece of the arena begins at " << offset;
  const int64_t size = piece->second;
  taken_.erase(piece);
  free_bytes_ += size;
  auto here = free_.emplace(offset, size).first;
  const auto next = std::next(here);
  if (next != free_.end() && here->first + here->second == next->first) {
    here->second += next->second;
    free_.erase(next);
  }
  if (here == free_.begin()) return;
  const auto before = std::prev(here);
  if (before->first + before->second != here->first) return;
  before->second += here->second;
  free_.erase(here);
}

absl::StatusOr<int64_t> ArenaBytes(const ArenaRequest& request, int device, int64_t available,
                                   int64_t total) {
  const int64_t asked = request.memory_bytes;
  const double fraction = request.memory_fraction;
  if (asked != 0 && fraction != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA device ", device, ": its memory is asked for as ", asked,
                     " bytes and as a fraction of ", fraction, "; give one of them"));
  }
  if (asked < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("CUDA device ", device, ": ", asked, " bytes of memory; give more than 0"));
  }
  if (!(fraction >= 0 && fraction <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA device ", device,
                                                   ": a memory fraction of ", fraction,
                                                   "; give one above 0, up to 1"));
  }
  if (asked > available) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA device ", device, ": ", asked, " bytes of memory are asked for, but of its ", total,
        " bytes only ", available, " are free; ask for less, or end what holds the others"));
  }
  if (fraction == 0) return asked;
  const auto share = static_cast<int64_t>(fraction * static_cast<double>(total));
  if (request.is_shared) {
    if (share <= available) return share;
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA device ", device, ", which ranks share: this rank's part of the memory fraction, ",
        fraction, ", is ", share, " of its ", total, " bytes, but only ", available,
        " are free; give a smaller fraction, which leaves more to the driver's part of each rank, "
        "or end other processes that hold some"));
  }
  const int64_t held = total - available;
  if (share <= held) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA device ", device, ": a memory fraction of ", fraction, " is ", share, " of its ",
        total, " bytes, but ", held,
        " of them are held already, by other processes and the driver; end those, or give a "
        "larger fraction"));
  }
  return share - held;
}

}  // namespace phalanx::kernels::cuda
