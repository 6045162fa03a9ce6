#include "tests/comm/fake_nccl.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "tests/comm/fake_device.h"

namespace phalanx::comm {
namespace {

using nccl::Result;

// Times that a caller must ask before a group of calls is on the stream.
constexpr int kLooksToEnqueue = 3;

// What one member gives another. `kind` and `bytes` must match.
struct Message {
  const void* data;
  int64_t bytes;
  std::string kind;
  bool taken = false;
};

// The members of one communicator.
struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  int joined = 0;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> under_way;  // from, to
};

struct Receive {
  void* data;
  int64_t bytes;
  std::string kind;
  int from;
};

// One step of a communicator on a stream.
struct Step {
  std::vector<std::pair<int, Message>> sends;  // to whom
  std::vector<Receive> receives;
  std::function<void()> finish;  // when all has come
};

// Lives on in what is on the stream after its communicator is freed.
struct Member {
  std::shared_ptr<Clique> clique;
  int rank;
  int size;
  bool aborted = false;  // this and the next under the clique's mutex
  int on_stream = 0;     // steps that have not finished
};

}  // namespace

namespace nccl {

struct Comm {
  std::shared_ptr<Member> member;
  FakeNcclFaults faults;
  bool started = false;
  bool broken = false;
  bool finalized = false;
  int looks_left = 0;
  FakeStream* stream = nullptr;
  std::vector<Step> waiting;  // to reach the stream
};

}  // namespace nccl

namespace {

std::mutex world_mutex;  // of all that follows, and of every Comm
FakeNcclFaults current_faults;
std::map<nccl::Comm*, std::unique_ptr<nccl::Comm>> live;
std::map<uint64_t, std::shared_ptr<Clique>> cliques;
uint64_t last_id = 0;
std::map<std::string, int> calls;

thread_local int group_depth = 0;
thread_local std::vector<std::pair<nccl::Comm*, Step>> group_steps;
thread_local std::vector<nccl::Comm*> group_aborts;

void Count(const char* name) {
  std::lock_guard<std::mutex> lock(world_mutex);
  ++calls[name];
}

nccl::Comm& Live(nccl::Comm* comm) {
  PHALANX_CHECK(live.count(comm) > 0) << "NCCL called with a communicator that was freed";
  return *comm;
}

void RunStep(Member& member, Step& step) {
  Clique& clique = *member.clique;
  std::unique_lock<std::mutex> lock(clique.mutex);
  std::vector<std::shared_ptr<Message>> sent;
  for (auto& [to, message] : step.sends) {
    sent.push_back(std::make_shared<Message>(message));
    clique.under_way[{member.rank, to}].push_back(sent.back());
  }
  clique.changed.notify_all();
  std::vector<bool> received(step.receives.size());
  while (true) {
    bool done = true;
    for (size_t i = 0; i < step.receives.size(); ++i) {
      if (received[i]) continue;
      const Receive& receive = step.receives[i];
      // In order: an earlier receive from the same member comes first.
      bool behind = false;
      for (size_t j = 0; j < i; ++j) {
        behind = behind || (!received[j] && step.receives[j].from == receive.from);
      }
      auto& queue = clique.under_way[{receive.from, member.rank}];
      if (behind || queue.empty() || queue.front()->kind != receive.kind ||
          queue.front()->bytes != receive.bytes) {
        done = false;
        continue;
      }
      if (receive.data != queue.front()->data) {
        std::memmove(receive.data, queue.front()->data, receive.bytes);
      }
      queue.front()->taken = true;
      queue.pop_front();
      received[i] = true;
      clique.changed.notify_all();
    }
    for (const auto& message : sent) done = done && message->taken;
    if (done) break;
    if (member.aborted) {
      // What was sent and not taken goes with the communicator.
      for (auto& [ends, queue] : clique.under_way) {
        if (ends.first == member.rank) queue.clear();
      }
      return;
    }
    clique.changed.wait(lock);
  }
  if (step.finish) step.finish();
  --member.on_stream;
}

// Under `world_mutex`: what waits goes to the stream.
void Launch(nccl::Comm& comm) {
  for (Step& step : comm.waiting) {
    {
      std::lock_guard<std::mutex> lock(comm.member->clique->mutex);
      ++comm.member->on_stream;
    }
    comm.stream->Enqueue(
        [member = comm.member, step = std::move(step)]() mutable { RunStep(*member, step); });
  }
  comm.waiting.clear();
}

Result GetVersion(int* version) {
  *version = 22809;
  return nccl::kSuccess;
}

Result GetUniqueId(nccl::UniqueId* id) {
  std::lock_guard<std::mutex> lock(world_mutex);
  if (current_faults.no_unique_id) return nccl::kSystemError;
  std::memset(id, 0, sizeof(*id));
  ++last_id;
  // At the end, so that all of it has to be carried.
  std::memcpy(id->bytes + sizeof(*id) - sizeof(last_id), &last_id, sizeof(last_id));
  return nccl::kSuccess;
}

Result CommInitRankConfig(nccl::Comm** comm, int size, nccl::UniqueId id, int rank,
                          nccl::Config* config) {
  std::lock_guard<std::mutex> lock(world_mutex);
  if (config->magic != 0xcafebeef || config->size != sizeof(nccl::Config) ||
      config->blocking != 0 || rank < 0 || rank >= size) {
    return nccl::kInvalidArgument;
  }
  uint64_t number = 0;
  std::memcpy(&number, id.bytes + sizeof(id) - sizeof(number), sizeof(number));
  if (number == 0 || number > last_id) return nccl::kInvalidArgument;
  auto& clique = cliques[number];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  auto made = std::make_unique<nccl::Comm>();
  made->member = std::make_shared<Member>(Member{clique, rank, size});
  made->faults = current_faults;
  ++clique->joined;
  *comm = made.get();
  live[made.get()] = std::move(made);
  return nccl::kInProgress;
}

Result CommGetAsyncError(nccl::Comm* handle, Result* error) {
  std::lock_guard<std::mutex> lock(world_mutex);
  nccl::Comm& comm = Live(handle);
  const int rank = comm.member->rank;
  *error = nccl::kSuccess;
  if (comm.broken) {
    *error = nccl::kRemoteError;
  } else if (!comm.started) {
    if (comm.faults.fails_to_start == rank) {
      *error = nccl::kSystemError;
    } else if (comm.faults.never_starts == rank ||
               comm.member->clique->joined < comm.member->size) {
      *error = nccl::kInProgress;
    } else {
      comm.started = true;
    }
  } else if (!comm.waiting.empty()) {
    if (comm.faults.never_enqueues == rank || --comm.looks_left > 0) {
      *error = nccl::kInProgress;
    } else {
      Launch(comm);
    }
  } else if (comm.finalized) {
    std::lock_guard<std::mutex> lock(comm.member->clique->mutex);
    if (comm.member->on_stream > 0) *error = nccl::kInProgress;
  }
  return nccl::kSuccess;
}

// Ends what is on streams for all of these before it waits for any of the streams, as freeing
// device memory does.
void AbortAll(const std::vector<nccl::Comm*>& comms) {
  std::vector<FakeStream*> streams;
  {
    std::lock_guard<std::mutex> world(world_mutex);
    for (nccl::Comm* handle : comms) {
      nccl::Comm& comm = Live(handle);
      {
        std::lock_guard<std::mutex> lock(comm.member->clique->mutex);
        comm.member->aborted = true;
      }
      comm.member->clique->changed.notify_all();
      if (comm.stream != nullptr) streams.push_back(comm.stream);
      live.erase(handle);
    }
  }
  for (FakeStream* stream : streams) stream->Synchronize();
}

Result CommAbort(nccl::Comm* comm) {
  Count("CommAbort");
  if (group_depth > 0) {
    group_aborts.push_back(comm);
  } else {
    AbortAll({comm});
  }
  return nccl::kSuccess;
}

Result CommFinalize(nccl::Comm* handle) {
  std::lock_guard<std::mutex> lock(world_mutex);
  nccl::Comm& comm = Live(handle);
  PHALANX_CHECK(comm.waiting.empty()) << "ncclCommFinalize while calls are being enqueued";
  comm.finalized = true;
  return nccl::kInProgress;
}

Result CommDestroy(nccl::Comm* handle) {
  FakeStream* stream = nullptr;
  {
    std::lock_guard<std::mutex> lock(world_mutex);
    nccl::Comm& comm = Live(handle);
    PHALANX_CHECK(comm.finalized) << "ncclCommDestroy before ncclCommFinalize";
    stream = comm.stream;
  }
  if (stream != nullptr) stream->Synchronize();
  std::lock_guard<std::mutex> lock(world_mutex);
  live.erase(handle);
  return nccl::kSuccess;
}

const char* GetErrorString(Result result) {
  return result == nccl::kRemoteError ? "remote process exited or there was a network error"
                                      : "unhandled system error";
}

const char* GetLastError(nccl::Comm* /*comm*/) { return "the fake cable was pulled"; }

Result GroupStart() {
  ++group_depth;
  return nccl::kSuccess;
}

Result GroupEnd() {
  PHALANX_CHECK(group_depth > 0) << "ncclGroupEnd without ncclGroupStart";
  if (--group_depth > 0) return nccl::kSuccess;
  if (!group_aborts.empty()) {
    AbortAll(std::exchange(group_aborts, {}));
    return nccl::kSuccess;
  }
  std::lock_guard<std::mutex> lock(world_mutex);
  // All calls of a group go together.
  std::map<nccl::Comm*, Step> joined;
  std::vector<std::function<void()>> finishes;
  for (auto& [comm, step] : group_steps) {
    Step& all = joined[comm];
    for (auto& send : step.sends) all.sends.push_back(std::move(send));
    for (auto& receive : step.receives) all.receives.push_back(std::move(receive));
    if (step.finish) {
      all.finish = [before = std::move(all.finish), now = std::move(step.finish)] {
        if (before) before();
        now();
      };
    }
  }
  group_steps.clear();
  for (auto& [handle, step] : joined) {
    nccl::Comm& comm = Live(handle);
    comm.waiting.push_back(std::move(step));
    comm.looks_left = kLooksToEnqueue;
  }
  return joined.empty() ? nccl::kSuccess : nccl::kInProgress;
}

// Adds a step to the thread's group, which callers always have open.
Result Add(nccl::Comm* handle, void* stream, Step step) {
  PHALANX_CHECK(group_depth > 0) << "a call outside ncclGroupStart and ncclGroupEnd";
  std::lock_guard<std::mutex> lock(world_mutex);
  nccl::Comm& comm = Live(handle);
  if (!comm.started || comm.finalized || stream == nullptr) return nccl::kInvalidUsage;
  comm.stream = static_cast<FakeStream*>(stream);
  group_steps.emplace_back(handle, std::move(step));
  return nccl::kSuccess;
}

const Member& MemberOf(nccl::Comm* comm) {
  std::lock_guard<std::mutex> lock(world_mutex);
  return *Live(comm).member;
}

int64_t Bytes(size_t count, nccl::DataType type) {
  return static_cast<int64_t>(count) * (type == nccl::kUint8 ? 1 : 4);
}

Result Send(const void* send, size_t count, nccl::DataType type, int peer, nccl::Comm* comm,
            void* stream) {
  Count("Send");
  const int64_t bytes = Bytes(count, type);
  Step step;
  step.sends.push_back({peer, {Behind(send, bytes), bytes, "message"}});
  return Add(comm, stream, std::move(step));
}

Result Recv(void* recv, size_t count, nccl::DataType type, int peer, nccl::Comm* comm,
            void* stream) {
  Count("Recv");
  const int64_t bytes = Bytes(count, type);
  Step step;
  step.receives.push_back({Behind(recv, bytes), bytes, "message", peer});
  return Add(comm, stream, std::move(step));
}

Result AllGather(const void* send, void* recv, size_t count, nccl::DataType type, nccl::Comm* comm,
                 void* stream) {
  Count("AllGather");
  const Member& member = MemberOf(comm);
  const int64_t bytes = Bytes(count, type);
  const void* from = Behind(send, bytes);
  char* to = static_cast<char*>(Behind(recv, bytes * member.size));
  Step step;
  for (int r = 0; r < member.size; ++r) {
    step.sends.push_back({r, {from, bytes, "AllGather"}});
    step.receives.push_back({to + r * bytes, bytes, "AllGather", r});
  }
  return Add(comm, stream, std::move(step));
}

Result Broadcast(const void* send, void* recv, size_t count, nccl::DataType type, int root,
                 nccl::Comm* comm, void* stream) {
  Count("Broadcast");
  const Member& member = MemberOf(comm);
  const int64_t bytes = Bytes(count, type);
  Step step;
  for (int r = 0; r < member.size && member.rank == root; ++r) {
    step.sends.push_back({r, {Behind(send, bytes), bytes, "Broadcast"}});
  }
  step.receives.push_back({Behind(recv, bytes), bytes, "Broadcast", root});
  return Add(comm, stream, std::move(step));
}

// All blocks of `count` floats of every member's `send` come here, and `blocks` of them from
// `first` on are added up, the last rank's first: no order that a plan has.
Result AddUp(const char* kind, const void* send, void* recv, size_t send_count, int64_t first,
             size_t count, nccl::Comm* comm, void* stream) {
  const Member& member = MemberOf(comm);
  const auto bytes = static_cast<int64_t>(send_count) * 4;
  auto room = std::make_shared<std::vector<float>>(send_count * member.size);
  Step step;
  for (int r = 0; r < member.size; ++r) {
    step.sends.push_back({r, {Behind(send, bytes), bytes, kind}});
    step.receives.push_back({room->data() + send_count * r, bytes, kind, r});
  }
  auto* out = static_cast<float*>(Behind(recv, static_cast<int64_t>(count) * 4));
  step.finish = [room, out, send_count, first, count, size = member.size] {
    for (size_t i = 0; i < count; ++i) {
      float sum = 0;
      for (int r = size - 1; r >= 0; --r) sum += (*room)[send_count * r + first + i];
      out[i] = sum;
    }
  };
  return Add(comm, stream, std::move(step));
}

Result AllReduce(const void* send, void* recv, size_t count, nccl::DataType type, nccl::RedOp op,
                 nccl::Comm* comm, void* stream) {
  Count("AllReduce");
  if (type != nccl::kFloat32 || op != nccl::kSum) return nccl::kInvalidArgument;
  return AddUp("AllReduce", send, recv, count, 0, count, comm, stream);
}

Result ReduceScatter(const void* send, void* recv, size_t count, nccl::DataType type,
                     nccl::RedOp op, nccl::Comm* comm, void* stream) {
  Count("ReduceScatter");
  if (type != nccl::kFloat32 || op != nccl::kSum) return nccl::kInvalidArgument;
  const Member& member = MemberOf(comm);
  return AddUp("ReduceScatter", send, recv, count * member.size,
               static_cast<int64_t>(count) * member.rank, count, comm, stream);
}

}  // namespace

std::shared_ptr<const nccl::Library> FakeNcclLibrary(int version) {
  auto library = std::make_shared<nccl::Library>();
  library->version = version;
  library->path = "a fake";
  library->GetVersion = GetVersion;
  library->GetUniqueId = GetUniqueId;
  library->CommInitRankConfig = CommInitRankConfig;
  library->CommFinalize = CommFinalize;
  library->CommDestroy = CommDestroy;
  library->CommAbort = CommAbort;
  library->CommGetAsyncError = CommGetAsyncError;
  library->GetErrorString = GetErrorString;
  library->GetLastError = GetLastError;
  library->AllReduce = AllReduce;
  library->ReduceScatter = ReduceScatter;
  library->AllGather = AllGather;
  library->Broadcast = Broadcast;
  library->Send = Send;
  library->Recv = Recv;
  library->GroupStart = GroupStart;
  library->GroupEnd = GroupEnd;
  return library;
}

void SetFakeNcclFaults(const FakeNcclFaults& faults) {
  std::lock_guard<std::mutex> lock(world_mutex);
  current_faults = faults;
}

void BreakFakeNccl(int rank) {
  std::lock_guard<std::mutex> lock(world_mutex);
  for (auto& [handle, comm] : live) comm->broken = comm->broken || comm->member->rank == rank;
}

int LiveFakeNcclComms() {
  std::lock_guard<std::mutex> lock(world_mutex);
  return static_cast<int>(live.size());
}

std::map<std::string, int> TakeFakeNcclCalls() {
  std::lock_guard<std::mutex> lock(world_mutex);
  return std::exchange(calls, {});
}

}  // namespace phalanx::comm
