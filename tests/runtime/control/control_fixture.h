// A control server, one worker group and its ranks over loopback, for the tests of the control
// plane; ranks are threads or raw clients of this process.
#ifndef PHALANX_TESTS_RUNTIME_CONTROL_CONTROL_FIXTURE_H_
#define PHALANX_TESTS_RUNTIME_CONTROL_CONTROL_FIXTURE_H_

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/control/control_server.h"
#include "runtime/control/remote_worker_group.h"
#include "runtime/control/worker_client.h"

namespace phalanx::control {

template <typename T>
class Queue {
 public:
  void Push(T value) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      values_.push_back(std::move(value));
    }
    changed_.notify_all();
  }
  T Pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !values_.empty(); });
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  size_t size() {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

inline std::string Text(const absl::Status& status) { return std::string(status.message()); }

class ControlStreamTest : public ::testing::Test {
 protected:
  void SetUp() override { Listen("127.0.0.1:0"); }

  void Listen(const std::string& address) {
    ControlServerOptions options;
    options.listen = address;
    options.token = "secret";
    options.build_version = "1.0";
    options.replicas = 2;
    auto server = ControlServer::Listen(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  RemoteGroupOptions GroupOptions(int world) {
    RemoteGroupOptions options;
    options.epoch = 7;
    options.world_size = world;
    options.layout = absl::StrCat("tp=", world);
    options.log = [this](absl::string_view line) { log_.Push(std::string(line)); };
    return options;
  }

  // Starts the group in another thread.
  std::future<absl::StatusOr<coordinator::GroupInfo>> StartGroup(RemoteGroupOptions options) {
    group_ = std::make_unique<RemoteWorkerGroup>(*server_, std::move(options));
    return std::async(std::launch::async, [this] {
      return group_->Start(
          [this](absl::StatusOr<scheduler::StepResult> r) { results_.Push(std::move(r)); });
    });
  }

  WorkerClientOptions ClientOptions() {
    WorkerClientOptions options;
    options.coordinator = server_ != nullptr ? server_->address() : address_;
    options.token = "secret";
    options.heartbeat_interval = absl::Milliseconds(20);
    return options;
  }

  static WorkerIdentity Identity(int rank, int world) {
    WorkerIdentity identity;
    identity.rank = rank;
    identity.world_size = world;
    identity.host = absl::StrCat("host", rank);
    identity.pid = 1000 + rank;
    identity.device = "cpu portable";
    identity.layout = absl::StrCat("tp=", world);
    identity.profile = "exact";
    identity.op_digest = "ops";
    identity.checkpoint_digest = "weights";
    identity.build_version = "1.0";
    return identity;
  }

  std::unique_ptr<WorkerClient> Join(int rank, int world) {
    return Join(rank, world, ClientOptions());
  }
  static std::unique_ptr<WorkerClient> Join(int rank, int world,
                                            const WorkerClientOptions& options) {
    auto client = WorkerClient::Connect(options, Identity(rank, world));
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  // Two ranks, ready; clients_[0] is the lead.
  void StartTwo(RemoteGroupOptions options) {
    auto started = StartGroup(std::move(options));
    for (int rank = 0; rank < 2; ++rank) {
      clients_.push_back(Join(rank, 2));
      ASSERT_TRUE(clients_.back()->ReportReady(100 + rank, 10, 50 - rank).ok());
    }
    auto info = started.get();
    ASSERT_TRUE(info.ok()) << info.status();
    info_ = *info;
  }

  static scheduler::StepPlan Plan(uint64_t number) {
    scheduler::StepPlan plan;
    plan.epoch = 7;
    plan.number = number;
    plan.sequences.emplace_back().token_ids = {1, 2, 3};
    return plan;
  }

  static scheduler::StepResult Result(uint64_t number) {
    scheduler::StepResult result;
    result.epoch = 7;
    result.number = number;
    return result;
  }

  absl::Status RefusalOf(const WorkerIdentity& identity) {
    auto client = WorkerClient::Connect(ClientOptions(), identity);
    EXPECT_EQ(client.status().code(), absl::StatusCode::kFailedPrecondition) << client.status();
    return client.status();
  }

  // Destroyed in reverse: clients first, then the group, then the server.
  std::string address_;
  Queue<std::string> log_;
  Queue<absl::StatusOr<scheduler::StepResult>> results_;
  std::unique_ptr<ControlServer> server_;
  std::unique_ptr<RemoteWorkerGroup> group_;
  coordinator::GroupInfo info_;
  std::vector<std::unique_ptr<WorkerClient>> clients_;
};

}  // namespace phalanx::control

#endif  // PHALANX_TESTS_RUNTIME_CONTROL_CONTROL_FIXTURE_H_
