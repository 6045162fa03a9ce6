// A worker group without ranks: plans are answered by a FakeModel, either at once on a thread of
// its own or one by one when the test says so.
#ifndef PHALANX_TESTS_TESTING_FAKE_WORKER_GROUP_H_
#define PHALANX_TESTS_TESTING_FAKE_WORKER_GROUP_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/coordinator/worker_group.h"
#include "tests/testing/fake_model.h"

namespace phalanx::testing {

struct FakeGroupOptions {
  int64_t kv_blocks = 64;
  int32_t block_tokens = 32;
  int32_t vocab_size = 1000;
  bool manual = false;  // plans wait for RunOne()
  absl::Status start_status;
  std::string layout = "tp=1";
  uint64_t epoch = 1;
  std::string op_digest;
  // What every step says it has routed to each expert.
  std::vector<int64_t> expert_tokens;
};

// Shared by the test and the group that the coordinator owns.
class FakeGroupControl {
 public:
  explicit FakeGroupControl(FakeGroupOptions options)
      : options_(std::move(options)),
        model_(options_.kv_blocks, options_.block_tokens, options_.vocab_size) {}

  // Waits for a plan, computes it and reports its result on the calling thread.
  scheduler::StepPlan RunOne() {
    std::optional<scheduler::StepPlan> plan = Take();
    callback_(Compute(*plan));
    return *std::move(plan);
  }
  // Computes plans on the calling thread until the group is stopped.
  void RunUntilStopped() {
    while (std::optional<scheduler::StepPlan> plan = Take()) callback_(Compute(*plan));
  }
  // Waits until `count` plans are there and leaves them.
  void AwaitPlan(size_t count = 1) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [&] { return plans_.size() >= count || stopped_; });
  }
  // Precondition: AwaitPlan.
  scheduler::StepPlan front() {
    std::lock_guard<std::mutex> lock(mu_);
    return plans_.front();
  }
  // The group dies.
  void Die(const absl::Status& status) { callback_(status); }
  bool stopped() {
    std::lock_guard<std::mutex> lock(mu_);
    return stopped_;
  }
  // Only when nothing runs.
  const std::string& error() const { return model_.error(); }

 private:
  friend class FakeWorkerGroup;
  scheduler::StepResult Compute(const scheduler::StepPlan& plan) {
    scheduler::StepResult result = model_.Run(plan);
    result.expert_tokens = options_.expert_tokens;
    return result;
  }
  std::optional<scheduler::StepPlan> Take() {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [this] { return !plans_.empty() || stopped_; });
    if (plans_.empty()) return std::nullopt;
    scheduler::StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

  const FakeGroupOptions options_;
  FakeModel model_;
  coordinator::WorkerGroup::ResultCallback callback_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<scheduler::StepPlan> plans_;
  bool stopped_ = false;
};

class FakeWorkerGroup : public coordinator::WorkerGroup {
 public:
  explicit FakeWorkerGroup(std::shared_ptr<FakeGroupControl> control)
      : control_(std::move(control)) {}
  ~FakeWorkerGroup() override { Stop(); }

  absl::StatusOr<coordinator::GroupInfo> Start(ResultCallback on_result) override {
    if (!control_->options_.start_status.ok()) return control_->options_.start_status;
    control_->callback_ = std::move(on_result);
    if (!control_->options_.manual) {
      thread_ = std::thread([this] { control_->RunUntilStopped(); });
    }
    coordinator::GroupInfo info;
    info.epoch = control_->options_.epoch;
    info.layout = control_->options_.layout;
    coordinator::RankInfo rank;
    rank.host = "fake";
    rank.op_digest = control_->options_.op_digest;
    rank.kv_blocks = control_->options_.kv_blocks;
    info.ranks.push_back(rank);
    return info;
  }

  absl::Status Submit(scheduler::StepPlan plan) override {
    std::lock_guard<std::mutex> lock(control_->mu_);
    control_->plans_.push_back(std::move(plan));
    control_->changed_.notify_all();
    return absl::OkStatus();
  }

  void Stop() override {
    {
      std::lock_guard<std::mutex> lock(control_->mu_);
      control_->stopped_ = true;
      control_->plans_.clear();
      control_->changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  const std::shared_ptr<FakeGroupControl> control_;
  std::thread thread_;
};

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_FAKE_WORKER_GROUP_H_
