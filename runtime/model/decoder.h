// The one decoder of every family: what differs between families is data in the ModelConfig.
//
//   x = embedding[ids]
//   for each layer:  x += Wo attention(rope(Wqkv norm(x)))     (Wo finished by the tree of R2)
//                    x += Wdown (silu(Wgate norm(x)) * Wup norm(x)), or a mixture of experts
//   logits = Whead norm(x)
//
// How it is sharded, over any combination of axes (parallel/shard.h has the slices):
//   tp  query heads, intermediate channels (Shoeybi et al., arXiv:1909.08053); a rank holds every
//   KV
//       head that its query heads read
//   pp  a stage runs its layers and hands the residual stream to the next (Narayanan et al.,
//       arXiv:2104.04473); logits come from the last
//   sp  a rank holds the KV blocks of its stripes; every query goes to all stripes and the partial
//       softmaxes meet at the token's owner (Liu et al., arXiv:2310.01889, in another order)
//   ep  tokens go to their experts' ranks and come back by all-to-all (Lepikhin et al.,
//       arXiv:2006.16668); nothing is dropped. The host routes, and so waits for the device in each
//       layer of experts, wherever ranks share a stage; a rank that has its stage alone leaves
//       routing to the device (Kernels::RunExperts), and its whole step can be enqueued
// The residual stream is F32. In a step of few rows every rank of a stage holds all of it. In a
// step of at least `shard_rows` rows each rank holds its own rows (Korthikanti et al.,
// arXiv:2205.05198): sums are scattered, the norm sees own rows, and what it gives is gathered.
// Neither choice changes a bit.
#ifndef PHALANX_RUNTIME_MODEL_DECODER_H_
#define PHALANX_RUNTIME_MODEL_DECODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/kernels.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/batch.h"
#include "runtime/model/groups.h"
#include "runtime/model/profile.h"
#include "runtime/model/slice_digest.h"
#include "runtime/model/weight_store.h"
#include "runtime/scheduler/step_plan.h"

namespace phalanx::model {

struct DecoderOptions {
  Profile profile;            // `weights` is overwritten by the checkpoint's
  int64_t max_rows = 512;     // rows that one Forward may hold
  int64_t max_positions = 0;  // context length; 0: the checkpoint's max_position_embeddings
  int64_t shard_rows = 32;    // steps of at least this many rows shard the residual stream by token
  // Where packed weights are looked for and kept; null: they are packed into this process's own
  // memory.
  WeightStore* store = nullptr;
  // With a store. What packs: build and CPU path, which two ranks must share to share weights.
  std::string packer;
  int load_threads = 1;  // that check kept weights
  // Called while loading with bytes packed so far and in all, on the loading thread.
  std::function<void(int64_t done, int64_t total)> progress;
};

// When a pipeline stage works on a step: between the two it waits for nobody but its own peers.
struct StageHooks {
  std::function<void()> input_ready;   // the previous stage's rows are here; may be empty
  std::function<void()> output_ready;  // the rows for the next stage are made; may be empty
};

// Logits are made for at most this many rows at a time: on a device of its own more, since there it
// is the head's weights that take the time, which are read once for all rows.
inline constexpr int64_t kLogitRows = 32;
inline constexpr int64_t kDeviceLogitRows = 256;
inline int64_t LogitRows(const kernels::Kernels& kernels) {
  return kernels.host_accessible() ? kLogitRows : kDeviceLogitRows;
}
// Takes logits [count, vocab_size] F32 of rows[begin], rows[begin + 1], ...; on the rank's device,
// valid during the call.
using LogitsConsumer = std::function<void(int64_t begin, kernels::TensorView logits)>;

class Decoder {
 public:
  // Packs this rank's slice of `checkpoint`; `groups` say which slice. All that is borrowed must
  // outlive the decoder. Errors: INVALID_ARGUMENT naming a tensor that holds a NaN or an infinity,
  // or an axis that the model or the profile doesn't allow; RESOURCE_EXHAUSTED with the bytes asked
  // for.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const checkpoint::Checkpoint& checkpoint,
                                                       const DecoderOptions& options,
                                                       kernels::Kernels& kernels,
                                                       const ParallelGroups& groups);
  // The digests that rank `rank` of a worker group would give, from this rank's files: how ranks
  // whose files are copies of each other find a difference. Packs nothing. Preconditions: those of
  // Load hold.
  static absl::StatusOr<std::vector<SliceDigest>> DigestSlices(
      const checkpoint::Checkpoint& checkpoint, const DecoderOptions& options,
      kernels::Kernels& kernels, const parallel::Layout& layout, int rank);
  // What identifies the packed weights of each rank of a worker group, by rank: equal exactly where
  // two ranks of `options.packer` pack the same bytes. Reads no weights. Preconditions: those of
  // Load hold.
  static std::vector<std::string> WeightKeys(const checkpoint::Checkpoint& checkpoint,
                                             const DecoderOptions& options,
                                             const parallel::Layout& layout);
  ~Decoder();

  const Profile& profile() const;
  const checkpoint::ModelConfig& config() const;
  int64_t max_positions() const;
  // Bytes held: packed matrices, vectors and embedding rows.
  // Layers computed so far, over all steps. From any thread.
  uint64_t layers_computed() const;
  int64_t weight_bytes() const;
  // They were found in the store, so nothing was read or packed.
  bool weights_were_kept() const;
  // With those: what the store's Agreed() was told of them; 0: nothing.
  uint64_t agreed_content() const;
  // Of every tensor slice that this rank has read; once, for they are many.
  std::vector<SliceDigest> TakeDigests();
  // KV stripes whose blocks this rank holds; of Profile::sequence_stripes.
  parallel::Range stripes() const;
  // Bytes of one KV block over all layers of this rank.
  int64_t kv_block_bytes() const;
  // Allocates the cache, before Forward; again in place of what there was. With `later` its pages
  // are backed by a thread that computes nothing else, while nobody needs the core, or by whoever
  // comes first: for memory that is known to be there, because the rank before this one had it.
  absl::Status AllocateKv(int64_t num_blocks, bool later = false);
  int64_t kv_blocks() const;

  // Copies whole KV blocks of this rank in every layer.
  void CopyBlocks(absl::Span<const scheduler::BlockCopy> copies);
  // Runs this stage's layers over `batch` (1 .. max_rows rows), writing keys and values where the
  // batch has a slot. Collective over the worker group, with the same rows on every rank.
  absl::Status Forward(const Batch& batch, const StageHooks& hooks = {});
  // Logits of rows of the last Forward, on the last stage; elsewhere it does nothing. `consume` is
  // called on the stage's first rank only. Collective over the stage.
  absl::Status Logits(absl::Span<const int32_t> rows, const LogitsConsumer& consume);
  // host[0 : num_experts] = tokens that the last Forward sent to each expert, summed over all
  // layers up to this stage's last. Memory of AllocateHost; they are there when a later Mark has
  // passed.
  void CopyOutExpertTokens(int64_t* host) const;

 private:
  class Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_DECODER_H_
