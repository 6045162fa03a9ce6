// The ops of a dense model's layer and of its head, each by itself, with random weights: what no
// measurement of the engine can tell apart.
#ifndef PHALANX_TESTS_GPU_TIMING_MODEL_H_
#define PHALANX_TESTS_GPU_TIMING_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::timing {

// Sequences of one step: each of `rows` new tokens after `past` tokens.
struct StepShape {
  int64_t sequences = 1;
  int64_t rows = 1;
  int64_t past = 0;
};

class TimingModel {
 public:
  // In BF16. Room for steps of `max_rows` rows, of which at most kMaxSequences want logits, and
  // `max_tokens` tokens of KV over all sequences; each sequence's part is rounded up to blocks.
  // Precondition: no experts.
  TimingModel(kernels::Kernels& kernels, const checkpoint::ModelConfig& shape, int64_t max_rows,
              int64_t max_tokens);
  static constexpr int64_t kMaxSequences = 64;

  // The ops of one layer and of the head at `step`'s shape, each by itself: `measure(name, bytes,
  // flops, op)`, with the bytes that it must read and write and the floating-point operations.
  void EachOp(const StepShape& step,
              const std::function<void(const std::string& name, int64_t bytes, int64_t flops,
                                       const std::function<void()>& op)>& measure);

 private:
  using Weight = std::unique_ptr<kernels::PackedWeight>;
  struct Layer {
    Weight qkv, o, gate_up, down;
    kernels::Buffer kv;
  };

  kernels::Buffer Allocate(int64_t bytes);
  // Random BF16 numbers, over and over.
  kernels::Buffer AllocateRandom(int64_t bytes);
  Weight MakeWeight(int64_t n, int64_t k, int leaves);
  kernels::KvView Cache(const Layer& layer) const;
  void SetStep(const StepShape& step);
  kernels::TensorView View(const kernels::Buffer& buffer, kernels::DType type, int64_t rows,
                           int64_t cols) const;
  void Qkv(const Layer& layer);
  void Attend(const Layer& layer);

  kernels::Kernels& kernels_;
  const checkpoint::ModelConfig shape_;
  std::vector<uint16_t> random_;  // rows of every weight, one after the other
  int64_t num_blocks_ = 0;
  std::vector<Layer> layers_;
  Weight head_;
  kernels::Buffer norm_weight_, cos_, sin_;
  kernels::Buffer x_, normed_, qkv_, q_, attended_, delta_, gate_up_, act_, logits_, chosen_;
  // Of the step at hand.
  int64_t rows_ = 0;
  std::vector<int32_t> positions_, slots_, blocks_, kv_head_of_, out_column_;
  std::vector<kernels::AttentionSequence> sequences_;
  std::vector<int> stripe_program_;
  std::vector<kernels::ChoiceRow> samples_;
};

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_TIMING_MODEL_H_
