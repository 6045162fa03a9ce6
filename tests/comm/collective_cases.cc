#include "tests/comm/collective_cases.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "absl/strings/str_cat.h"
#include "parallel/leaves.h"

namespace phalanx::comm {
namespace {

#define RETURN_IF_ERROR(expression)                          \
  do {                                                       \
    if (absl::Status s_ = (expression); !s_.ok()) return s_; \
  } while (false)

template <typename... Args>
absl::Status Differs(const Args&... args) {
  return absl::DataLossError(absl::StrCat(args...));
}

uint64_t Mix(uint64_t x) {  // splitmix64's output function
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// A finite float of either sign and one of 64 magnitudes, so that the order of additions shows;
// one in 32 is subnormal.
float LeafValue(uint64_t leaf, uint64_t i) {
  const uint64_t bits = Mix(leaf * 1000003 + i);
  const uint32_t exponent = (bits & 31) == 0 ? 0 : 96 + ((bits >> 5) & 63);
  const uint32_t word = static_cast<uint32_t>(((bits >> 63) << 31) | (uint64_t{exponent} << 23) |
                                              ((bits >> 20) & 0x7fffff));
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// Element i of the sum over leaves [begin, end), by the definition of the tree and nothing else.
float TreeValue(int begin, int end, uint64_t i) {
  if (end - begin == 1) return LeafValue(begin, i);
  int half = 1;
  while (half * 2 < end - begin) half *= 2;
  return TreeValue(begin, begin + half, i) + TreeValue(begin + half, end, i);
}

struct Problem {
  ReducePlan plan;
  std::vector<std::vector<float>> parts;  // of this member
  std::vector<const float*> pointers;
};

// `leaves` leaves over the members; without `first_has_leaves` member 0 has none.
Problem MakeProblem(const Communicator& group, int leaves, int64_t count, bool first_has_leaves) {
  const int n = group.size();
  Problem problem;
  std::vector<parallel::Range> all;
  for (int r = 0; r < n; ++r) {
    parallel::Range run;
    if (first_has_leaves) {
      run = parallel::LeafRun(r, n, leaves);
    } else if (r > 0) {
      run = parallel::LeafRun(r - 1, n - 1, leaves);
    }
    std::vector<parallel::Range> subtrees;
    if (!run.empty()) subtrees = parallel::WholeSubtrees(run, leaves);
    problem.plan.parts_per_member.push_back(static_cast<int>(subtrees.size()));
    all.insert(all.end(), subtrees.begin(), subtrees.end());
    if (r != group.rank()) continue;
    for (const parallel::Range& subtree : subtrees) {
      std::vector<float>& part = problem.parts.emplace_back(count);
      for (int64_t i = 0; i < count; ++i) {
        part[i] = TreeValue(static_cast<int>(subtree.begin), static_cast<int>(subtree.end), i);
      }
    }
  }
  problem.plan.program = parallel::TreeProgram({0, leaves}, all);
  for (const auto& part : problem.parts) problem.pointers.push_back(part.data());
  return problem;
}

absl::Status CheckSum(const float* got, int leaves, int64_t begin, int64_t count,
                      const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    const float want = TreeValue(0, leaves, begin + i);
    if (std::memcmp(&got[i], &want, sizeof(float)) != 0) {
      return Differs(what, ": element ", begin + i, " of the sum over ", leaves, " leaves is ",
                     got[i], ", expected ", want);
    }
  }
  return absl::OkStatus();
}

absl::Status AllReduceOnce(Communicator& group, int leaves, int64_t count, bool first_has_leaves) {
  Problem problem = MakeProblem(group, leaves, count, first_has_leaves);
  std::vector<float> out(count, -1.0f);
  RETURN_IF_ERROR(group.AllReduce(problem.plan, problem.pointers, out.data(), count));
  RETURN_IF_ERROR(CheckSum(out.data(), leaves, 0, count, "AllReduce"));
  // Again, into the last part's own memory.
  float* in_place = problem.parts.empty() ? out.data() : problem.parts.back().data();
  RETURN_IF_ERROR(group.AllReduce(problem.plan, problem.pointers, in_place, count));
  return CheckSum(in_place, leaves, 0, count, "AllReduce in place");
}

absl::Status AllReduceEqualsTheSequentialTree(Communicator& group) {
  for (const int leaves : {8, 24}) {
    for (const int64_t count : {0, 1, 7, 1000, 9001}) {
      RETURN_IF_ERROR(AllReduceOnce(group, leaves, count, true));
    }
  }
  return AllReduceOnce(group, 8, 123457, true);
}

absl::Status AllReduceTakesMembersWithoutParts(Communicator& group) {
  if (group.size() == 1) return absl::OkStatus();
  for (const int64_t count : {0, 3, 2049, 40001}) {
    RETURN_IF_ERROR(AllReduceOnce(group, 8, count, false));
  }
  return absl::OkStatus();
}

absl::Status ReductionsKeepTheCallersFloatingPointMode(Communicator& group) {
#if defined(__x86_64__)
  constexpr unsigned kFlushToZero = 0x8040;  // FTZ | DAZ
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | kFlushToZero);
  absl::Status status = AllReduceOnce(group, 8, 5000, true);
  if (status.ok()) status = AllReduceOnce(group, 8, 40000, true);
  if (status.ok() && _mm_getcsr() / kFlushToZero == 0) status = Differs("the mode was changed");
  _mm_setcsr(before);
  return status;
#else
  return AllReduceOnce(group, 8, 5000, true);
#endif
}

absl::Status ReduceScatterGivesEachItsRange(Communicator& group) {
  const int n = group.size();
  for (const int64_t unit : {1, 100, 5003}) {
    std::vector<int64_t> counts(n);
    for (int r = 0; r < n; ++r) counts[r] = r == 1 ? 0 : unit * (r + 1) + r;
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    const int64_t begin =
        std::accumulate(counts.begin(), counts.begin() + group.rank(), int64_t{0});
    Problem problem = MakeProblem(group, 8, total, true);
    std::vector<float> out(counts[group.rank()]);
    RETURN_IF_ERROR(group.ReduceScatter(problem.plan, problem.pointers, out.data(), counts));
    RETURN_IF_ERROR(CheckSum(out.data(), 8, begin, counts[group.rank()], "ReduceScatter"));
    float* in_place = problem.parts.back().data();
    RETURN_IF_ERROR(group.ReduceScatter(problem.plan, problem.pointers, in_place, counts));
    RETURN_IF_ERROR(CheckSum(in_place, 8, begin, counts[group.rank()], "ReduceScatter in place"));
  }
  return absl::OkStatus();
}

absl::Status AllReduceOrJoinsRows(Communicator& group) {
  const uint64_t n = group.size();
  for (const int64_t count : {0, 1, 1001, 300007}) {
    std::vector<uint32_t> data(count);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t owner = Mix(i) % n;
      data[i] = owner == static_cast<uint64_t>(group.rank()) ? static_cast<uint32_t>(Mix(~i)) : 0;
    }
    RETURN_IF_ERROR(group.AllReduceOr(data.data(), count));
    for (int64_t i = 0; i < count; ++i) {
      if (data[i] != static_cast<uint32_t>(Mix(~i))) return Differs("AllReduceOr: word ", i);
    }
  }
  return absl::OkStatus();
}

// `bytes` bytes that depend on `seed` and on their place.
std::string Pattern(uint64_t seed, int64_t bytes) {
  std::string text(bytes, '\0');
  for (int64_t i = 0; i < bytes; ++i) {
    text[i] = static_cast<char>((i * 131 + static_cast<int64_t>(seed) * 29) >> (i & 3));
  }
  return text;
}

// Uneven sizes: some zero, some longer than a slot.
int64_t UnevenBytes(int64_t unit, int a, int b) {
  return unit * static_cast<int64_t>(Mix(a * 64 + b + static_cast<uint64_t>(unit)) % 4) +
         (a + b) % 3;
}

absl::Status GathersUnevenBlocks(Communicator& group) {
  const int n = group.size();
  for (const int64_t unit : {0, 1, 1000, 700001}) {
    std::vector<int64_t> bytes(n);
    std::string want;
    for (int r = 0; r < n; ++r) {
      bytes[r] = UnevenBytes(unit, r, 0);
      want += Pattern(r, bytes[r]);
    }
    const std::string mine = Pattern(group.rank(), bytes[group.rank()]);
    std::string got(want.size(), '?');
    RETURN_IF_ERROR(group.AllGather(mine.data(), got.data(), bytes));
    if (got != want) return Differs("AllGather with unit ", unit);
    for (int root = 0; root < n; ++root) {
      got.assign(want.size(), '?');
      void* recv = root == group.rank() ? got.data() : nullptr;
      RETURN_IF_ERROR(group.Gather(mine.data(), recv, bytes, root));
      if (root == group.rank() && got != want) return Differs("Gather with unit ", unit);
    }
  }
  return absl::OkStatus();
}

absl::Status AllToAllMovesUnevenBlocks(Communicator& group) {
  const int n = group.size();
  for (const int64_t unit : {0, 1, 1000, 400001}) {
    std::vector<int64_t> send_bytes(n);
    std::vector<int64_t> recv_bytes(n);
    std::string send;
    std::string want;
    for (int r = 0; r < n; ++r) {
      send_bytes[r] = UnevenBytes(unit, group.rank(), r);
      recv_bytes[r] = UnevenBytes(unit, r, group.rank());
      send += Pattern(group.rank() * 100 + r, send_bytes[r]);
      want += Pattern(r * 100 + group.rank(), recv_bytes[r]);
    }
    std::string got(want.size(), '?');
    RETURN_IF_ERROR(group.AllToAll(send.data(), send_bytes, got.data(), recv_bytes));
    if (got != want) return Differs("AllToAll with unit ", unit);
  }
  return absl::OkStatus();
}

absl::Status BroadcastsFromEveryRoot(Communicator& group) {
  for (int root = 0; root < group.size(); ++root) {
    for (const int64_t bytes : {0, 1, 4097, 300001}) {
      const std::string want = Pattern(root, bytes);
      std::string data = root == group.rank() ? want : std::string(bytes, '?');
      RETURN_IF_ERROR(group.Broadcast(data.data(), bytes, root));
      if (data != want) return Differs("Broadcast of ", bytes, " bytes from ", root);
      std::string message = root == group.rank() ? want : "something older";
      RETURN_IF_ERROR(group.BroadcastMessage(message, root));
      if (message != want) return Differs("BroadcastMessage of ", bytes, " bytes from ", root);
    }
  }
  return absl::OkStatus();
}

absl::Status MessagesAreSortedByTag(Communicator& group) {
  const int n = group.size();
  const int next = (group.rank() + 1) % n;
  const int previous = (group.rank() + n - 1) % n;
  const std::vector<int> sent = {5, 3, 5, 2147483647, 0, 3};
  const std::vector<int> received = {0, 5, 2147483647, 3, 3, 5};
  for (const int64_t bytes : {0, 9, 30001}) {
    for (size_t i = 0; i < sent.size(); ++i) {
      const std::string data = Pattern(group.rank() * 10 + i, bytes + static_cast<int64_t>(i));
      RETURN_IF_ERROR(group.Send(data.data(), data.size(), next, sent[i]));
    }
    for (size_t j = 0; j < received.size(); ++j) {
      // The k-th receive of a tag takes the k-th message sent with it.
      const auto k = std::count(received.begin(), received.begin() + j, received[j]);
      size_t i = 0;
      for (auto seen = k; sent[i] != received[j] || seen-- > 0;) ++i;
      const std::string want = Pattern(previous * 10 + i, bytes + static_cast<int64_t>(i));
      std::string got(want.size(), '?');
      RETURN_IF_ERROR(group.Recv(got.data(), got.size(), previous, received[j]));
      if (got != want) return Differs("Recv with tag ", received[j], " of ", got.size(), " bytes");
    }
  }
  return absl::OkStatus();
}

absl::Status BothMaySendBeforeEitherReceives(Communicator& group) {
  const int n = group.size();
  const int64_t bytes = 400003;
  const std::string mine = Pattern(group.rank(), bytes);
  for (int step = 1; step < n; ++step) {
    RETURN_IF_ERROR(group.Send(mine.data(), bytes, (group.rank() + step) % n, 1));
  }
  for (int step = 1; step < n; ++step) {
    const int from = (group.rank() + step) % n;
    std::string got(bytes, '?');
    RETURN_IF_ERROR(group.Recv(got.data(), bytes, from, 1));
    if (got != Pattern(from, bytes)) return Differs("Recv from ", from);
  }
  return absl::OkStatus();
}

absl::Status CheckMembers(Communicator& group, const std::vector<int>& want, int mine) {
  std::vector<int> got(group.size(), -1);
  const std::vector<int64_t> bytes(group.size(), sizeof(int));
  RETURN_IF_ERROR(group.AllGather(&mine, got.data(), bytes));
  if (got != want) return Differs("the members of a group made by Split are not those asked for");
  return absl::OkStatus();
}

absl::Status SplitMakesGroupsInKeyOrder(Communicator& group) {
  const int n = group.size();
  const int r = group.rank();
  // Even and odd ranks, each group backwards.
  auto parity = group.Split(r % 2, -r);
  if (!parity.ok()) return parity.status();
  std::vector<int> want;
  for (int i = n - 1; i >= 0; --i) {
    if (i % 2 == r % 2) want.push_back(i);
  }
  RETURN_IF_ERROR(CheckMembers(**parity, want, r));
  // Equal keys keep the order of ranks; a negative color joins nothing.
  auto but_last = group.Split(r == n - 1 ? -1 : 7, 0);
  if (!but_last.ok()) return but_last.status();
  if ((*but_last == nullptr) != (r == n - 1)) return Differs("Split with a negative color");
  if (*but_last != nullptr) {
    want.resize(n - 1);
    std::iota(want.begin(), want.end(), 0);
    RETURN_IF_ERROR(CheckMembers(**but_last, want, r));
  }
  // A group of a group, while all of them live, and traffic in all at once.
  auto nested = (*parity)->Split((*parity)->rank() / 2, 0);
  if (!nested.ok()) return nested.status();
  for (int i = 0; i < 3; ++i) {
    const int pair = (*parity)->rank() / 2 * 2;
    want.clear();
    for (int k = pair; k < std::min(pair + 2, (*parity)->size()); ++k) want.push_back(k);
    RETURN_IF_ERROR(CheckMembers(**nested, want, (*parity)->rank()));
    want.resize(n);
    std::iota(want.begin(), want.end(), 0);
    RETURN_IF_ERROR(CheckMembers(group, want, r));
    RETURN_IF_ERROR((*parity)->Barrier());
  }
  return absl::OkStatus();
}

absl::Status CollectivesOfAllKindsFollowEachOther(Communicator& group) {
  const int n = group.size();
  const int r = group.rank();
  const uint64_t before = group.collective_number();
  uint64_t begun = 0;
  for (int i = 0; i < 150; ++i) {
    const uint64_t dice = Mix(i);
    const int root = static_cast<int>((dice >> 8) % n);
    const int64_t bytes = static_cast<int64_t>((dice >> 16) % 6000);
    if (i % 10 != 9) ++begun;
    if (i % 10 == 9) {  // the only one that is no collective
      if (n > 1 && r == root) {
        RETURN_IF_ERROR(group.Send(&dice, sizeof(dice), (r + 1) % n, i));
      } else if (n > 1 && r == (root + 1) % n) {
        uint64_t got = 0;
        RETURN_IF_ERROR(group.Recv(&got, sizeof(got), root, i));
        if (got != dice) return Differs("Recv in turn ", i);
      }
      continue;
    }
    switch (dice % 5) {
      case 0: {
        std::string message = r == root ? Pattern(i, bytes) : "";
        RETURN_IF_ERROR(group.BroadcastMessage(message, root));
        if (message != Pattern(i, bytes)) return Differs("BroadcastMessage in turn ", i);
        break;
      }
      case 1: {
        ReducePlan plan{std::vector<int>(n, 1), {0}};
        for (int k = 1; k < n; ++k) plan.program.insert(plan.program.end(), {k, -1});
        std::vector<float> data(bytes, static_cast<float>(r + i));
        const float* part = data.data();
        RETURN_IF_ERROR(group.AllReduce(plan, {&part, 1}, data.data(), bytes));
        const float want = static_cast<float>(n * (n - 1) / 2 + n * i);
        for (const float value : data) {
          if (value != want) return Differs("AllReduce in turn ", i);
        }
        break;
      }
      case 2: {
        std::string data = r == root ? Pattern(i, bytes) : std::string(bytes, '?');
        RETURN_IF_ERROR(group.Broadcast(data.data(), bytes, root));
        if (data != Pattern(i, bytes)) return Differs("Broadcast in turn ", i);
        break;
      }
      case 3: {
        const std::vector<int64_t> sizes(n, 8);
        std::vector<int64_t> all(n);
        const int64_t mine = r * 1000 + i;
        RETURN_IF_ERROR(group.AllGather(&mine, all.data(), sizes));
        for (int k = 0; k < n; ++k) {
          if (all[k] != k * 1000 + i) return Differs("AllGather in turn ", i);
        }
        break;
      }
      default:
        RETURN_IF_ERROR(group.Barrier());
    }
  }
  if (group.collective_number() != before + begun) {
    return Differs("collective_number() is ", group.collective_number(), ", expected ",
                   before + begun);
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<CollectiveCase>& CollectiveCases() {
#define CASE(name) \
  { #name, &name }
  static const auto* const cases = new std::vector<CollectiveCase>{
      CASE(AllReduceEqualsTheSequentialTree),
      CASE(AllReduceTakesMembersWithoutParts),
      CASE(ReductionsKeepTheCallersFloatingPointMode),
      CASE(ReduceScatterGivesEachItsRange),
      CASE(AllReduceOrJoinsRows),
      CASE(GathersUnevenBlocks),
      CASE(AllToAllMovesUnevenBlocks),
      CASE(BroadcastsFromEveryRoot),
      CASE(MessagesAreSortedByTag),
      CASE(BothMaySendBeforeEitherReceives),
      CASE(SplitMakesGroupsInKeyOrder),
      CASE(CollectivesOfAllKindsFollowEachOther),
  };
#undef CASE
  return *cases;
}

}  // namespace phalanx::comm
