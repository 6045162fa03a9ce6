// The one decoder of every family: what differs between families is data in the ModelConfig.
//
//   x = embedding[ids]
//   for each layer:  x += Wo attention(rope(Wqkv norm(x)))     (Wo finished by the tree of R2)
//                    x += Wdown (silu(Wgate norm(x)) * Wup norm(x))
//   logits = Whead norm(x)
//
// Tensor parallelism (Shoeybi et al., arXiv:1909.08053): query heads, intermediate channels and
// vocabulary are cut by leaves; a rank holds every KV head that its query heads read. The residual
// stream is F32 and replicated.
#ifndef PHALANX_RUNTIME_MODEL_DECODER_H_
#define PHALANX_RUNTIME_MODEL_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/communicator.h"
#include "kernels/kernels.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/batch.h"
#include "runtime/model/profile.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::model {

struct DecoderOptions {
  Profile profile;            // `weights` is overwritten by the checkpoint's
  int64_t max_rows = 512;     // rows that one Forward may hold
  int64_t max_positions = 0;  // context length; 0: the checkpoint's max_position_embeddings
  // Called while loading with bytes packed so far and in all, on the loading thread.
  std::function<void(int64_t done, int64_t total)> progress;
};

class Decoder {
 public:
  // Packs this rank's slice of `checkpoint`. `tp`: the tensor-parallel group of this rank; its rank
  // and size say which slice. All references must outlive the decoder. Errors: INVALID_ARGUMENT
  // naming a tensor that holds a NaN or an infinity, or a tp that the profile's leaves don't allow;
  // RESOURCE_EXHAUSTED with the bytes asked for.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const checkpoint::Checkpoint& checkpoint,
                                                       const DecoderOptions& options,
                                                       kernels::Kernels& kernels,
                                                       comm::Communicator& tp);
  ~Decoder();

  const Profile& profile() const;
  const checkpoint::ModelConfig& config() const;
  int64_t max_positions() const;
  int64_t weight_bytes() const;
  // Bytes of one KV block over all layers of this rank.
  int64_t kv_block_bytes() const;
  // Allocates the cache. Called once, before Forward.
  absl::Status AllocateKv(int64_t num_blocks);
  int64_t kv_blocks() const;

  // Copies whole KV blocks in every layer.
  void CopyBlocks(absl::Span<const scheduler::BlockCopy> copies);
  // Runs every layer over `batch` (1 .. max_rows rows), writing its keys and values.
  absl::Status Forward(const Batch& batch);
  // Logits of rows of the last Forward. `consume(i, logits)` is called on tensor rank 0 only, with
  // i counting through `rows` and logits [vocab_size] valid during the call. Collective.
  absl::Status Logits(absl::Span<const int32_t> rows,
                      const std::function<void(int64_t i, absl::Span<const float>)>& consume);

 private:
  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_DECODER_H_
