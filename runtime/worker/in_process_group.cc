#include "runtime/worker/in_process_group.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/local/local_group.h"
#include "runtime/coordinator/agreement.h"
#include "runtime/worker/parallel_context.h"
#include "runtime/worker/step_runner.h"

namespace phalanx::worker {
namespace {

using coordinator::GroupInfo;
using coordinator::RankInfo;
using scheduler::StepPlan;
using scheduler::StepResult;

class InProcessGroup : public coordinator::WorkerGroup {
 public:
  explicit InProcessGroup(const WorkerOptions& options) : options_(options) {}
  ~InProcessGroup() override { Stop(); }

  absl::StatusOr<GroupInfo> Start(ResultCallback on_result) override {
    const absl::Status layout = CheckLayout(options_.layout, options_.profile.reduction_leaves,
                                            options_.profile.sequence_stripes);
    if (!layout.ok()) return layout;
    const int size = options_.layout.group_size();
    comm::LocalGroupOptions local;
    const bool cuda = options_.device.kind == kernels::DeviceKind::kCuda;
    int devices = 0;
    if (cuda) {
      const absl::StatusOr<int> count = kernels::CudaDeviceCount();
      if (!count.ok()) return count.status();
      devices = *count;
    }
    local.threads_per_rank = cuda ? 1 : options_.device.cpu.threads;
    {
      // Stop may come meanwhile: it finds all of this or none.
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return absl::CancelledError("the in-process worker group has stopped");
      on_result_ = std::move(on_result);
      comms_ = comm::CreateLocalGroup(size, local);
      loaded_.resize(size);
      for (int rank = 0; rank < size; ++rank) {
        WorkerOptions options = options_;
        if (rank != 0) options.progress = nullptr;
        if (cuda) {
          // Devices in turns, from the first one on; ranks that share one share its memory.
          options.device.cuda.device = (options_.device.cuda.device + rank) % devices;
          const int ranks_of_one = (size + devices - 1) / devices;
          options.gpu_memory_fraction /= ranks_of_one;
          options.device.cuda.memory_is_shared |= ranks_of_one > 1;
          if (options.device_transport == DeviceTransport::kAuto) {
            options.device_transport = DeviceTransport::kStaged;
          }
        }
        threads_.emplace_back([this, rank, options] { RunRank(rank, options); });
      }
    }
    GroupInfo info;
    info.epoch = 1;
    info.layout = options_.layout.ToString();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return loaded_count_ == static_cast<int>(loaded_.size()); });
    // A rank that failed by itself says more than one that was aborted because of it.
    absl::Status failure;
    for (int rank = 0; rank < size; ++rank) {
      const absl::Status status = loaded_[rank].status();
      if (status.ok()) {
        info.ranks.push_back(*loaded_[rank]);
      } else if (failure.ok() || absl::IsAborted(failure)) {
        failure = status;
      }
    }
    if (!failure.ok()) return failure;
    if (absl::Status status = coordinator::CheckAgreement(info.ranks); !status.ok()) return status;
    return info;
  }

  absl::Status Submit(StepPlan plan) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (dead_) return absl::UnavailableError("the in-process worker group has stopped");
    plans_.push_back(
        {std::make_shared<const StepPlan>(std::move(plan)), static_cast<int>(comms_.size())});
    changed_.notify_all();
    return absl::OkStatus();
  }

  void Stop() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      dead_ = true;
      changed_.notify_all();
    }
    for (const auto& comm : comms_) comm->Abort("the service is stopping");
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

 private:
  struct Entry {
    std::shared_ptr<const StepPlan> plan;
    int readers;  // ranks that have not taken it yet
  };

  // Takes plan number `index` (counted from the first ever submitted), or null when stopping.
  std::shared_ptr<const StepPlan> NextPlan(int64_t index) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this, index] {
      return stopping_ || index - first_plan_ < static_cast<int64_t>(plans_.size());
    });
    if (stopping_) return nullptr;
    Entry& entry = plans_[index - first_plan_];
    std::shared_ptr<const StepPlan> plan = entry.plan;
    --entry.readers;
    while (!plans_.empty() && plans_.front().readers == 0) {
      plans_.pop_front();
      ++first_plan_;
    }
    return plan;
  }

  void RunRank(int rank, const WorkerOptions& options) {
    absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Open(options, *comms_[rank]);
    if (worker.ok()) {
      if (absl::Status status = (*worker)->Load(); !status.ok()) {
        comms_[rank]->Abort(absl::StrCat("rank ", rank, ": ", status.message()));
        worker = status;
      }
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (worker.ok()) {
        loaded_[rank] = (*worker)->info();
      } else {
        loaded_[rank] = worker.status();
      }
      ++loaded_count_;
      changed_.notify_all();
    }
    if (!worker.ok()) return;
    const auto failed = [&](const absl::Status& status) {
      Fail(absl::Status(status.code(), absl::StrCat("rank ", rank, ", ", status.message())));
      comms_[rank]->Abort(absl::StrCat("rank ", rank, " failed"));
    };
    StepRunner::Callbacks callbacks;
    callbacks.result = [&](StepResult result) {
      on_result_(std::move(result));
      return absl::OkStatus();
    };
    callbacks.failure = failed;
    StepRunner runner(**worker, std::move(callbacks));
    for (int64_t index = 0;; ++index) {
      const std::shared_ptr<const StepPlan> plan = NextPlan(index);
      if (plan == nullptr) return;
      if (absl::Status status = runner.Run(*plan); !status.ok()) return failed(status);
    }
  }

  void Fail(absl::Status status) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (dead_) return;
      dead_ = true;
    }
    on_result_(std::move(status));
  }

  const WorkerOptions options_;
  ResultCallback on_result_;
  std::vector<std::unique_ptr<comm::Communicator>> comms_;
  std::vector<std::thread> threads_;

  // Not absl::Mutex: the system's Abseil is not instrumented, and ThreadSanitizer takes what it
  // guards for unguarded.
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<absl::StatusOr<RankInfo>> loaded_;
  int loaded_count_ = 0;
  std::deque<Entry> plans_;
  int64_t first_plan_ = 0;
  bool stopping_ = false;
  bool dead_ = false;
};

}  // namespace

std::unique_ptr<coordinator::WorkerGroup> CreateInProcessGroup(const WorkerOptions& options) {
  return std::make_unique<InProcessGroup>(options);
}

}  // namespace phalanx::worker
