// Prefix reuse on a recorded conversation trace (Mooncake, arXiv:2407.00079): the hit rate is what
// an independent simulation of an LRU pool predicts, and answers are the cold ones. Each block hash
// of the trace becomes one block of tokens, so lengths are those of the trace divided by 16.
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/scheduler/simulation.h"

namespace phalanx::scheduler {
namespace {

constexpr int32_t kBlockTokens = 32;
constexpr int64_t kMaxBlocks = 64;  // of one prompt
constexpr int64_t kPoolBlocks = 4000;
constexpr size_t kRequests = 20000;  // more than it has
constexpr int64_t kAnswer = 4;

std::vector<std::vector<int64_t>> ReadTrace(const std::string& path) {
  std::vector<std::vector<int64_t>> trace;
  std::ifstream file(path);
  std::string line;
  const std::string key = "\"hash_ids\": [";
  while (trace.size() < kRequests && std::getline(file, line)) {
    const size_t at = line.find(key);
    if (at == std::string::npos) continue;
    std::string ids = line.substr(at + key.size());
    for (char& c : ids) {
      if (c == ',' || c == ']' || c == '}') c = ' ';
    }
    std::istringstream in(ids);
    std::vector<int64_t> hashes;
    for (int64_t id; in >> id;) hashes.push_back(id);
    if (static_cast<int64_t>(hashes.size()) > kMaxBlocks) hashes.resize(kMaxBlocks);
    if (!hashes.empty()) trace.push_back(std::move(hashes));
  }
  return trace;
}

// A prompt's full blocks, then one token of its own, so that every full block can be a hit. The
// first two tokens of a block spell its hash.
std::vector<int32_t> Tokens(const std::vector<int64_t>& hashes) {
  std::vector<int32_t> tokens;
  for (const int64_t hash : hashes) {
    tokens.push_back(static_cast<int32_t>(hash / 1000));
    tokens.push_back(static_cast<int32_t>(hash % 1000));
    for (int32_t i = 2; i < kBlockTokens; ++i) tokens.push_back(i);
  }
  tokens.push_back(7);
  return tokens;
}

// LRU over prefixes, by time of last use, one request after the other. A request's blocks are in
// use together; afterwards its tail is older than its head.
class OfflineLru {
 public:
  int64_t Serve(const std::vector<int64_t>& hashes) {
    int64_t hits = 0;
    std::vector<std::vector<int64_t>> prefixes;
    for (size_t i = 1; i <= hashes.size(); ++i) {
      prefixes.emplace_back(hashes.begin(), hashes.begin() + static_cast<std::ptrdiff_t>(i));
    }
    while (hits < static_cast<int64_t>(prefixes.size()) && used_.contains(prefixes[hits])) ++hits;
    for (int64_t i = 0; i < hits; ++i) {
      by_time_.erase(used_[prefixes[i]]);
      used_.erase(prefixes[i]);
    }
    // The last, partial block is never kept but takes room while the request runs.
    const int64_t needed = static_cast<int64_t>(prefixes.size()) + 1;
    while (static_cast<int64_t>(by_time_.size()) + needed > kPoolBlocks) {
      used_.erase(by_time_.begin()->second);
      by_time_.erase(by_time_.begin());
    }
    for (auto it = prefixes.rbegin(); it != prefixes.rend(); ++it) {
      used_[*it] = ++clock_;
      by_time_[clock_] = *it;
    }
    return hits;
  }

 private:
  std::map<std::vector<int64_t>, int64_t> used_;
  std::map<int64_t, std::vector<int64_t>> by_time_;
  int64_t clock_ = 0;
};

TEST(PrefixReuse, HitRateOnTheTraceIsWhatAnOfflineLruPredicts) {
  const std::vector<std::vector<int64_t>> trace =
      ReadTrace(std::string(PHALANX_SHARED_DIR) + "/traces/mooncake-conversation.jsonl");
  if (trace.empty()) GTEST_SKIP() << "no trace under " << PHALANX_SHARED_DIR;
  SchedulerOptions options;
  options.max_batch_tokens = 1 << 20;
  options.num_blocks = kPoolBlocks;
  options.block_tokens = kBlockTokens;
  options.max_context = (kMaxBlocks + 2) * kBlockTokens;
  Simulation simulation(options);
  OfflineLru offline;
  int64_t blocks = 0;
  int64_t predicted = 0;
  for (size_t i = 0; i < trace.size(); ++i) {
    RequestSpec spec;
    spec.request_id = i + 1;
    spec.prompt = Tokens(trace[i]);
    spec.max_tokens = kAnswer;
    ASSERT_TRUE(simulation.scheduler().Add(spec).ok());
    ASSERT_TRUE(simulation.RunAll());
    const RequestTrace& got = simulation.traces()[spec.request_id];
    const int64_t hits = offline.Serve(trace[i]);
    ASSERT_EQ(got.cached_tokens, hits * kBlockTokens) << "request " << i;
    ASSERT_EQ(got.samples, Alone(spec, options)) << "request " << i;
    blocks += static_cast<int64_t>(trace[i].size());
    predicted += hits;
    simulation.traces().clear();
  }
  ASSERT_EQ(simulation.model().error(), "");
  const cache::BlockPoolStats stats = simulation.scheduler().stats().blocks;
  EXPECT_EQ(stats.hit_blocks, predicted);
  EXPECT_EQ(stats.queried_blocks, blocks);
  EXPECT_GT(stats.evictions, 0);
  EXPECT_GT(predicted, 0);
  std::printf("%zu requests, %lld of %lld blocks hit (%.2f%%), %lld evictions\n", trace.size(),
              static_cast<long long>(predicted), static_cast<long long>(blocks),
              100.0 * static_cast<double>(predicted) / static_cast<double>(blocks),
              static_cast<long long>(stats.evictions));
}

}  // namespace
}  // namespace phalanx::scheduler
