// Random arrivals, cancellations, deadlines, restarts, tiny pools and odd budgets: every request's
// stream is the one it has alone, and all blocks come back.
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

class Fuzz {
 public:
  Fuzz(uint32_t seed, int sequence_ranks)
      : rng_(seed),
        calm_(seed % 3 == 0),
        options_(RandomOptions(sequence_ranks)),
        simulation_(options_) {}

  void Run() {
    for (int turn = 0; turn < 400 && !::testing::Test::HasFailure(); ++turn) {
      Turn();
      const absl::Status status = simulation_.scheduler().CheckInvariants();
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(simulation_.model().error(), "");
    }
    // With as many plans in flight as there may be.
    bool more = true;
    while (more) {
      while (simulation_.Schedule()) continue;
      more = simulation_.Commit();
      Stop();
    }
    ASSERT_EQ(simulation_.model().error(), "");
    Check();
  }
  int64_t preemptions() const { return preemptions_; }
  int64_t hits() const { return hits_; }
  int64_t finished() const { return finished_; }
  int64_t chained() const { return simulation_.Chained(); }
  int64_t looked_ahead() const { return simulation_.LookedAhead(); }

 private:
  int64_t Random(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(rng_);
  }

  SchedulerOptions RandomOptions(int sequence_ranks) {
    SchedulerOptions o;
    o.block_tokens = static_cast<int32_t>(Random(1, 6));
    o.num_blocks = std::max<int64_t>(2, Random(4, 40) / sequence_ranks);
    o.sequence_ranks = sequence_ranks;
    o.sequence_stripes = Random(0, 2) > 0 ? 8 : sequence_ranks;
    o.max_batch_tokens = Random(1, 40);
    o.max_batch_sequences = Random(1, 8);
    o.prefill_chunk = Random(0, 8);
    o.max_queued_requests = Random(1, 12);
    o.max_plans_in_flight = Random(1, calm_ ? 2 : 4);
    o.look_ahead = Random(0, 3) > 0;
    o.min_prefill_chunk = Random(1, 8);
    o.max_context = Random(10, 60);
    o.eos_token_ids = {7, 8};
    o.prefix_reuse = Random(0, 5) > 0;
    return o;
  }

  // The text of some of the newest tokens has ended their samples.
  void Stop() {
    for (const auto& [request, sample] : simulation_.newest()) {
      if (Random(0, 40) != 0) continue;
      if (simulation_.scheduler().FinishSample(request, sample)) stopped_[request].insert(sample);
    }
    simulation_.Take();
  }

  RequestSpec RandomRequest() {
    RequestSpec r;
    r.request_id = next_id_++;
    const int64_t size = Random(1, std::min<int64_t>(options_.max_context - 1, 30));
    // Prompts share prefixes.
    for (int64_t i = 0; i < size; ++i) r.prompt.push_back(i < 20 ? (Random(0, 15) == 0) : 3);
    r.max_tokens = Random(1, 25);
    r.min_tokens = Random(0, 4) == 0 ? Random(0, r.max_tokens) : 0;
    if (Random(0, 3) == 0) r.stop_token_ids = {static_cast<int32_t>(Random(0, kVocab - 1))};
    r.ignore_eos = Random(0, 3) == 0;
    r.n = Random(0, 3) == 0 ? static_cast<int32_t>(Random(2, 4)) : 1;
    r.cache_salt = Random(0, 5) == 0 ? "salt" : "";
    r.sampling.seed = Random(0, 3);
    r.sampling.logprobs = static_cast<int32_t>(Random(-1, 1));
    r.sampling.prompt_logprobs = Random(0, 4) == 0 ? 0 : -1;
    if (!calm_ && Random(0, 3) == 0) r.sampling.frequency_penalty = 0.5f;
    if (Random(0, 9) == 0) r.deadline = absl::FromUnixSeconds(now_ + Random(1, 60));
    return r;
  }

  void Turn() {
    ++now_;
    if (Random(0, calm_ ? 20 : 3) == 0) {
      RequestSpec r = RandomRequest();
      const absl::Status status = simulation_.scheduler().Add(r);
      if (status.ok()) {
        specs_[r.request_id] = r;
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      }
    }
    if (Random(0, 25) == 0 && next_id_ > 1) {
      simulation_.scheduler().Cancel(Random(1, next_id_ - 1), absl::CancelledError("cancelled"));
    }
    if (Random(0, 120) == 0) {
      const int64_t num_blocks = std::max<int64_t>(1, options_.num_blocks + Random(-2, 2));
      simulation_.Restart(num_blocks, static_cast<int>(Random(0, options_.sequence_stripes)),
                          Random(0, 4));
    }
    if (Random(0, 120) == 0) simulation_.Die(absl::UnavailableError("a rank died"));
    // Twice in a row, so that some are computed alone.
    if (Random(0, 200) == 0) {
      simulation_.Die(absl::UnavailableError("a rank died"));
      simulation_.Schedule();
      simulation_.Die(absl::UnavailableError("a rank died again"));
    }
    simulation_.scheduler().Expire(absl::FromUnixSeconds(now_));
    simulation_.Take();
    if (Random(0, 1) == 0) simulation_.Schedule();
    if (Random(0, 1) == 0 && simulation_.Commit()) Stop();
  }

  void Check() {
    for (const auto& [id, spec] : specs_) {
      SCOPED_TRACE(::testing::Message() << "request " << id);
      const RequestTrace& trace = simulation_.traces()[id];
      ASSERT_EQ(trace.ends, 1);
      ASSERT_LE(trace.admissions, 1);
      const std::vector<SampleTrace> alone = Alone(spec, options_);
      for (size_t i = 0; i < trace.samples.size(); ++i) {
        const std::vector<TokenLogprobs>& got = trace.samples[i].tokens;
        if (trace.status.ok() && !stopped_[id].contains(static_cast<int32_t>(i))) {
          ASSERT_EQ(trace.samples[i].finish, alone[i].finish);
          ASSERT_EQ(got.size(), alone[i].tokens.size());
        }
        ASSERT_LE(got.size(), alone[i].tokens.size());
        ASSERT_TRUE(std::equal(got.begin(), got.end(), alone[i].tokens.begin()));
      }
      if (spec.sampling.prompt_logprobs >= 0 && !trace.samples.empty()) {
        ASSERT_EQ(trace.prompt_logprobs.size(), spec.prompt.size() - 1);
        for (size_t i = 0; i < trace.prompt_logprobs.size(); ++i) {
          ASSERT_EQ(trace.prompt_logprobs[i].id, spec.prompt[i + 1]);
          ASSERT_EQ(trace.prompt_logprobs[i].logprob,
                    testing::FakeModel::PromptLogprob(spec.prompt, static_cast<int64_t>(i) + 1));
        }
      }
      if (trace.status.ok()) {
        ASSERT_EQ(trace.samples.size(), static_cast<size_t>(spec.n));
        ++finished_;
      }
    }
    const SchedulerStats stats = simulation_.scheduler().stats();
    ASSERT_EQ(stats.blocks.in_use, 0);
    ASSERT_EQ(stats.queued_requests + stats.running_requests + stats.running_sequences, 0);
    preemptions_ = stats.preemptions;
    hits_ = stats.cached_tokens;
  }

  std::mt19937 rng_;
  const bool calm_;  // few requests at once, so that there is time to look ahead
  SchedulerOptions options_;
  Simulation simulation_;
  std::map<uint64_t, RequestSpec> specs_;
  std::map<uint64_t, std::set<int32_t>> stopped_;  // samples that Stop has ended
  uint64_t next_id_ = 1;
  int64_t now_ = 0;
  int64_t preemptions_ = 0;
  int64_t hits_ = 0;
  int64_t finished_ = 0;
};

TEST(SchedulerFuzz, EveryStreamEqualsItsStreamAlone) {
  for (const int sequence_ranks : {1, 2, 3, 4, 8}) {
    int64_t preemptions = 0;
    int64_t hits = 0;
    int64_t finished = 0;
    int64_t chained = 0;
    int64_t looked_ahead = 0;
    for (uint32_t seed = 0; seed < 300; ++seed) {
      SCOPED_TRACE(::testing::Message() << "sp=" << sequence_ranks << ", seed " << seed);
      Fuzz fuzz(seed, sequence_ranks);
      fuzz.Run();
      if (::testing::Test::HasFailure()) return;
      preemptions += fuzz.preemptions();
      hits += fuzz.hits();
      finished += fuzz.finished();
      chained += fuzz.chained();
      looked_ahead += fuzz.looked_ahead();
    }
    // The runs met what they are for.
    EXPECT_GT(preemptions, 500) << "sp=" << sequence_ranks;
    EXPECT_GT(hits, 500) << "sp=" << sequence_ranks;
    EXPECT_GT(finished, 2500) << "sp=" << sequence_ranks;
    EXPECT_GT(chained, 2500) << "sp=" << sequence_ranks;
    EXPECT_GT(looked_ahead, 250) << "sp=" << sequence_ranks;
  }
}

}  // namespace
}  // namespace phalanx::scheduler
