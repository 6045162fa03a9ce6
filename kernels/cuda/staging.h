// Where small host arrays go on their way to the device: two halves of pinned host memory and two
// of the device's, so that what is still read is never written over. Arithmetic only.
//
// Requests lie one behind the other in the halves in use. Where one doesn't fit, or a step begins,
// the ring turns: the host goes on in its other half, whose earlier contents must have been copied
// by then (the owner records an event when it leaves a half and waits for it before it enters that
// half again). On the device a step always begins in half 0, so that the same requests of the next
// step get the same addresses; what is copied there comes after its readers of the last step in the
// stream's order.
#ifndef PHALANX_KERNELS_CUDA_STAGING_H_
#define PHALANX_KERNELS_CUDA_STAGING_H_

#include <cstdint>
#include <cstring>
#include <vector>

namespace phalanx::kernels::cuda {

class StagingRing {
 public:
  static constexpr int64_t kAlignment = 256;
  // What one op stages must fit a half, so that the ring turns once at most while an op's requests
  // come in and all of them are there when it is launched. No op makes more requests than this.
  static constexpr int64_t kRequestsOfOp = 16;

  explicit StagingRing(int64_t half_bytes) : half_bytes_(RoundUp(half_bytes)) {}

  int64_t half_bytes() const { return half_bytes_; }
  int64_t most_bytes() const { return half_bytes_ / kRequestsOfOp / kAlignment * kAlignment; }
  // Bytes of a half in which `bytes` are one request of an op.
  static int64_t HalfFor(int64_t bytes) {
    int64_t half = kAlignment;
    while (half < kRequestsOfOp * RoundUp(bytes)) half *= 2;
    return half;
  }

  // The offset of `bytes` <= most_bytes() in the halves in use, a multiple of kAlignment; -1: they
  // don't fit, turn first.
  int64_t Place(int64_t bytes) {
    const int64_t offset = used_;
    if (offset + RoundUp(bytes) > half_bytes_) return -1;
    used_ += RoundUp(bytes);
    return offset;
  }
  void Turn(bool step_begins) {
    host_half_ = 1 - host_half_;
    device_half_ = step_begins ? 0 : 1 - device_half_;
    used_ = 0;
  }
  int host_half() const { return host_half_; }
  int device_half() const { return device_half_; }
  int64_t used() const { return used_; }  // of the halves in use

 private:
  static int64_t RoundUp(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  int64_t half_bytes_;
  int64_t used_ = 0;
  int host_half_ = 0;
  int device_half_ = 0;
};

// What an array is. Only arrays of one kind are taken for each other: a token's id that happens to
// be its position must not move what is staged behind it, or graphs would be updated.
enum class Staged : uint8_t {
  kCopied,  // CopyIn
  kIds,
  kPositions,
  kSlots,
  kSequences,
  kTables,
  kFewTiles,
  kManyTiles,
  kTokenTiles,
  kHeadGroups,
  kHeads,
  kColumns,
  kProgram,
  kRows,
  kMatMulTiles,
  kExpertWeights,
  kExpertParts,
  kExpertBases,
  kLeaves,
  kLogitEdits,
  kCutRows,
  kCutOf,
  kChoiceRows,
};

// What was staged in a step, by content: every layer brings the same positions, slots and tables.
class StagedContents {
 public:
  // The offset under which equal bytes of this kind were added since the last Clear, or -1. `half`:
  // where offsets count from.
  int64_t Find(Staged kind, const void* data, int64_t bytes, const char* half) const {
    if (entries_.empty()) return -1;
    const uint64_t hash = Hash(kind, data, bytes);
    for (size_t i = hash & mask(); entries_[i].round == round_; i = (i + 1) & mask()) {
      const Entry& entry = entries_[i];
      if (entry.hash == hash && entry.bytes == bytes && entry.kind == kind &&
          std::memcmp(half + entry.offset, data, static_cast<size_t>(bytes)) == 0) {
        return entry.offset;
      }
    }
    return -1;
  }
  void Add(Staged kind, const void* data, int64_t bytes, int64_t offset) {
    if (2 * (count_ + 1) > entries_.size()) Grow();
    Insert({Hash(kind, data, bytes), offset, bytes, round_, kind});
  }
  void Clear() {
    ++round_;
    count_ = 0;
  }

 private:
  struct Entry {
    uint64_t hash = 0;
    int64_t offset = 0;
    int64_t bytes = 0;
    uint64_t round = 0;  // of the Clear before it; older ones are free places
    Staged kind = Staged::kCopied;
  };

  size_t mask() const { return entries_.size() - 1; }
  // Words of eight bytes, multiplied and folded.
  static uint64_t Hash(Staged kind, const void* data, int64_t bytes) {
    constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
    const auto* at = static_cast<const char*>(data);
    uint64_t hash = (static_cast<uint64_t>(bytes) * 64 + static_cast<uint64_t>(kind)) * kFactor;
    while (bytes > 0) {
      uint64_t word = 0;
      std::memcpy(&word, at, static_cast<size_t>(bytes < 8 ? bytes : 8));
      hash = (hash ^ word) * kFactor;
      hash ^= hash >> 32;
      at += 8;
      bytes -= 8;
    }
    return hash;
  }
  void Insert(const Entry& entry) {
    size_t i = entry.hash & mask();
    while (entries_[i].round == round_) i = (i + 1) & mask();
    entries_[i] = entry;
    ++count_;
  }
  void Grow() {
    std::vector<Entry> before(entries_.empty() ? 64 : 2 * entries_.size());
    before.swap(entries_);
    count_ = 0;
    for (const Entry& entry : before) {
      if (entry.round == round_) Insert(entry);
    }
  }

  std::vector<Entry> entries_;  // open addressing; a power of two
  size_t count_ = 0;
  uint64_t round_ = 1;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_STAGING_H_
