// What the engine takes for a model: coordinator, scheduler and one rank in this process, looking
// ahead, as `phalanx run` puts them together.
#ifndef PHALANX_TESTS_GPU_ENGINE_TIMING_H_
#define PHALANX_TESTS_GPU_ENGINE_TIMING_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/worker/worker.h"
#include "tests/gpu/times.h"

namespace phalanx::timing {

struct EngineTimingOptions {
  // Of the one rank: where the model is, device, memory. What depends on the sequences below is set
  // here: rows of a step, context, blocks' limit, and the device's observer.
  worker::WorkerOptions worker;
  // Decode of so many sequences at once, each after a prompt of `context` tokens: `windows` times
  // `window_steps` steps in which all of them decode, after at least `warm_steps` such ones, in
  // which shapes are seen and graphs built.
  std::vector<int64_t> batches;
  int64_t context = 512;
  int windows = 9;
  int64_t window_steps = 32;
  int64_t warm_steps = 16;
  // Before each figure the same requests run for so long, so that the device's clocks are up.
  double warm_seconds = 0;
  // Prefills of so many tokens, each in one step, alone, `repeats` times.
  std::vector<int64_t> prompts;
  int repeats = 9;
  // Bytes per second that the device reads; 0: shares of it are left out.
  double read_bandwidth = 0;
};

struct EngineFigures {
  // README.md says what the keys mean. Times of the device are there where it has a clock.
  Json json;
  // Of each batch that fits, of each sequence: all tokens chosen. The second: those of the same
  // requests with the device's clock running.
  std::vector<std::vector<std::vector<int32_t>>> tokens;
  std::vector<std::vector<std::vector<int32_t>>> tokens_on_clock;
};

// In `exact` tokens depend on none of this: whether the clock runs, how many sequences decode,
// whether kernels start early (`in_turn`: without). Of models in their real size nothing else says
// so. INTERNAL names the first pair that differs, and where.
absl::Status CheckSameTokens(const EngineFigures& figures, const EngineFigures& in_turn);

// The first error of the engine.
absl::StatusOr<EngineFigures> TimeEngine(const EngineTimingOptions& options);

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_ENGINE_TIMING_H_
