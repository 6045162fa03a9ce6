#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace phalanx::kernels {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 8, 40}) {
    for (const int spin : {0, 20}) {
      ThreadPool pool(threads, spin);
      EXPECT_EQ(pool.size(), threads);
      for (const int64_t count : {0, 1, 2, 7, 100, 1000}) {
        for (const int64_t min_chunk : {1, 3, 16, 5000}) {
          std::vector<std::atomic<int>> hits(count);
          pool.ParallelFor(count, min_chunk, [&](int64_t begin, int64_t end) {
            EXPECT_LT(begin, end);
            for (int64_t i = begin; i < end; ++i) ++hits[i];
          });
          for (const std::atomic<int>& hit : hits) ASSERT_EQ(hit.load(), 1);
        }
      }
    }
  }
}

TEST(ThreadPoolTest, ChunksBeginAndEndAtMultiplesOfMinChunk) {
  ThreadPool pool(3);
  for (const int64_t count : {1, 31, 32, 33, 1000}) {
    pool.ParallelFor(count, 32, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % 32, 0);
      EXPECT_TRUE(end % 32 == 0 || end == count);
    });
  }
}

// All threads take part: each waits inside its chunk until all have one.
TEST(ThreadPoolTest, RunsChunksOnAllThreads) {
  constexpr int kThreads = 4;
  ThreadPool pool(kThreads);
  std::atomic<int> arrived = 0;
  std::vector<std::thread::id> ids(kThreads * 4);
  pool.ParallelFor(kThreads * 4, 1, [&](int64_t begin, int64_t) {
    ids[begin] = std::this_thread::get_id();
    const int order = ++arrived;
    while (order <= kThreads && arrived.load() < kThreads) std::this_thread::yield();
  });
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(),
            static_cast<size_t>(kThreads));
}

TEST(ThreadPoolTest, SeesTheCallersWritesAndShowsItsOwn) {
  ThreadPool pool(8);
  std::vector<int64_t> values(64, 0);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        EXPECT_EQ(values[i], round - 1);
        values[i] = round;
      }
    });
    for (const int64_t value : values) ASSERT_EQ(value, round);
  }
}

#if defined(__x86_64__)
TEST(ThreadPoolTest, FlushesDenormalsInsideAndRestoresTheCaller) {
  const unsigned before = _mm_getcsr();
  ThreadPool pool(3);
  pool.ParallelFor(12, 1, [&](int64_t, int64_t) {
    volatile float tiny = std::numeric_limits<float>::min();
    EXPECT_EQ(tiny * 0.5f, 0.0f);
    volatile float denormal = std::numeric_limits<float>::denorm_min();
    EXPECT_EQ(denormal * 1e30f, 0.0f);
    EXPECT_EQ(_mm_getcsr() & 0x8040u, 0x8040u);
  });
  EXPECT_EQ(_mm_getcsr(), before);
}
#endif

// The state letters of this process's other threads (proc(5), stat, field 3).
std::string StatesOfOtherThreads() {
  std::string states;
  const std::string self = std::to_string(gettid());
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    if (entry.path().filename() == self) continue;
    std::ifstream file(entry.path() / "stat");
    std::string text;
    std::getline(file, text);
    const size_t name_end = text.rfind(')');
    if (name_end != std::string::npos) states.push_back(text.at(name_end + 2));
  }
  return states;
}

// A pool that polled for work would never have all its threads asleep; the test would time out.
TEST(ThreadPoolTest, IdleThreadsSleep) {
  const size_t before = StatesOfOtherThreads().size();
  ThreadPool pool(16, 50);
  pool.ParallelFor(64, 1, [](int64_t, int64_t) {});
  std::string states = StatesOfOtherThreads();
  while (states != std::string(before + 15, 'S')) {
    std::this_thread::yield();
    states = StatesOfOtherThreads();
  }
  // Asleep, they still wake for work.
  std::atomic<int64_t> sum = 0;
  pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) { sum += end - begin; });
  EXPECT_EQ(sum.load(), 64);
}

TEST(ThreadPoolDeathTest, ParallelForInsideParallelForEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        pool.ParallelFor(
            8, 1, [&](int64_t, int64_t) { pool.ParallelFor(8, 1, [](int64_t, int64_t) {}); });
      },
      "inside a ParallelFor");
}

TEST(ThreadPoolDeathTest, APoolOfNoThreadsEndsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(ThreadPool pool(0), "a thread pool of 0 threads");
}

}  // namespace
}  // namespace phalanx::kernels
