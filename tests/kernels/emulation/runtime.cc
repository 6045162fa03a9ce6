// The CUDA runtime of the emulated device. A stream does nothing until somebody waits for it: what
// reads a result without waiting, or changes what a stream still reads, shows.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "tests/kernels/emulation/memory.h"

struct EmulatedStream {
  std::deque<std::function<void()>> work;
  uint64_t enqueued = 0;
  uint64_t done = 0;
};
struct EmulatedEvent {
  bool timed = true;
  EmulatedStream* stream = nullptr;  // null: never recorded, or its stream is gone
  uint64_t position = 0;
  // When the stream came past its last record: the host's clock, none before. Null: never recorded.
  std::shared_ptr<std::optional<std::chrono::steady_clock::time_point>> passed = nullptr;
};

struct EmulatedNode {
  size_t index;
  bool chained;  // after the node before
};
struct EmulatedGraph {
  std::vector<std::unique_ptr<EmulatedNode>> nodes;
  std::vector<std::function<void()>> work;  // by node; each comes after the one before
};
struct EmulatedExec {
  std::vector<std::function<void()>> work;
};

namespace phalanx::kernels::emulation {
namespace {

// What cudaGetLastError() gives: also of calls that are asked whether something is there yet.
thread_local cudaError_t last_error = cudaSuccess;

// Threads share the device; whoever waits for a stream runs it.
std::mutex& Lock() {
  static auto* lock = new std::mutex();
  return *lock;
}

struct Runtime {
  EmulatedStream legacy;  // the stream called nullptr, which waits for no other
  std::set<EmulatedStream*> streams;
  std::set<EmulatedEvent*> events;
  std::map<const char*, size_t> pinned;
  std::map<const void*, Bind> kernels;
  std::map<const void*, size_t> shared;  // that a kernel was allowed beyond kDefaultShared
  std::map<const void*, int> runs;       // of a kernel, up to kClosedRuns
  size_t most_shared = kMostShared;
  cudaError_t early_starts_error = cudaSuccess;
  int64_t graphs = 0;  // and their instances
  int64_t early_starts = 0;
};
Runtime& State() {
  static auto* state = new Runtime();
  return *state;
}

// Dynamic shared memory that a block may have without asking: 48 KiB less what it has of static
// memory, which can't be seen here and is taken for 8 KiB.
constexpr size_t kDefaultShared = 40 << 10;
// So often memory is closed until a kernel's turn: to do so each time would take long.
constexpr int kClosedRuns = 8;
constexpr size_t kDeviceBytes = size_t{8} << 30;

EmulatedStream& Of(cudaStream_t stream) { return stream == nullptr ? State().legacy : *stream; }

void RunTo(EmulatedStream& stream, uint64_t position) {
  if (stream.done >= position) return;
  const OpenMemory open;
  const OnDevice here;
  while (stream.done < position) {
    const std::function<void()> next = std::move(stream.work.front());
    stream.work.pop_front();
    next();
    ++stream.done;
  }
}
void RunAll() {
  RunTo(State().legacy, State().legacy.enqueued);
  for (EmulatedStream* stream : State().streams) RunTo(*stream, stream->enqueued);
}

void Push(cudaStream_t stream, std::function<void()> work) {
  Of(stream).work.push_back(std::move(work));
  ++Of(stream).enqueued;
}

bool IsPinned(const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  const auto next = State().pinned.upper_bound(at);
  if (next == State().pinned.begin()) return false;
  const auto& [begin, size] = *std::prev(next);
  return at + bytes <= begin + size;
}

struct Block {
  const char* data;
  size_t pitch;
  size_t width;
  size_t height;

  size_t span() const { return height == 0 ? 0 : (height - 1) * pitch + width; }
};

void CopyBlock(char* to, size_t to_pitch, const Block& from) {
  for (size_t row = 0; row < from.height; ++row) {
    std::memcpy(to + row * to_pitch, from.data + row * from.pitch, from.width);
  }
}

// What a launch does; null where the launch isn't valid. Under the lock.
std::function<void()> LaunchOf(const void* kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes) {
  const auto known = State().kernels.find(kernel);
  const auto asked = State().shared.find(kernel);
  const size_t allowed = asked == State().shared.end() ? kDefaultShared : asked->second;
  if (known == State().kernels.end() || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.y > 65535 || grid.z > 65535 || shared_bytes > std::min(allowed, State().most_shared)) {
    return nullptr;
  }
  const std::function<void()> thread = known->second(kernel, arguments);
  return [=] {
    int& runs = State().runs[kernel];
    const bool closed_at_first = runs < kClosedRuns;
    runs += closed_at_first ? 1 : 0;
    RunGrid(grid, static_cast<int>(block.x), shared_bytes, closed_at_first, thread);
  };
}

// Chains alone: after the node before, or with an edge to come.
cudaError_t AddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* before,
                    size_t num_before, std::function<void()> work) {
  const size_t index = graph->nodes.size();
  const bool chained = num_before == 1 && index > 0 && before[0] == graph->nodes.back().get();
  if (work == nullptr || (num_before > 0 && !chained)) return cudaErrorInvalidValue;
  graph->nodes.push_back(std::make_unique<EmulatedNode>(EmulatedNode{index, chained}));
  graph->work.push_back(std::move(work));
  *node = graph->nodes.back().get();
  return cudaSuccess;
}

cudaError_t SetNode(cudaGraphExec_t exec, cudaGraphNode_t node, std::function<void()> work) {
  if (work == nullptr) return cudaErrorInvalidValue;
  exec->work[node->index] = std::move(work);
  return cudaSuccess;
}

cudaError_t Copy(void* to, size_t to_pitch, const Block& from, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (from.width == 0 || from.height == 0) return cudaSuccess;
  if (from.width > from.pitch || from.width > to_pitch) return cudaErrorInvalidValue;
  const size_t to_span = Block{nullptr, to_pitch, from.width, from.height}.span();
  const bool from_device = kind != cudaMemcpyHostToDevice;
  const bool to_device = kind != cudaMemcpyDeviceToHost;
  if (from_device != IsDeviceMemory(from.data, from.span()) ||
      to_device != IsDeviceMemory(to, to_span)) {
    return cudaErrorInvalidValue;
  }
  char* target = static_cast<char*>(to);
  if (!from_device && !IsPinned(from.data, from.span())) {
    // Such memory has been read when the call returns.
    auto read = std::make_shared<std::vector<char>>(from.width * from.height);
    CopyBlock(read->data(), from.width, from);
    const Block held = {read->data(), from.width, from.width, from.height};
    Push(stream, [read, held, target, to_pitch] { CopyBlock(target, to_pitch, held); });
    return cudaSuccess;
  }
  Push(stream, [from, target, to_pitch] { CopyBlock(target, to_pitch, from); });
  if (!to_device && !IsPinned(to, to_span)) RunTo(Of(stream), Of(stream).enqueued);
  return cudaSuccess;
}

cudaError_t Fill(void* data, size_t pitch, int value, size_t width, size_t height,
                 cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (width == 0 || height == 0) return cudaSuccess;
  if (width > pitch || !IsDeviceMemory(data, (height - 1) * pitch + width)) {
    return cudaErrorInvalidValue;
  }
  Push(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memset(static_cast<char*>(data) + row * pitch, value, width);
    }
  });
  return cudaSuccess;
}

}  // namespace

void Know(const void* kernel, Bind bind) {
  const std::lock_guard<std::mutex> lock(Lock());
  State().kernels.emplace(kernel, bind);
}

void SetMostShared(size_t bytes) {
  const std::lock_guard<std::mutex> lock(Lock());
  State().most_shared = bytes;
}
void RefuseEarlyStarts(int error) {
  const std::lock_guard<std::mutex> lock(Lock());
  State().early_starts_error = static_cast<cudaError_t>(error);
}
int64_t NumGraphs() {
  const std::lock_guard<std::mutex> lock(Lock());
  return State().graphs;
}
int64_t NumEarlyStarts() {
  const std::lock_guard<std::mutex> lock(Lock());
  return State().early_starts;
}

void Enqueue(EmulatedStream* stream, std::function<void()> work) {
  const std::lock_guard<std::mutex> lock(Lock());
  Push(stream, std::move(work));
}

}  // namespace phalanx::kernels::emulation

using namespace phalanx::kernels::emulation;  // NOLINT: the runtime's functions are global

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorNoDevice; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  *properties = {};
  std::strcpy(properties->name, "emulated");
  properties->major = 9;
  // Few enough that small tests meet every split and several work items a block.
  properties->multiProcessorCount = 6;
  properties->sharedMemPerBlockOptin = State().most_shared;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const std::lock_guard<std::mutex> lock(Lock());
  RunAll();
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue       ? "invalid argument"
         : error == cudaErrorMemoryAllocation ? "out of memory"
                                              : "another emulated error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidValue       ? "cudaErrorInvalidValue"
         : error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
                                              : "cudaErrorOther";
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (bytes > kDeviceBytes - DeviceMemoryInUse()) return cudaErrorMemoryAllocation;
  *data = AllocateDeviceMemory(bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (data == nullptr) return cudaSuccess;
  RunAll();
  FreeDeviceMemory(data);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  const std::lock_guard<std::mutex> lock(Lock());
  *available = kDeviceBytes - DeviceMemoryInUse();
  *total = kDeviceBytes;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(Lock());
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  State().pinned[static_cast<const char*>(*data)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (data == nullptr) return cudaSuccess;
  RunAll();
  State().pinned.erase(static_cast<const char*>(data));
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  return Fill(data, bytes, value, bytes, 1, stream);
}
cudaError_t cudaMemset2DAsync(void* data, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return Fill(data, pitch, value, width, height, stream);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Copy(to, bytes, {static_cast<const char*>(from), bytes, bytes, 1}, kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return Copy(to, to_pitch, {static_cast<const char*>(from), from_pitch, width, height}, kind,
              stream);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  const std::lock_guard<std::mutex> lock(Lock());
  attributes->type = IsDeviceMemory(data, 1) ? cudaMemoryTypeDevice
                     : IsPinned(data, 1)     ? cudaMemoryTypeHost
                                             : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(Lock());
  *stream = new EmulatedStream();
  State().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  RunTo(*stream, stream->enqueued);
  for (EmulatedEvent* event : State().events) {
    if (event->stream == stream) event->stream = nullptr;
  }
  State().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  RunTo(Of(stream), Of(stream).enqueued);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(Lock());
  EmulatedStream* other = event->stream;
  if (other == nullptr || other == &Of(stream)) return cudaSuccess;
  const uint64_t position = event->position;
  Push(stream, [other, position] {
    // A stream that is gone has run out.
    if (State().streams.count(other) > 0 || other == &State().legacy) RunTo(*other, position);
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const std::lock_guard<std::mutex> lock(Lock());
  *event = new EmulatedEvent();
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  State().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(Lock());
  State().events.erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (event->timed) {
    event->passed = std::make_shared<std::optional<std::chrono::steady_clock::time_point>>();
    Push(stream, [passed = event->passed] { *passed = std::chrono::steady_clock::now(); });
  }
  event->stream = &Of(stream);
  event->position = Of(stream).enqueued;
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (begin->passed == nullptr || end->passed == nullptr) return cudaErrorInvalidResourceHandle;
  if (!begin->passed->has_value() || !end->passed->has_value()) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(**end->passed - **begin->passed).count();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (event->stream != nullptr) RunTo(*event->stream, event->position);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const std::lock_guard<std::mutex> lock(Lock());
  EmulatedStream* stream = event->stream;
  if (stream == nullptr || stream->done >= event->position) return cudaSuccess;
  // Whoever asks again and again gets on.
  RunTo(*stream, stream->done + 1);
  last_error = cudaErrorNotReady;
  return cudaErrorNotReady;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t /*stream*/, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* /*kernel*/) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(Lock());
  if (static_cast<size_t>(value) > State().most_shared) return cudaErrorInvalidValue;
  State().shared[kernel] = std::max(kDefaultShared, static_cast<size_t>(value));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  std::function<void()> launch = LaunchOf(kernel, grid, block, arguments, shared_bytes);
  if (launch == nullptr) return cudaErrorInvalidValue;
  Push(stream, std::move(launch));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization ||
        attribute.val.programmaticStreamSerializationAllowed != 1) {
      return cudaErrorInvalidValue;
    }
    const std::lock_guard<std::mutex> lock(Lock());
    if (State().early_starts_error != cudaSuccess) return State().early_starts_error;
    ++State().early_starts;
  }
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments,
                          config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(Lock());
  *graph = new EmulatedGraph();
  ++State().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard<std::mutex> lock(Lock());
  delete graph;
  --State().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                   const cudaGraphNode_t* before, size_t num_before,
                                   const cudaKernelNodeParams* params) {
  const std::lock_guard<std::mutex> lock(Lock());
  return AddNode(node, graph, before, num_before,
                 LaunchOf(params->func, params->gridDim, params->blockDim, params->kernelParams,
                          params->sharedMemBytes));
}
cudaError_t cudaGraphAddDependencies(cudaGraph_t /*graph*/, const cudaGraphNode_t* from,
                                     const cudaGraphNode_t* to, const cudaGraphEdgeData* edges,
                                     size_t count) {
  const std::lock_guard<std::mutex> lock(Lock());
  if (State().early_starts_error != cudaSuccess) return State().early_starts_error;
  for (size_t i = 0; i < count; ++i) {
    const bool early = edges[i].type == cudaGraphDependencyTypeProgrammatic &&
                       edges[i].from_port == cudaGraphKernelNodePortProgrammatic;
    if (!early || to[i]->chained || from[i]->index + 1 != to[i]->index) {
      return cudaErrorInvalidValue;
    }
    to[i]->chained = true;
    ++State().early_starts;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  for (const auto& node : graph->nodes) {
    if (node->index > 0 && !node->chained) return cudaErrorInvalidValue;
  }
  const std::lock_guard<std::mutex> lock(Lock());
  *exec = new EmulatedExec{graph->work};
  ++State().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t /*exec*/, cudaStream_t /*stream*/) {
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const std::lock_guard<std::mutex> lock(Lock());
  delete exec;
  --State().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams* params) {
  const std::lock_guard<std::mutex> lock(Lock());
  return SetNode(exec, node,
                 LaunchOf(params->func, params->gridDim, params->blockDim, params->kernelParams,
                          params->sharedMemBytes));
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(Lock());
  for (const std::function<void()>& work : exec->work) Push(stream, work);
  return cudaSuccess;
}
