#include "runtime/worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/worker/slice_agreement.h"
#include "runtime/worker/worker_impl.h"

namespace phalanx::worker {

namespace {

// For how long a rank waits for the others. The coordinator has limits of its own and ends a group
// that is late; these keep a rank whose coordinator doesn't from waiting for ever.
constexpr absl::Duration kLoadTimeout = absl::Hours(2);
constexpr absl::Duration kStepTimeout = absl::Minutes(10);
// Bytes of a device that KV blocks leave free.
constexpr int64_t kDeviceReserve = int64_t{64} << 20;

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

const Worker::LoadTimes& Worker::load_times() const { return impl_->load_times; }
const coordinator::RankInfo& Worker::info() const { return impl_->info; }
WorkerOptions& Worker::options() { return impl_->options; }
const model::Profile& Worker::profile() const { return impl_->options.profile; }

int64_t Worker::max_context() const {
  const int64_t model = impl_->checkpoint->config().max_position_embeddings;
  return impl_->options.max_positions > 0 ? impl_->options.max_positions : model;
}
int Worker::result_rank() const { return impl_->context->result_rank(); }
uint64_t Worker::layers_computed() const {
  const model::Decoder* decoder = impl_->computing;
  return decoder != nullptr ? decoder->layers_computed() : 0;
}
uint64_t Worker::collective_number() const { return impl_->context->collective_number(); }

absl::StatusOr<std::unique_ptr<Worker>> Worker::Open(const WorkerOptions& options,
                                                     comm::Communicator& group) {
  auto impl = std::make_unique<Impl>(options, group);
  if (absl::Status status = impl->Open(); !status.ok()) {
    group.Abort(absl::StrCat("rank ", group.rank(), ": ", status.message()));
    return status;
  }
  return std::unique_ptr<Worker>(new Worker(std::move(impl)));
}

absl::Status Worker::Load() {
  // A rank may have much more to read than another.
  impl_->context->set_timeout(kLoadTimeout);
  absl::Status status = impl_->Load();
  impl_->context->set_timeout(kStepTimeout);
  return status;
}

absl::Status Worker::Impl::Open() {
  absl::StatusOr<ParallelContext> bound = ParallelContext::Create(options.layout, group);
  if (!bound.ok()) return bound.status();
  context.emplace(*std::move(bound));
  kernels::DeviceOptions device = options.device;
  if (device.cuda.memory_bytes == 0) device.cuda.memory_fraction = options.gpu_memory_fraction;
  auto created = kernels::CreateKernels(device);
  if (!created.ok()) return created.status();
  kernels = *std::move(created);
  options.profile.ComputeOn(options.device);
  if (absl::Status status =
          context->BindDevice(*kernels, options.device_transport, options.profile.numerics);
      !status.ok()) {
    return status;
  }
  auto opened = checkpoint::Checkpoint::Open(options.model_directory);
  if (!opened.ok()) return opened.status();
  checkpoint = *std::move(opened);
  if (absl::Status status = options.profile.HoldWeightsOf(checkpoint->config()); !status.ok()) {
    return status;
  }

  info.rank = group.rank();
  info.host = HostName();
  info.pid = getpid();
  info.device = kernels->Describe();
  info.op_digest = kernels::KnownAnswerDigest(*kernels, options.profile.weights, options.profile.kv,
                                              options.profile.weight_format);
  info.checkpoint_digest = checkpoint->CheckpointDigest();
  return absl::OkStatus();
}

absl::Status Worker::Impl::Load() {
  model::DecoderOptions decoder_options;
  decoder_options.profile = options.profile;
  decoder_options.max_rows = options.max_step_tokens;
  decoder_options.max_positions = options.max_positions;
  decoder_options.shard_rows = options.shard_rows;
  decoder_options.progress = options.progress;
  // Weights outlive their rank in memory of the host.
  if (kernels->host_accessible()) decoder_options.store = options.store;
  decoder_options.packer =
      absl::StrCat(options.packer, " ", std::string(kernels::Name(options.device.cpu.path)));
  decoder_options.load_threads = options.device.cpu.threads;
  const absl::Time begin = absl::Now();
  auto loaded = model::Decoder::Load(*checkpoint, decoder_options, *kernels, context->groups());
  if (!loaded.ok()) return loaded.status();
  decoder = *std::move(loaded);
  computing = decoder.get();
  const absl::Time packed = absl::Now();
  const absl::StatusOr<uint64_t> content = AgreeOnContent(decoder_options);
  if (!content.ok()) return content.status();
  if (decoder_options.store != nullptr) options.store->Agreed(*content);
  checkpoint->ReleasePages();
  info.content_digest = absl::StrCat(absl::Hex(*content, absl::kZeroPad16));
  const absl::Time agreed = absl::Now();
  const absl::StatusOr<int64_t> blocks = AgreeOnKvBlocks();
  if (!blocks.ok()) return blocks.status();
  if (absl::Status status = decoder->AllocateKv(*blocks, /*later=*/decoder->weights_were_kept());
      !status.ok()) {
    return status;
  }
  load_times = {decoder->weights_were_kept(), packed - begin, agreed - packed,
                absl::Now() - agreed};
  if (group.rank() == context->result_rank()) {
    sampler = std::make_unique<sampling::Sampler>(kernels.get(), checkpoint->config().vocab_size,
                                                  options.profile.reduction_leaves);
    const int64_t experts = checkpoint->config().num_experts;
    for (Choices& room : choices) {
      if (experts == 0) break;
      absl::StatusOr<kernels::Buffer> host =
          kernels->AllocateHost(experts * static_cast<int64_t>(sizeof(int64_t)));
      if (!host.ok()) return host.status();
      room.expert_tokens = *std::move(host);
    }
  }
  info.weight_bytes = decoder->weight_bytes();
  info.kv_block_bytes = decoder->kv_block_bytes();
  info.kv_blocks = *blocks;
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Worker::Impl::AgreeOnContent(
    const model::DecoderOptions& decoder_options) {
  // Kept weights of one agreement need no other. Which ranks have kept ones may differ.
  const uint64_t kept = decoder->agreed_content();
  std::vector<uint64_t> all(group.size());
  const std::vector<int64_t> sizes(group.size(), sizeof(uint64_t));
  if (absl::Status status = group.AllGather(&kept, all.data(), sizes); !status.ok()) return status;
  if (kept != 0 && std::count(all.begin(), all.end(), kept) == group.size()) return kept;
  return AgreeOnSlices(group, info, checkpoint->FileIdentities(), decoder->TakeDigests(),
                       [&](int rank) {
                         return model::Decoder::DigestSlices(*checkpoint, decoder_options, *kernels,
                                                             options.layout, rank);
                       });
}

// Every rank holds as many blocks as the one with the least room: the pool is one for all.
absl::StatusOr<int64_t> Worker::Impl::AgreeOnKvBlocks() {
  const int64_t block_bytes = decoder->kv_block_bytes();
  int64_t blocks = options.kv_blocks;
  if (blocks == 0) {
    int64_t bytes = options.kv_memory_bytes;
    if (bytes == 0 && !kernels->host_accessible()) {
      const absl::StatusOr<int64_t> profiled = ProfiledKvBytes();
      if (!profiled.ok()) return profiled.status();
      bytes = *profiled;
    }
    blocks = bytes / std::max<int64_t>(block_bytes, 1);
  }
  if (blocks < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a KV memory of ", options.kv_memory_bytes, " bytes holds no block: one takes ",
        block_bytes, " bytes on rank ", group.rank(), "; raise --kv-memory"));
  }
  if (options.kv_blocks == 0 && options.max_kv_sequences > 0) {
    // Of a sequence's blocks a rank holds those of its stripes.
    const int64_t context_per_block = kernels::kBlockTokens * options.layout.sp;
    const int64_t per_rank =
        kernels::RoundUp(decoder->max_positions(), context_per_block) / context_per_block;
    blocks = std::min(blocks, options.max_kv_sequences * per_rank);
  }
  // Slots are 32-bit, and so are the ids of all sp ranks' blocks.
  blocks = std::min<int64_t>(blocks, INT32_MAX / kernels::kBlockTokens / options.layout.sp);
  std::vector<int64_t> all(group.size());
  const std::vector<int64_t> sizes(group.size(), sizeof(int64_t));
  if (absl::Status status = group.AllGather(&blocks, all.data(), sizes); !status.ok()) {
    return status;
  }
  return *std::min_element(all.begin(), all.end());
}

absl::StatusOr<int64_t> Worker::Impl::ProfiledKvBytes() {
  if (absl::Status status = RunLargestStep(); !status.ok()) return status;
  if (absl::Status status = decoder->AllocateKv(0); !status.ok()) return status;
  const absl::StatusOr<int64_t> left = kernels->FreeBytes();
  if (!left.ok()) return left.status();
  // Something is left for host arrays that are larger than any before (kernels/cuda/README.md).
  return *left - std::min(kDeviceReserve, *left / 16);
}

// Its tokens and its cache's contents mean nothing: every sequence writes to one block.
absl::Status Worker::Impl::RunLargestStep() {
  if (absl::Status status = decoder->AllocateKv(1); !status.ok()) return status;
  const int64_t longest = std::min(options.max_step_tokens, decoder->max_positions());
  std::vector<int32_t> table(kernels::RoundUp(longest, kernels::kBlockTokens) /
                             kernels::kBlockTokens);
  const parallel::Range stripes = decoder->stripes();
  for (size_t b = 0; b < table.size(); ++b) {
    const int64_t stripe = static_cast<int64_t>(b) % options.profile.sequence_stripes;
    table[b] = stripe >= stripes.begin && stripe < stripes.end ? 0 : -1;
  }
  const std::vector<int32_t> tokens(longest, 0);
  model::Batch batch;
  while (batch.rows() < options.max_step_tokens) {
    batch.Append(tokens.data(), std::min(longest, options.max_step_tokens - batch.rows()), 0,
                 table.data());
  }
  kernels->BeginStep(batch.rows());
  if (absl::Status status = decoder->Forward(batch); !status.ok()) return status;
  std::vector<int32_t> rows(std::min<int64_t>(batch.rows(), model::LogitRows(*kernels)));
  std::iota(rows.begin(), rows.end(), 0);
  scheduler::SequenceStep step;
  step.token_ids = {0};
  step.samples = {{}};
  scheduler::SequenceResult result;
  const std::vector<sampling::LogitUse> uses(rows.size(), {&step, -1, &result});
  for (Choices& room : choices) {
    if (absl::Status status = MakeRoom(room, kLeastSlots); !status.ok()) return status;
  }
  auto* chosen = choices[0].device.as<kernels::Choice>();
  absl::Status status = decoder->Logits(rows, [&](int64_t, kernels::TensorView logits) {
    sampling::Sampler(kernels.get(), logits.cols, options.profile.reduction_leaves)
        .SampleRows(logits, uses, chosen);
  });
  kernels->EndStep();
  kernels->Synchronize();
  kernels->FreezeScratch();
  return status;
}

}  // namespace phalanx::worker
