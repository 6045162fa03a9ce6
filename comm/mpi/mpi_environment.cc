#include "comm/mpi/mpi_environment.h"

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/group/group_communicator.h"
#include "comm/mpi/mpi_streams.h"

namespace phalanx::comm {

class MpiFabric : public Fabric {
 public:
  MpiFabric(const MpiOptions& options, int world_rank, int tag_bound)
      : options_(options),
        world_rank_(world_rank),
        engine_(std::make_shared<MpiEngine>(tag_bound)) {}

  absl::StatusOr<Offered> Offer(int members) override {
    const SegmentConfig config{
        .members = members, .slot_bytes = options_.slot_bytes, .ring_bytes = options_.ring_bytes};
    absl::StatusOr<std::shared_ptr<Segment>> segment =
        members == 1 ? Segment::CreatePrivate(config) : Segment::CreateShared(config);
    if (!segment.ok()) return segment.status();
    return Offered{*segment, (*segment)->ticket()};
  }
  absl::StatusOr<std::shared_ptr<Segment>> Accept(const SegmentTicket& ticket) override {
    return Segment::Open(ticket);
  }
  void Withdraw(const Offered& offered) override { offered.segment->Seal(); }

  std::shared_ptr<RemoteStreams> OpenStreams(uint32_t context,
                                             const std::vector<int>& world_ranks) override {
    return std::make_shared<MpiStreams>(engine_, context, world_ranks, world_rank_);
  }
  uint32_t next_context() const override { return next_context_.load(); }
  void UseContextsBelow(uint32_t next) override {
    next_context_.store(std::max(next_context_.load(), next));
  }
  bool ContextFits(uint32_t context) const override { return engine_->ContextFits(context); }
  WaitPolicy wait_policy() const override { return policy_; }
  void set_wait_policy(WaitPolicy policy) { policy_ = policy; }

 private:
  const MpiOptions options_;
  const int world_rank_;
  const std::shared_ptr<MpiEngine> engine_;
  std::atomic<uint32_t> next_context_{1};  // 0 is the start-up group's
  WaitPolicy policy_;
};

namespace {

// Where a rank runs: ranks with the same machine (this boot of it) and the same PID namespace can
// map each other's memory and see each other die.
struct Place {
  char machine[64];
  char pid_namespace[64];
  cpu_set_t cores;  // that the rank may use
};

Place OwnPlace() {
  Place place;
  std::memset(&place, 0, sizeof(place));
  if (FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "re"); file != nullptr) {
    if (std::fgets(place.machine, sizeof(place.machine), file) == nullptr) place.machine[0] = 0;
    std::fclose(file);
  }
  if (place.machine[0] == 0) gethostname(place.machine, sizeof(place.machine) - 1);
  if (readlink("/proc/self/ns/pid", place.pid_namespace, sizeof(place.pid_namespace) - 1) < 0) {
    place.pid_namespace[0] = 0;
  }
  sched_getaffinity(0, sizeof(place.cores), &place.cores);
  return place;
}

bool SameNode(const Place& a, const Place& b) {
  return std::strcmp(a.machine, b.machine) == 0 &&
         std::strcmp(a.pid_namespace, b.pid_namespace) == 0;
}

absl::Status MpiError(const char* what, int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat("MPI: ", what, ": ", std::string(text, length)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MpiEnvironment>> MpiEnvironment::Init(const MpiOptions& options) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) {
    return absl::FailedPreconditionError("MPI: this process has started MPI before; once is all");
  }
  int provided = 0;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return MpiError("MPI_Init_thread", code);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_SERIALIZED) {
    return absl::FailedPreconditionError(
        "MPI: this build of MPI may only be called from its first thread; phalanx needs "
        "MPI_THREAD_SERIALIZED");
  }
  std::unique_ptr<MpiEnvironment> environment(new MpiEnvironment);
  environment->shutdown_timeout_ = options.shutdown_timeout;
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  environment->hostname_ = host;
  if (absl::Status status = environment->BuildWorld(options); !status.ok()) {
    environment->finalized_ = true;  // the others may not come either: leave MPI as it is
    return status;
  }
  return environment;
}

absl::Status MpiEnvironment::BuildWorld(const MpiOptions& options) {
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  int* tag_bound = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&tag_bound), &found);
  fabric_ = std::make_shared<MpiFabric>(options, rank, found != 0 ? *tag_bound : 32767);

  // The start-up group takes every rank for a node of its own. Its first exchange also connects
  // each pair, so that later small messages leave at once.
  GroupCommunicator::Spec spec;
  spec.fabric = fabric_;
  spec.rank = rank;
  spec.timeout = options.startup_timeout;
  for (int r = 0; r < size; ++r) spec.members.push_back({r, r});
  absl::StatusOr<Fabric::Offered> own = fabric_->Offer(1);
  if (!own.ok()) return own.status();
  spec.segment = own->segment;
  GroupCommunicator start(spec);

  const Place place = OwnPlace();
  std::vector<Place> places(size);
  const std::vector<int64_t> bytes(size, sizeof(Place));
  if (absl::Status status = start.AllGather(&place, places.data(), bytes); !status.ok()) {
    return status;
  }
  // A node is called by its first rank.
  int node = rank;
  int ranks_here = 0;
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (int r = size - 1; r >= 0; --r) {
    if (!SameNode(places[r], place)) continue;
    ++ranks_here;
    CPU_OR(&cores, &cores, &places[r].cores);
    const int k = options.ranks_per_node;
    if (k <= 0 || r / k == rank / k) node = r;
  }
  fabric_->set_wait_policy(
      ChooseWaitPolicy(ranks_here, options.threads_per_rank, CPU_COUNT(&cores)));

  absl::StatusOr<std::unique_ptr<Communicator>> world = start.Regroup(0, rank, node, false);
  if (!world.ok()) return world.status();
  if (*world == nullptr) {
    if (rank == 0) {
      std::fprintf(stderr,
                   "phalanx: the ranks of a node cannot map each other's memory; all messages go "
                   "through MPI, which is slower\n");
    }
    world = start.Regroup(0, rank, rank, false);
    if (!world.ok()) return world.status();
  }
  if (*world == nullptr) {
    return absl::ResourceExhaustedError("MPI: a rank has no memory for its communicator");
  }
  world_ = *std::move(world);
  world_->set_timeout(absl::Seconds(60));
  return absl::OkStatus();
}

MpiEnvironment::~MpiEnvironment() { Finalize().IgnoreError(); }

absl::Status MpiEnvironment::Finalize() {
  if (finalized_) return absl::OkStatus();
  finalized_ = true;
  world_->set_timeout(shutdown_timeout_);
  absl::Status status = world_->Barrier();
  world_.reset();
  if (!status.ok()) return status;

  std::mutex mutex;
  std::condition_variable done_changed;
  bool done = false;
  const auto limit = absl::ToChronoMilliseconds(2 * shutdown_timeout_);
  std::thread watchdog([&] {
    std::unique_lock<std::mutex> lock(mutex);
    if (done_changed.wait_for(lock, limit, [&] { return done; })) return;
    std::fprintf(stderr, "phalanx: MPI_Finalize did not return; ending the process\n");
    _exit(1);
  });
  const int code = MPI_Finalize();
  {
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
  }
  done_changed.notify_one();
  watchdog.join();
  return code == MPI_SUCCESS ? absl::OkStatus() : MpiError("MPI_Finalize", code);
}

}  // namespace phalanx::comm
