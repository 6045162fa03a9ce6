#include "launcher/measure.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/local/local_group.h"
#include "launcher/calibration.h"
#include "launcher/machine.h"
#include "launcher/placement.h"
#include "spdlog/spdlog.h"

namespace phalanx::launcher {
namespace {

// Runs `work` on ranks that are threads of this process; the first error of any.
absl::Status OnRanks(int ranks, int threads,
                     const std::function<absl::Status(comm::Communicator&)>& work) {
  comm::LocalGroupOptions options;
  options.threads_per_rank = threads;
  std::vector<std::unique_ptr<comm::Communicator>> comms = comm::CreateLocalGroup(ranks, options);
  std::vector<absl::Status> statuses(ranks);
  std::vector<std::thread> running;
  running.reserve(ranks);
  for (int r = 0; r < ranks; ++r) {
    running.emplace_back([&, r] {
      statuses[r] = work(*comms[r]);
      if (!statuses[r].ok()) comms[r]->Abort(std::string(statuses[r].message()));
    });
  }
  for (std::thread& thread : running) thread.join();
  absl::Status failure;
  for (const absl::Status& status : statuses) {
    // A rank that failed by itself says more than one that was aborted because of it.
    if (!status.ok() && (failure.ok() || absl::IsAborted(failure))) failure = status;
  }
  return failure;
}

// Microseconds from one thread's handing a value to another until it has one back.
double MeasureHandover(int rounds) {
  absl::Mutex mutex;
  int turn = 0;  // under the mutex
  const int end = 2 * rounds;
  const auto play = [&](int parity) {
    for (int i = parity; i < end; i += 2) {
      const auto mine = [&] { return turn == i; };
      absl::MutexLock lock(&mutex, absl::Condition(&mine));
      ++turn;
    }
  };
  const absl::Time begin = absl::Now();
  std::thread other(play, 1);
  play(0);
  other.join();
  return absl::ToDoubleMicroseconds(absl::Now() - begin) / rounds;
}

// Rank counts that are measured: all up to 8, then doubling.
std::vector<int> RankCounts(int most) {
  std::vector<int> out;
  for (int r = 1; r <= most; r = r < 8 ? r + 1 : r * 2) out.push_back(r);
  return out;
}

std::string ShellQuoted(const std::string& word) {
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

// Adds the collectives between hosts, measured by real processes that mpirun starts there.
absl::Status MeasureAcrossHosts(const MeasureOptions& options, v1::Calibration& out) {
  const absl::StatusOr<std::vector<HostSlots>> hosts = ParseHosts(options.hosts);
  if (!hosts.ok()) return hosts.status();
  // As many ranks on each: the fewest that any has slots for.
  int slots = hosts->front().slots;
  for (const HostSlots& host : *hosts) slots = std::min(slots, host.slots);
  const int nodes = static_cast<int>(hosts->size());
  std::vector<HostSlots> even = *hosts;
  for (HostSlots& host : even) host.slots = slots;
  std::vector<std::string> words = {
      options.mpirun, "-np", absl::StrCat(nodes * slots), "--host", ToHostList(even),
      "--bind-to",    "none"};
  if (geteuid() == 0) words.push_back("--allow-run-as-root");
  words.insert(words.end(),
               {InstalledPath(), "bench", "collectives", "--nodes", absl::StrCat(nodes)});
  if (options.quick) words.push_back("--quick");
  if (options.threads > 0) {
    words.insert(words.end(), {"--threads", absl::StrCat(options.threads)});
  }
  const std::string command = absl::StrJoin(
      words, " ",
      [](std::string* to, const std::string& word) { absl::StrAppend(to, ShellQuoted(word)); });
  spdlog::info("measuring collectives between hosts: {}", command);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return absl::UnavailableError("mpirun can't be started");
  std::string text;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) text.append(buffer, n);
  const int ended = pclose(pipe);
  if (ended != 0) {
    return absl::UnavailableError(
        absl::StrCat("measuring between hosts failed; the command was: ", command));
  }
  const absl::StatusOr<v1::Calibration> measured = ParseCalibration(text, "mpirun's output");
  if (!measured.ok()) return measured.status();
  for (const v1::CollectiveMeasurement& m : measured->collectives()) {
    // Inside a node, threads have been measured with every number of ranks.
    if (m.across_nodes()) *out.add_collectives() = m;
  }
  return absl::OkStatus();
}

// Seconds that all cores have been busy since the start of the machine.
double BusySeconds() {
  std::ifstream in("/proc/stat");
  std::string name;
  in >> name;
  double total = 0;
  // user, nice, system, idle, iowait, irq, softirq, steal.
  for (int field = 0; field < 8; ++field) {
    double ticks = 0;
    in >> ticks;
    if (field != 3 && field != 4) total += ticks;
  }
  return total / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double OwnSeconds() {
  double total = 0;
  for (const int who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
    rusage usage;
    if (getrusage(who, &usage) != 0) continue;
    for (const timeval& t : {usage.ru_utime, usage.ru_stime}) {
      total += static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
    }
  }
  return total;
}

}  // namespace

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

ForeignLoad::ForeignLoad()
    : begin_s_(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())),
      busy_s_(BusySeconds()),
      own_s_(OwnSeconds()) {}

double ForeignLoad::Cores() const {
  const double now = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  const double others = (BusySeconds() - busy_s_) - (OwnSeconds() - own_s_);
  return now > begin_s_ ? std::max(0.0, others / (now - begin_s_)) : 0;
}

absl::StatusOr<v1::RateMeasurement> MeasureRatesHere(int ranks, const kernels::CpuOptions& cpu,
                                                     const RateEffort& effort) {
  v1::RateMeasurement rates;
  const absl::Status status = OnRanks(ranks, cpu.threads, [&](comm::Communicator& world) {
    absl::StatusOr<v1::RateMeasurement> measured = MeasureRates(world, cpu, effort);
    if (!measured.ok()) return measured.status();
    if (world.rank() == 0) rates = *std::move(measured);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return rates;
}

absl::StatusOr<v1::Calibration> Measure(const MeasureOptions& options) {
  const std::vector<kernels::CpuPath> available = kernels::AvailableCpuPaths();
  kernels::CpuOptions cpu;
  bool known = options.cpu_path.empty();
  for (const kernels::CpuPath path : available) {
    if (options.cpu_path == kernels::Name(path)) {
      cpu.path = path;
      known = true;
    }
  }
  if (!known) {
    return absl::InvalidArgumentError(
        absl::StrCat("--cpu-path ", options.cpu_path, ": this machine does not have it"));
  }
  const ForeignLoad others;
  const int cores = AvailableCores();
  const int most = options.max_ranks > 0 ? options.max_ranks : std::clamp(2 * cores, 2, 8);

  v1::Calibration out;
  const std::string_view path_name = kernels::Name(cpu.path);
  out.set_machine(absl::StrCat(HostName(), ", ", std::string(path_name), ", ",
                               absl::FormatTime(absl::Now(), absl::UTCTimeZone())));
  out.set_cores(cores);
  out.set_weights("BF16");
  out.set_handover_us(MeasureHandover(options.quick ? 50 : 500));

  // As ranks are started, and fewer ranks with as many threads as theirs: where stages wait for one
  // another, not all compute.
  std::vector<std::pair<int, int>> combinations;
  const auto add = [&](int ranks, int threads) {
    const std::pair<int, int> wanted(ranks, std::max(1, threads));
    if (std::find(combinations.begin(), combinations.end(), wanted) == combinations.end()) {
      combinations.push_back(wanted);
    }
  };
  for (const int ranks : RankCounts(most)) {
    if (options.quick && ranks > 2 && ranks != most) continue;
    const int threads = options.threads > 0 ? options.threads : cores / ranks;
    add(ranks, threads);
    add(std::max(1, ranks / 2), threads);
  }
  for (const auto& [ranks, threads] : combinations) {
    spdlog::info("measuring {} {} of {} {}", ranks, ranks == 1 ? "rank" : "ranks", threads,
                 threads == 1 ? "thread" : "threads");
    cpu.threads = threads;
    RateEffort effort;
    if (options.quick) effort = {.rounds = 3, .few_rows = true, .segment_s = 1e-3};
    absl::StatusOr<v1::RateMeasurement> rates = MeasureRatesHere(ranks, cpu, effort);
    if (!rates.ok()) return rates.status();
    *out.add_rates() = *std::move(rates);
  }
  for (const int ranks : RankCounts(most)) {
    if (ranks < 2 || (options.quick && ranks > 2 && ranks != most)) continue;
    spdlog::info("measuring collectives of {} ranks", ranks);
    const int threads = options.threads > 0 ? options.threads : std::max(1, cores / ranks);
    const absl::Status status = OnRanks(ranks, threads, [&](comm::Communicator& world) {
      auto measured = MeasureCollectives(world, /*nodes=*/1, options.quick);
      if (measured.ok() && world.rank() == 0) {
        for (v1::CollectiveMeasurement& m : *measured) *out.add_collectives() = std::move(m);
      }
      return measured.status();
    });
    if (!status.ok()) return status;
  }
  if (!options.hosts.empty()) {
    const absl::Status status = MeasureAcrossHosts(options, out);
    if (!status.ok()) return status;
  }
  const double busy = others.Cores();
  if (busy > 0.05 * cores) {
    spdlog::warn(
        "other processes were busy on {:.1f} of {} cores meanwhile: the figures are theirs, too",
        busy, cores);
  }
  return out;
}

}  // namespace phalanx::launcher
