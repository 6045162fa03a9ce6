// A decoder of a given shape with random weights, run op by op as runtime/model does on one rank.
#ifndef PHALANX_TESTS_GPU_TIMING_MODEL_H_
#define PHALANX_TESTS_GPU_TIMING_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::timing {

struct ModelShape {
  std::string name;
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
};
// BF16. Shapes of the two models' config.json.
ModelShape Llama1B();
ModelShape Llama8B();

// Sequences of one step: each of `rows` new tokens after `past` tokens.
struct StepShape {
  int64_t sequences = 1;
  int64_t rows = 1;
  int64_t past = 0;
};

class TimingModel {
 public:
  // Room for steps of `max_rows` rows and `max_tokens` tokens of KV over all sequences; each
  // sequence's part is rounded up to blocks.
  TimingModel(kernels::Kernels& kernels, const ModelShape& shape, int64_t max_rows,
              int64_t max_tokens);

  // One step, up to the chosen tokens of each sequence's last row, which are on the host when it
  // returns.
  void Run(const StepShape& step);
  // The ops of one layer and of the head at `step`'s shape, each by itself: `measure(name, bytes,
  // flops, op)`, with the bytes that it must read and write and the floating-point operations.
  void EachOp(const StepShape& step,
              const std::function<void(const std::string& name, int64_t bytes, int64_t flops,
                                       const std::function<void()>& op)>& measure);

  // Bytes that a step reads of weights, and of keys and values.
  int64_t weight_bytes() const;
  int64_t kv_bytes(const StepShape& step) const;
  // 2 m n k of every product, attention's included.
  int64_t flops(const StepShape& step) const;

 private:
  using Weight = std::unique_ptr<kernels::PackedWeight>;
  struct Layer {
    Weight qkv, o, gate_up, down;
    kernels::Buffer kv;
  };

  kernels::Buffer Allocate(int64_t bytes);
  Weight MakeWeight(int64_t n, int64_t k, int leaves);
  kernels::KvView Cache(const Layer& layer) const;
  void SetStep(const StepShape& step);
  kernels::TensorView View(const kernels::Buffer& buffer, kernels::DType type, int64_t rows,
                           int64_t cols) const;
  void Qkv(const Layer& layer);
  void Attend(const Layer& layer);
  void RunLayer(const Layer& layer, bool first);
  void Head();

  kernels::Kernels& kernels_;
  const ModelShape shape_;
  std::vector<uint16_t> random_;  // rows of every weight, one after the other
  int64_t num_blocks_ = 0;
  std::vector<Layer> layers_;
  Weight head_;
  kernels::Buffer table_, norm_weight_, cos_, sin_;
  kernels::Buffer x_, normed_, qkv_, q_, attended_, delta_, gate_up_, act_, last_, logits_, chosen_;
  // Of the step at hand.
  int64_t rows_ = 0;
  std::vector<int32_t> ids_, positions_, slots_, blocks_, last_rows_, kv_head_of_, out_column_;
  std::vector<kernels::AttentionSequence> sequences_;
  std::vector<int> stripe_program_;
  std::vector<kernels::ChoiceRow> samples_;
};

}  // namespace phalanx::timing

#endif  // PHALANX_TESTS_GPU_TIMING_MODEL_H_
