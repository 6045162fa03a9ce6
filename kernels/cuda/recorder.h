// Launches as values. Inside a step they are recorded instead of made; what was recorded since the
// last flush is a segment, which StepGraphs (step_graphs.h) makes whole. Free of CUDA, and C++17
// for the kernels' files.
#ifndef PHALANX_KERNELS_CUDA_RECORDER_H_
#define PHALANX_KERNELS_CUDA_RECORDER_H_

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace phalanx::kernels::cuda {

// A copy from pinned host memory to the device, aligned to 16 bytes on both sides.
struct Upload {
  void* to = nullptr;
  const void* from = nullptr;
  int64_t bytes = 0;  // 0: none
};

struct KernelNode {
  const void* kernel = nullptr;  // the host's address of a __global__ function
  uint32_t grid[3] = {1, 1, 1};
  uint32_t threads = 1;  // of a block
  uint32_t shared_bytes = 0;
  uint32_t first_argument = 0;  // in Segment's list of all arguments
  uint32_t num_arguments = 0;
  uint32_t begin = 0;  // its arguments' bytes are [begin, end) of the segment's
  uint32_t end = 0;
};

// One upload (or none), then kernels, each after the one before.
class Segment {
 public:
  Upload upload;

  const std::vector<KernelNode>& kernels() const { return kernels_; }
  bool empty() const { return kernels_.empty() && upload.bytes == 0; }
  // Where argument `i` of `node` lies, aligned for its type.
  const void* argument(const KernelNode& node, uint32_t i) const {
    return bytes() + offsets_[node.first_argument + i];
  }
  // The same kernels in the same order, and an upload in both or in neither: all that a graph's
  // shape depends on.
  bool SameTopology(const Segment& other) const;
  // Equal for segments of the same topology.
  uint64_t topology() const { return 2 * topology_ + (upload.bytes > 0 ? 1 : 0); }
  // Whether kernel `i` has the same grid, block, shared memory and arguments in `other`, a segment
  // of the same topology.
  bool SameKernel(const Segment& other, size_t i) const;
  // Makes kernel `i` that of `other`, a segment of the same topology.
  void TakeKernel(const Segment& other, size_t i);

  // Building one. An argument's bytes are those of its parameter's type, padding zeroed.
  void Clear();
  void BeginKernel(const void* kernel, const uint32_t (&grid)[3], uint32_t threads,
                   uint32_t shared_bytes);
  template <typename T>
  void Argument(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    void* to = Room(sizeof(T), alignof(T));
    std::memcpy(to, &value, sizeof(T));
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    // What lies between members is whatever the stack held: without this, arguments that are equal
    // would seem to differ, and a graph's node would be updated for nothing.
    __builtin_clear_padding(static_cast<T*>(to));
#endif
#endif
  }

 private:
  static constexpr size_t kAlignment = 16;
  struct alignas(kAlignment) Block {
    uint8_t bytes[kAlignment];
  };
  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(blocks_.data()); }
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(blocks_.data()); }
  // Zeroed bytes for the next argument of the last kernel.
  void* Room(size_t size, size_t alignment);

  std::vector<KernelNode> kernels_;
  std::vector<uint32_t> offsets_;
  std::vector<Block> blocks_;
  uint64_t topology_ = 0;
};

// The segment that a thread records for one stream.
class Recorder {
 public:
  explicit Recorder(const void* stream) : stream_(stream) {}
  ~Recorder() { Leave(); }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // The recorder that this thread's launches on `stream` go to; null: they are made at once.
  static Recorder* Of(const void* stream);
  // Launches of the calling thread on this one's stream are recorded, until another recorder is
  // entered or this one left. Ops enter their own each time: a thread may serve several instances.
  void Enter();
  void Leave();

  Segment& segment() { return segment_; }

  template <typename... Parameters, typename... Arguments>
  void Record(void (*kernel)(Parameters...), const uint32_t (&grid)[3], int threads,
              size_t shared_bytes, const Arguments&... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments));
    segment_.BeginKernel(reinterpret_cast<const void*>(kernel), grid,
                         static_cast<uint32_t>(threads), static_cast<uint32_t>(shared_bytes));
    (segment_.Argument<std::remove_cv_t<Parameters>>(arguments), ...);
  }

 private:
  const void* const stream_;
  Segment segment_;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_RECORDER_H_
