#include "kernels/cuda/recorder.h"

#include <algorithm>

namespace phalanx::kernels::cuda {
namespace {

thread_local Recorder* current = nullptr;

}  // namespace

bool Segment::SameTopology(const Segment& other) const {
  if (topology() != other.topology() || kernels_.size() != other.kernels_.size()) return false;
  return std::equal(kernels_.begin(), kernels_.end(), other.kernels_.begin(),
                    [](const KernelNode& a, const KernelNode& b) { return a.kernel == b.kernel; });
}

bool Segment::SameKernel(const Segment& other, size_t i) const {
  const KernelNode& a = kernels_[i];
  const KernelNode& b = other.kernels_[i];
  return std::memcmp(a.grid, b.grid, sizeof a.grid) == 0 && a.threads == b.threads &&
         a.shared_bytes == b.shared_bytes &&
         std::memcmp(bytes() + a.begin, other.bytes() + b.begin, a.end - a.begin) == 0;
}

void Segment::TakeKernel(const Segment& other, size_t i) {
  // One kernel, one list of parameters: equal kernels lie at equal places.
  kernels_[i] = other.kernels_[i];
  std::memcpy(bytes() + kernels_[i].begin, other.bytes() + kernels_[i].begin,
              kernels_[i].end - kernels_[i].begin);
}

void Segment::Clear() {
  upload = {};
  kernels_.clear();
  offsets_.clear();
  blocks_.clear();
  topology_ = 0;
}

void Segment::BeginKernel(const void* kernel, const uint32_t (&grid)[3], uint32_t threads,
                          uint32_t shared_bytes) {
  KernelNode node;
  node.kernel = kernel;
  std::copy(grid, grid + 3, node.grid);
  node.threads = threads;
  node.shared_bytes = shared_bytes;
  node.first_argument = static_cast<uint32_t>(offsets_.size());
  node.begin = node.end = static_cast<uint32_t>(blocks_.size() * kAlignment);
  kernels_.push_back(node);
  // FNV's prime; rotated, so that the order counts.
  topology_ = ((topology_ << 7 | topology_ >> 57) ^ reinterpret_cast<uintptr_t>(kernel)) *
              uint64_t{0x100000001b3};
}

void* Segment::Room(size_t size, size_t alignment) {
  KernelNode& node = kernels_.back();
  const size_t at = (node.end + alignment - 1) / alignment * alignment;
  const size_t end = at + size;
  blocks_.resize((end + kAlignment - 1) / kAlignment);
  offsets_.push_back(static_cast<uint32_t>(at));
  ++node.num_arguments;
  node.end = static_cast<uint32_t>(end);
  return bytes() + at;
}

Recorder* Recorder::Of(const void* stream) {
  return current != nullptr && current->stream_ == stream ? current : nullptr;
}

void Recorder::Enter() { current = this; }

void Recorder::Leave() {
  if (current == this) current = nullptr;
}

}  // namespace phalanx::kernels::cuda
