#include "runtime/worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/model/batch.h"
#include "runtime/sampling/sampler.h"
#include "runtime/worker/parallel_context.h"

namespace phalanx::worker {

using scheduler::SequenceResult;
using scheduler::SequenceStep;
using scheduler::StepPlan;
using scheduler::StepResult;

namespace {

// What one row of logits is for.
struct LogitUse {
  size_t sequence;      // index in the plan
  int32_t target = -1;  // a prompt token whose logprob is wanted; -1: choose tokens
};

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
  absl::StatusOr<int64_t> AgreeOnKvBlocks();
  absl::Status CheckPlan(const StepPlan& plan) const;

  WorkerOptions options;
  comm::Communicator& group;
  ParallelContext context;
  coordinator::RankInfo info;
  std::unique_ptr<kernels::Kernels> kernels;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<sampling::Sampler> sampler;  // on the lead
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Worker::~Worker() = default;

const coordinator::RankInfo& Worker::info() const { return impl_->info; }
WorkerOptions& Worker::options() { return impl_->options; }
const model::Profile& Worker::profile() const { return impl_->options.profile; }

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
  absl::Status status = impl_->Load();
  if (!status.ok()) {
    impl_->group.Abort(absl::StrCat("rank ", impl_->group.rank(), ": ", status.message()));
  }
  return status;
}

absl::Status Worker::Impl::Open() {
  absl::StatusOr<ParallelContext> bound = ParallelContext::Create(options.layout, group);
  if (!bound.ok()) return bound.status();
  context = *std::move(bound);
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
  decoder_options.progress = options.progress;
  auto loaded = model::Decoder::Load(*checkpoint, decoder_options, *kernels, *context.tp);
  if (!loaded.ok()) return loaded.status();
  decoder = *std::move(loaded);

  const absl::StatusOr<int64_t> blocks = AgreeOnKvBlocks();
  if (!blocks.ok()) return blocks.status();
  if (absl::Status status = decoder->AllocateKv(*blocks); !status.ok()) return status;
  if (group.rank() == 0) {
    sampler = std::make_unique<sampling::Sampler>(kernels.get(), checkpoint->config().vocab_size,
                                                  options.profile.reduction_leaves);
  }
  info.weight_bytes = decoder->weight_bytes();
  info.kv_block_bytes = decoder->kv_block_bytes();
  info.kv_blocks = *blocks;
  return absl::OkStatus();
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
  // Slots are 32-bit.
  blocks = std::min<int64_t>(blocks, INT32_MAX / kernels::kBlockTokens);
  std::vector<int64_t> all(group.size());
  const std::vector<int64_t> sizes(group.size(), sizeof(int64_t));
  if (absl::Status status = group.AllGather(&blocks, all.data(), sizes); !status.ok()) {
    return status;
  }
  return *std::min_element(all.begin(), all.end());
}

absl::Status Worker::Impl::CheckPlan(const StepPlan& plan) const {
  const int64_t vocab = decoder->config().vocab_size;
  const int64_t blocks = decoder->kv_blocks();
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
  StepResult result;
  result.epoch = plan.epoch;
  result.number = plan.number;

  model::Batch batch;
  std::vector<int32_t> rows;
  std::vector<LogitUse> uses;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const SequenceStep& step = plan.sequences[s];
    const int64_t first_row = batch.rows();
    const int64_t count = static_cast<int64_t>(step.token_ids.size());
    batch.Append(step.token_ids.data(), count, step.start, step.block_table.data());
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

  m.decoder->CopyBlocks(plan.copies);
  if (absl::Status status = m.decoder->Forward(batch); !status.ok()) return status;

  result.sequences.resize(plan.sequences.size());
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    result.sequences[s].sequence_id = plan.sequences[s].sequence_id;
  }
  const absl::Status status =
      m.decoder->Logits(rows, [&](int64_t i, absl::Span<const float> logits) {
        if (m.sampler == nullptr) return;
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
  if (m.sampler == nullptr) result.sequences.clear();
  result.compute_us = absl::ToInt64Microseconds(absl::Now() - begin);
  return result;
}

}  // namespace phalanx::worker
