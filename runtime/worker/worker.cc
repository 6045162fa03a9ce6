#include "runtime/worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/model/batch.h"
#include "runtime/sampling/sampler.h"
#include "runtime/worker/parallel_context.h"
#include "runtime/worker/slice_agreement.h"

namespace phalanx::worker {

using scheduler::SequenceResult;
using scheduler::SequenceStep;
using scheduler::StepPlan;
using scheduler::StepResult;

namespace {

// For how long a rank waits for the others. The coordinator has limits of its own and ends a group
// that is late; these keep a rank whose coordinator doesn't from waiting for ever.
constexpr absl::Duration kLoadTimeout = absl::Hours(2);
constexpr absl::Duration kStepTimeout = absl::Minutes(10);

// What one row of logits is for.
struct LogitUse {
  size_t sequence;      // index in the plan
  int32_t target = -1;  // a prompt token whose logprob is wanted; -1: choose tokens
};

// The blocks of `table` that lie on sp rank `s`, as its own ids, -1 for the others'.
std::vector<int32_t> LocalBlocks(const std::vector<int32_t>& table, int64_t blocks_per_rank,
                                 int s) {
  std::vector<int32_t> out;
  out.reserve(table.size());
  for (const int32_t block : table) {
    out.push_back(block / blocks_per_rank == s ? static_cast<int32_t>(block % blocks_per_rank)
                                               : -1);
  }
  return out;
}

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

struct Worker::Impl {
  Impl(const WorkerOptions& options, comm::Communicator& group) : options(options), group(group) {}

  absl::Status Open();
  absl::Status Load();
  // The digest of all that the group has read.
  absl::StatusOr<uint64_t> AgreeOnContent(const model::DecoderOptions& decoder_options);
  absl::StatusOr<int64_t> AgreeOnKvBlocks();
  absl::Status CheckPlan(const StepPlan& plan) const;
  // The copies between blocks of this rank, as its own ids.
  std::vector<scheduler::BlockCopy> LocalCopies(
      const std::vector<scheduler::BlockCopy>& copies) const;

  WorkerOptions options;
  comm::Communicator& group;
  std::optional<ParallelContext> context;  // set by Open
  coordinator::RankInfo info;
  LoadTimes load_times;
  std::unique_ptr<kernels::Kernels> kernels;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  std::unique_ptr<model::Decoder> decoder;
  std::atomic<const model::Decoder*> computing{nullptr};  // `decoder`, once it is there
  std::unique_ptr<sampling::Sampler> sampler;             // on the result rank
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

const Worker::LoadTimes& Worker::load_times() const { return impl_->load_times; }
const coordinator::RankInfo& Worker::info() const { return impl_->info; }
WorkerOptions& Worker::options() { return impl_->options; }
const model::Profile& Worker::profile() const { return impl_->options.profile; }
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
  auto created = kernels::CreateCpuKernels(options.cpu);
  if (!created.ok()) return created.status();
  kernels = *std::move(created);
  auto opened = checkpoint::Checkpoint::Open(options.model_directory);
  if (!opened.ok()) return opened.status();
  checkpoint = *std::move(opened);
  options.profile.weights = checkpoint->config().weight_dtype;

  info.rank = group.rank();
  info.host = HostName();
  info.pid = getpid();
  info.device = kernels->Describe();
  info.op_digest = kernels::KnownAnswerDigest(*kernels, options.profile.weights);
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
  decoder_options.store = options.store;
  decoder_options.packer =
      absl::StrCat(options.packer, " ", std::string(kernels::Name(options.cpu.path)));
  decoder_options.load_threads = options.cpu.threads;
  const absl::Time begin = absl::Now();
  auto loaded = model::Decoder::Load(*checkpoint, decoder_options, *kernels, context->groups());
  if (!loaded.ok()) return loaded.status();
  decoder = *std::move(loaded);
  computing = decoder.get();
  const absl::Time packed = absl::Now();
  const absl::StatusOr<uint64_t> content = AgreeOnContent(decoder_options);
  if (!content.ok()) return content.status();
  if (options.store != nullptr) options.store->Agreed(*content);
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
  if (blocks == 0) blocks = options.kv_memory_bytes / std::max<int64_t>(block_bytes, 1);
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

std::vector<scheduler::BlockCopy> Worker::Impl::LocalCopies(
    const std::vector<scheduler::BlockCopy>& copies) const {
  const int64_t blocks = decoder->kv_blocks();
  const int64_t first = blocks * context->groups().at.s;
  std::vector<scheduler::BlockCopy> out;
  for (const scheduler::BlockCopy& copy : copies) {
    if (copy.source < first || copy.source >= first + blocks) continue;
    out.push_back({static_cast<int32_t>(copy.source - first),
                   static_cast<int32_t>(copy.destination - first)});
  }
  return out;
}

absl::Status Worker::Impl::CheckPlan(const StepPlan& plan) const {
  const int64_t vocab = decoder->config().vocab_size;
  const int64_t blocks = decoder->kv_blocks() * options.layout.sp;
  const auto bad = [&](const SequenceStep& step, const std::string& what) {
    return absl::InternalError(
        absl::StrCat("step ", plan.number, ", sequence ", step.sequence_id, ": ", what));
  };
  for (const scheduler::BlockCopy& copy : plan.copies) {
    if (copy.source < 0 || copy.source >= blocks || copy.destination < 0 ||
        copy.destination >= blocks) {
      return absl::InternalError(absl::StrCat("step ", plan.number, ": copy of block ", copy.source,
                                              " to ", copy.destination, " with ", blocks,
                                              " blocks"));
    }
    if (copy.source / decoder->kv_blocks() != copy.destination / decoder->kv_blocks()) {
      return absl::InternalError(absl::StrCat("step ", plan.number, ": copy of block ", copy.source,
                                              " to ", copy.destination,
                                              ", which lies on another sequence rank"));
    }
  }
  for (const SequenceStep& step : plan.sequences) {
    const int64_t end = step.start + static_cast<int64_t>(step.token_ids.size());
    if (step.token_ids.empty() || step.start < 0 || end > decoder->max_positions()) {
      return bad(step, absl::StrCat("positions ", step.start, " to ", end, " with a context of ",
                                    decoder->max_positions()));
    }
    if (static_cast<int64_t>(step.block_table.size()) * kernels::kBlockTokens < end) {
      return bad(step, absl::StrCat("a block table of ", step.block_table.size(),
                                    " blocks for position ", end - 1));
    }
    for (const int32_t block : step.block_table) {
      if (block < 0 || block >= blocks) {
        return bad(step, absl::StrCat("block ", block, " of ", blocks));
      }
    }
    for (const int32_t id : step.token_ids) {
      if (id < 0 || id >= vocab) {
        return bad(step, absl::StrCat("token id ", id, " with a vocabulary of ", vocab));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Worker::Execute(const StepPlan& plan) {
  const absl::Time begin = absl::Now();
  Impl& m = *impl_;
  if (absl::Status status = m.CheckPlan(plan); !status.ok()) return status;
  const model::ParallelGroups& groups = m.context->groups();
  const bool samples = m.sampler != nullptr;
  const auto trace = [&](bool is_begin) {
    if (!m.options.trace) return;
    m.options.trace({m.group.rank(), groups.at.p, plan.number, is_begin, absl::Now()});
  };
  StepResult result;
  result.epoch = plan.epoch;
  result.number = plan.number;

  model::Batch batch;
  std::vector<std::vector<int32_t>> tables;  // sp > 1: local block tables
  tables.reserve(plan.sequences.size());
  std::vector<int32_t> rows;
  std::vector<LogitUse> uses;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const SequenceStep& step = plan.sequences[s];
    const int64_t first_row = batch.rows();
    const int64_t count = static_cast<int64_t>(step.token_ids.size());
    const int32_t* table = step.block_table.data();
    if (groups.sp != nullptr) {
      tables.push_back(LocalBlocks(step.block_table, m.decoder->kv_blocks(), groups.at.s));
      table = tables.back().data();
    }
    batch.Append(step.token_ids.data(), count, step.start, table);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = static_cast<int32_t>(first_row + i);
      if (step.sampling.prompt_logprobs >= 0 && step.start + i + 1 < step.prompt_length) {
        rows.push_back(row);
        uses.push_back({s, i + 1 < count ? step.token_ids[i + 1] : step.next_prompt_token});
      }
      if (i + 1 == count && !step.samples.empty()) {
        rows.push_back(row);
        uses.push_back({s});
      }
    }
  }

  m.decoder->CopyBlocks(m.LocalCopies(plan.copies));
  model::StageHooks hooks;
  hooks.input_ready = [&] { trace(true); };
  // The rank that samples is not done before it has.
  if (!samples) hooks.output_ready = [&] { trace(false); };
  if (absl::Status status = m.decoder->Forward(batch, hooks); !status.ok()) return status;

  result.sequences.resize(plan.sequences.size());
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    result.sequences[s].sequence_id = plan.sequences[s].sequence_id;
  }
  const absl::Status status =
      m.decoder->Logits(rows, [&](int64_t i, absl::Span<const float> logits) {
        const LogitUse& use = uses[i];
        const SequenceStep& step = plan.sequences[use.sequence];
        SequenceResult& out = result.sequences[use.sequence];
        if (use.target >= 0) {
          out.prompt_logprobs.push_back(
              m.sampler->Logprobs(logits, use.target, step.sampling.prompt_logprobs));
        } else {
          out.samples = m.sampler->SampleStep(logits, step);
        }
      });
  if (!status.ok()) return status;
  if (samples) {
    result.expert_tokens = m.decoder->expert_tokens();
    trace(false);
  } else {
    result.sequences.clear();
  }
  result.compute_us = absl::ToInt64Microseconds(absl::Now() - begin);
  return result;
}

}  // namespace phalanx::worker
