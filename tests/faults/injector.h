// Faults that a rank brings upon itself at a named point of its life. Only in the executable
// `phalanx_with_faults`: the binary that is shipped has none of this.
//
// A fault is a line of `name=value` pairs separated by commas:
//
//   rank=1,epoch=2,at=decode,step=5,do=sigkill
//
//   at      loading     at the first report of progress of at least `part` (default 0.5) of the
//                       work; where loading is a mapping and reports nothing, when all is loaded
//           prefill     before a step with a chunk of a prompt, the sequence's last row excepted
//           decode      before a step in which a sequence that has an answer takes its next token
//           collective  at the entry of collective or message number `nth` (default 2) of such a
//                       decode step (`in=prefill`: of such a prefill step), where the others of the
//                       group are or will be
//           idle        when SIGUSR2 comes, which the driver sends when no plan is there
//           poison      before a step that feeds the prompt token `token`
//   do      sigkill, sigstop, exit (exit code 3), abort, hang (the thread that computes waits for
//           ever, others go on: heartbeats come)
//   rank, replica, epoch   a number, or * (the default)
//   step    of the steps that `at` speaks of, which one since the fault was read, from 1 (default)
//
// PHALANX_FAULT holds one such line, or @PATH: the file's lines, read again at every step and while
// idle, so that a running service can be given its next fault. A rank that is about to carry a
// fault out first appends a line about it to PATH.fired (PHALANX_FAULT without @: to nothing).
// A fault is carried out at most once by a process.
#ifndef PHALANX_TESTS_FAULTS_INJECTOR_H_
#define PHALANX_TESTS_FAULTS_INJECTOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::faults {

enum class Point { kLoading, kPrefill, kDecode, kCollective, kIdle, kPoison };
enum class Action { kKill, kStop, kExit, kAbort, kHang };

struct Fault {
  std::string text;            // the line, which names the fault
  std::optional<int> rank;     // absent: any
  std::optional<int> replica;  // absent: any
  std::optional<uint64_t> epoch;
  Point at = Point::kDecode;
  Point in = Point::kDecode;  // kCollective: the kind of step
  int64_t step = 1;
  int64_t nth = 2;     // kCollective
  double part = 0.5;   // kLoading
  int32_t token = -1;  // kPoison
  Action action = Action::kKill;
};

// INVALID_ARGUMENT names the pair that is at fault.
absl::StatusOr<Fault> ParseFault(const std::string& line);

// Which steps a plan is one of.
bool HasPrefill(const scheduler::StepPlan& plan);
bool HasDecode(const scheduler::StepPlan& plan);
bool FeedsPromptToken(const scheduler::StepPlan& plan, int32_t token);

// The faults of one rank. From any thread.
class Injector {
 public:
  // `source`: the value of PHALANX_FAULT. `act` carries a fault out (Perform).
  Injector(std::string source, std::function<void(Action)> act);

  void Accepted(int replica, int rank, uint64_t epoch);
  void Loading(int64_t done, int64_t total);
  void Loaded();
  void StepBegin(const scheduler::StepPlan& plan);
  void StepEnd();
  void Collective(const char* name);
  // SIGUSR2 has come.
  void Idle();

 private:
  struct State {
    Fault fault;
    int64_t steps = 0;   // seen that `at` speaks of
    bool armed = false;  // kCollective: this step is the one
    bool fired = false;
  };

  // These require mutex_.
  void Read();
  bool IsMine(const State& state, Point at) const;
  void Fire(State& state, const std::string& where);

  const std::string source_;
  const std::function<void(Action)> act_;
  std::mutex mutex_;
  std::optional<int> rank_;  // set by Accepted
  int replica_ = 0;
  uint64_t epoch_ = 0;
  uint64_t step_ = 0;                    // its number; 0: none
  int64_t collectives_ = 0;              // of this step
  std::string seen_;                     // the file's text when last read
  std::map<std::string, State> faults_;  // by text
};

// Carries an action out on this process. Returns from kStop alone, when the process is continued.
void Perform(Action action);

}  // namespace phalanx::faults

#endif  // PHALANX_TESTS_FAULTS_INJECTOR_H_
