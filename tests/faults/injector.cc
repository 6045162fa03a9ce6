#include "tests/faults/injector.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace phalanx::faults {
namespace {

const std::map<std::string, Point>& Points() {
  static const auto* points = new std::map<std::string, Point>{
      {"loading", Point::kLoading},       {"prefill", Point::kPrefill}, {"decode", Point::kDecode},
      {"collective", Point::kCollective}, {"idle", Point::kIdle},       {"poison", Point::kPoison}};
  return *points;
}

const std::map<std::string, Action>& Actions() {
  static const auto* actions = new std::map<std::string, Action>{{"sigkill", Action::kKill},
                                                                 {"sigstop", Action::kStop},
                                                                 {"exit", Action::kExit},
                                                                 {"abort", Action::kAbort},
                                                                 {"hang", Action::kHang}};
  return *actions;
}

// A number or, for any, "*".
template <typename T>
bool ParseChoice(const std::string& text, std::optional<T>* out) {
  out->reset();
  if (text == "*") return true;
  T value;
  if (!absl::SimpleAtoi(text, &value)) return false;
  *out = value;
  return true;
}

template <typename T>
bool Find(const std::map<std::string, T>& names, const std::string& name, T* out) {
  const auto found = names.find(name);
  if (found == names.end()) return false;
  *out = found->second;
  return true;
}

bool Set(Fault& fault, const std::string& name, const std::string& value) {
  if (name == "rank") return ParseChoice(value, &fault.rank);
  if (name == "replica") return ParseChoice(value, &fault.replica);
  if (name == "epoch") return ParseChoice(value, &fault.epoch);
  if (name == "at") return Find(Points(), value, &fault.at);
  if (name == "in") {
    return Find(Points(), value, &fault.in) &&
           (fault.in == Point::kPrefill || fault.in == Point::kDecode);
  }
  if (name == "step") return absl::SimpleAtoi(value, &fault.step) && fault.step > 0;
  if (name == "nth") return absl::SimpleAtoi(value, &fault.nth) && fault.nth > 0;
  if (name == "part") return absl::SimpleAtod(value, &fault.part);
  if (name == "token") return absl::SimpleAtoi(value, &fault.token);
  if (name == "do") return Find(Actions(), value, &fault.action);
  // Tells two faults apart that are otherwise the same line.
  return name == "id";
}

}  // namespace

absl::StatusOr<Fault> ParseFault(const std::string& line) {
  Fault fault;
  fault.text = line;
  for (const absl::string_view pair : absl::StrSplit(line, ',')) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(pair, absl::MaxSplits('=', 1));
    if (!Set(fault, parts.first, parts.second)) {
      return absl::InvalidArgumentError(absl::StrCat("PHALANX_FAULT: \"", pair, "\" in \"", line,
                                                     "\": see tests/faults/injector.h"));
    }
  }
  return fault;
}

bool HasPrefill(const scheduler::StepPlan& plan) {
  for (const scheduler::SequenceStep& step : plan.sequences) {
    if (step.start + 1 < step.prompt_length) return true;
  }
  return false;
}

bool HasDecode(const scheduler::StepPlan& plan) {
  for (const scheduler::SequenceStep& step : plan.sequences) {
    if (!step.samples.empty() && step.token_ids.size() == 1 && step.start >= step.prompt_length) {
      return true;
    }
  }
  return false;
}

bool FeedsPromptToken(const scheduler::StepPlan& plan, int32_t token) {
  for (const scheduler::SequenceStep& step : plan.sequences) {
    for (size_t i = 0; i < step.token_ids.size(); ++i) {
      const bool prompt = step.start + static_cast<int64_t>(i) < step.prompt_length;
      if (prompt && step.token_ids[i] == token) return true;
    }
  }
  return false;
}

Injector::Injector(std::string source, std::function<void(Action)> act)
    : source_(std::move(source)), act_(std::move(act)) {}

void Injector::Read() {
  std::string text = source_;
  if (source_[0] == '@') {
    std::ifstream file(source_.substr(1));
    text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (text == seen_) return;
  seen_ = text;
  std::map<std::string, State> read;
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  for (const std::string& line : lines) {
    absl::StatusOr<Fault> fault = ParseFault(line);
    if (!fault.ok()) {
      // A test that injects nothing must not pass for one that nothing can harm.
      (void)!write(STDERR_FILENO, fault.status().message().data(), fault.status().message().size());
      _exit(2);
    }
    const auto known = faults_.find(line);
    read[line] = known != faults_.end() ? known->second : State{*std::move(fault)};
  }
  faults_ = std::move(read);
}

bool Injector::IsMine(const State& state, Point at) const {
  const Fault& fault = state.fault;
  return !state.fired && rank_.has_value() && fault.at == at &&
         fault.rank.value_or(*rank_) == *rank_ && fault.replica.value_or(replica_) == replica_ &&
         fault.epoch.value_or(epoch_) == epoch_;
}

void Injector::Fire(State& state, const std::string& where) {
  state.fired = true;
  if (source_[0] == '@') {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    // One write of one line: lines of several ranks don't mix.
    const std::string line = absl::StrCat(
        "replica=", replica_, " rank=", *rank_, " epoch=", epoch_, " pid=", getpid(),
        " step=", step_, " collective=", collectives_, " where=", where, " seconds=", now.tv_sec,
        ".", absl::Dec(now.tv_nsec, absl::kZeroPad9), " fault=", state.fault.text, "\n");
    const int fd = open(absl::StrCat(source_.substr(1), ".fired").c_str(),
                        O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
      (void)!write(fd, line.data(), line.size());
      close(fd);
    }
  }
  act_(state.fault.action);
}

void Injector::Accepted(int replica, int rank, uint64_t epoch) {
  std::lock_guard<std::mutex> lock(mutex_);
  replica_ = replica;
  rank_ = rank;
  epoch_ = epoch;
  Read();
}

void Injector::Loading(int64_t done, int64_t total) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [text, state] : faults_) {
    if (!IsMine(state, Point::kLoading)) continue;
    if (static_cast<double>(done) >= state.fault.part * static_cast<double>(total)) {
      Fire(state, absl::StrCat("loading:", done, "/", total));
    }
  }
}

void Injector::Loaded() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [text, state] : faults_) {
    if (IsMine(state, Point::kLoading)) Fire(state, "loaded");
  }
}

void Injector::StepBegin(const scheduler::StepPlan& plan) {
  std::lock_guard<std::mutex> lock(mutex_);
  Read();
  step_ = plan.number;
  collectives_ = 0;
  const bool prefill = HasPrefill(plan);
  const bool decode = HasDecode(plan);
  for (auto& [text, state] : faults_) {
    const Fault& fault = state.fault;
    if (IsMine(state, Point::kPoison) && FeedsPromptToken(plan, fault.token)) {
      Fire(state, "step");
    }
    if (!IsMine(state, Point::kPrefill) && !IsMine(state, Point::kDecode) &&
        !IsMine(state, Point::kCollective)) {
      continue;
    }
    const Point kind = fault.at == Point::kCollective ? fault.in : fault.at;
    const bool counts = kind == Point::kPrefill ? prefill : decode;
    if (!counts) continue;
    if (++state.steps < fault.step) continue;
    if (fault.at == Point::kCollective) {
      state.armed = true;
    } else {
      Fire(state, "step");
    }
  }
}

void Injector::StepEnd() {
  std::lock_guard<std::mutex> lock(mutex_);
  step_ = 0;
  for (auto& [text, state] : faults_) state.armed = false;
}

void Injector::Collective(const char* name) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (step_ == 0) return;  // how plans are handed on
  ++collectives_;
  for (auto& [text, state] : faults_) {
    if (!IsMine(state, Point::kCollective) || !state.armed) continue;
    if (collectives_ == state.fault.nth) Fire(state, absl::StrCat("collective:", name));
  }
}

void Injector::Idle() {
  std::lock_guard<std::mutex> lock(mutex_);
  Read();
  for (auto& [text, state] : faults_) {
    if (IsMine(state, Point::kIdle)) Fire(state, "idle");
  }
}

void Perform(Action action) {
  switch (action) {
    case Action::kKill:
      kill(getpid(), SIGKILL);
      break;
    case Action::kStop:
      kill(getpid(), SIGSTOP);
      return;
    case Action::kExit:
      exit(3);
    case Action::kAbort:
      abort();
    case Action::kHang:
      while (true) pause();
  }
}

}  // namespace phalanx::faults
