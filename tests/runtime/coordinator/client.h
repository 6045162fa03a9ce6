// What the coordinator's tests share: a client that records its events, and the answer that the
// fake model must give.
#ifndef PHALANX_TESTS_RUNTIME_COORDINATOR_CLIENT_H_
#define PHALANX_TESTS_RUNTIME_COORDINATOR_CLIENT_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/coordinator/coordinator.h"
#include "tests/testing/fake_worker_group.h"

namespace phalanx::coordinator {

inline constexpr int32_t kVocab = 1000;

// Every token is "<id>".
class BracketDecoder : public TextDecoder {
 public:
  std::string Push(int32_t id) override { return absl::StrCat("<", id, ">"); }
  std::string Flush() override { return ""; }
};

// What a client saw of one request.
class Client {
 public:
  EventCallback Callback() {
    return [this](const Event& event) {
      std::lock_guard<std::mutex> lock(mu_);
      EXPECT_FALSE(done_) << "an event after the last";
      id_ = event.request_id;
      for (const SampleOutput& out : event.outputs) {
        for (const auto& t : out.tokens) tokens_[out.sample_index].push_back(t.id);
        text_[out.sample_index] += out.text;
        if (out.finish != FinishReason::kNone) finish_[out.sample_index] = out;
      }
      if (event.done) {
        done_ = true;
        last_ = event;
      }
      changed_.notify_all();
    };
  }
  Event Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [this] { return done_; });
    return last_;
  }
  void AwaitTokens(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [&] { return tokens_[0].size() >= count || done_; });
  }
  std::vector<int32_t> tokens(int sample = 0) {
    std::lock_guard<std::mutex> lock(mu_);
    return tokens_[sample];
  }
  std::string text(int sample = 0) {
    std::lock_guard<std::mutex> lock(mu_);
    return text_[sample];
  }
  SampleOutput finish(int sample = 0) {
    std::lock_guard<std::mutex> lock(mu_);
    return finish_[sample];
  }
  bool done() {
    std::lock_guard<std::mutex> lock(mu_);
    return done_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  std::map<int, std::vector<int32_t>> tokens_;
  std::map<int, std::string> text_;
  std::map<int, SampleOutput> finish_;
  std::string id_;
  bool done_ = false;
  Event last_;
};

inline GenerateRequest MakeRequest(std::vector<int32_t> prompt, int64_t max_tokens) {
  GenerateRequest r;
  r.prompt_token_ids = std::move(prompt);
  r.max_tokens = max_tokens;
  r.seed = 5;
  return r;
}

inline std::vector<int32_t> Expected(const GenerateRequest& r, uint32_t sample = 0) {
  sampling::SamplingParams params = r.sampling;
  params.seed = *r.seed;
  std::vector<int32_t> tokens = r.prompt_token_ids;
  for (int64_t i = 0; i < *r.max_tokens; ++i) {
    tokens.push_back(testing::FakeModel::Next(tokens, params, sample,
                                              static_cast<int64_t>(r.prompt_token_ids.size()), {},
                                              kVocab)
                         .id);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(r.prompt_token_ids.size()), tokens.end()};
}

}  // namespace phalanx::coordinator

#endif  // PHALANX_TESTS_RUNTIME_COORDINATOR_CLIENT_H_
