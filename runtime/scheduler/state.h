// The scheduler's own state of a request, its samples and a plan in flight. Private to this folder.
#ifndef PHALANX_RUNTIME_SCHEDULER_STATE_H_
#define PHALANX_RUNTIME_SCHEDULER_STATE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/scheduler/scheduler.h"

namespace phalanx::scheduler {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class SequenceState {
  kForkPending,  // shares the prefill that sample 0 is doing; holds nothing
  kWaiting,      // in waiting_: holds no blocks
  kRunning,      // in running_: holds the blocks of all its tokens
  kFinished,
};

// One sample.
struct Scheduler::Sequence {
  uint64_t id = 0;
  Request* request = nullptr;
  int32_t sample_index = 0;
  SequenceState state = SequenceState::kWaiting;
  std::vector<int32_t> generated;  // committed; never taken back
  std::vector<int32_t> blocks;     // by absolute block
  int64_t computed = 0;            // tokens whose keys and values are known to be stored
  int64_t scheduled = 0;           // `computed` and the tokens of its parts in flight
  int64_t published = 0;           // leading full blocks already handed to Publish
  int64_t prefill_share = 0;       // while it is the oldest prefill: rows of a plan; 0: not set
  int64_t reached = 0;             // the largest `computed` ever
  int in_flight = 0;               // plans in flight that it is in
  int choosing = 0;                // its own tokens that plans in flight choose

  int64_t size() const;
  // With the tokens that are being chosen.
  int64_t coming_size() const { return size() + choosing; }
  int32_t token(int64_t position) const;
  std::vector<int32_t> Tokens(int64_t begin, int64_t end) const;
};

struct Scheduler::Request {
  RequestSpec spec;
  uint64_t arrival = 0;
  std::vector<std::unique_ptr<Sequence>> samples;  // by sample index
  int32_t unfinished = 0;
  int64_t preemptions = 0;
  int deaths = 0;                 // of worker groups under it, at `reached_at_death`
  int64_t reached_at_death = -1;  // how far it had come at the last one
  bool isolated = false;          // computed alone until it comes further
  bool admitted = false;
  bool ended = false;
  std::vector<TokenLogprobs> prompt_logprobs;  // of prompt tokens 1, 2, ... collected so far
  int64_t prompt_rows_done = 0;                // how many were ever collected

  int64_t prompt_size() const { return static_cast<int64_t>(spec.prompt.size()); }
  bool wants_prompt_logprobs() const {
    return spec.sampling.prompt_logprobs >= 0 && prompt_rows_done < prompt_size() - 1;
  }
  // The first token of every sample comes from the one shared prefill.
  bool fork_pending() const {
    return samples.size() > 1 && samples[1]->state == SequenceState::kForkPending;
  }
};

struct Scheduler::InFlight {
  struct Part {
    std::shared_ptr<Request> request;  // keeps a cancelled one alive until the commit
    Sequence* sequence = nullptr;
    int64_t count = 0;  // tokens fed
    std::vector<SampleSlot> slots;
    int64_t prompt_rows = 0;  // prompt logprobs that the result must hold
  };
  uint64_t number = 0;
  std::vector<Part> parts;
};

inline Scheduler::Order Scheduler::OrderOf(const Sequence& sequence) {
  return {sequence.request->arrival, sequence.sample_index};
}

inline int64_t Scheduler::Sequence::size() const {
  return request->prompt_size() + static_cast<int64_t>(generated.size());
}

inline int32_t Scheduler::Sequence::token(int64_t position) const {
  const int64_t prompt = request->prompt_size();
  return position < prompt ? request->spec.prompt[position] : generated[position - prompt];
}

inline std::vector<int32_t> Scheduler::Sequence::Tokens(int64_t begin, int64_t end) const {
  std::vector<int32_t> tokens;
  tokens.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) tokens.push_back(token(i));
  return tokens;
}

}  // namespace phalanx::scheduler

#endif  // PHALANX_RUNTIME_SCHEDULER_STATE_H_
