#include "runtime/worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <numeric>
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
// Bytes of a device that KV blocks leave free.
constexpr int64_t kDeviceReserve = int64_t{64} << 20;

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
  // Bytes for KV blocks where nobody said how many: what the device has left beside weights and all
  // that the largest step takes.
  absl::StatusOr<int64_t> ProfiledKvBytes();
  absl::Status RunLargestStep();
  absl::Status CheckPlan(const StepPlan& plan) const;
  // Makes the tokens of the last plan known on every rank, where `plan` feeds any of them.
  absl::Status ShareChosen(const StepPlan& plan);
  // Keeps what `plan` has chosen; on other ranks than the one that samples, how many.
  void KeepChosen(const StepPlan& plan, const StepResult& result);
  // The copies between blocks of this rank, as its own ids.
  std::vector<scheduler::BlockCopy> LocalCopies(
      const std::vector<scheduler::BlockCopy>& copies) const;

  WorkerOptions options;
  comm::Communicator& group;
  std::unique_ptr<kernels::Kernels> kernels;
  std::optional<ParallelContext> context;  // set by Open; its communicators use the device
  coordinator::RankInfo info;
  LoadTimes load_times;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint;
  std::unique_ptr<model::Decoder> decoder;
  std::atomic<const model::Decoder*> computing{nullptr};  // `decoder`, once it is there
  std::unique_ptr<sampling::Sampler> sampler;             // on the result rank
  uint64_t last_plan = 0;
  std::vector<int32_t> chosen;  // by the last plan's slots, in order; 0 for none
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
  kernels::DeviceOptions device = options.device;
  if (device.cuda.memory_bytes == 0) device.cuda.memory_fraction = options.gpu_memory_fraction;
  auto created = kernels::CreateKernels(device);
  if (!created.ok()) return created.status();
  kernels = *std::move(created);
  if (absl::Status status = context->BindDevice(*kernels, options.device_transport); !status.ok()) {
    return status;
  }
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
  std::vector<int32_t> rows(std::min<int64_t>(batch.rows(), model::kLogitRows));
  std::iota(rows.begin(), rows.end(), 0);
  SequenceStep step;
  step.token_ids = {0};
  step.samples = {{}};
  SequenceResult result;
  const std::vector<sampling::LogitUse> uses(rows.size(), {&step, -1, &result});
  const absl::Status status = decoder->Logits(rows, [&](int64_t, kernels::TensorView logits) {
    sampling::Sampler(kernels.get(), logits.cols, options.profile.reduction_leaves)
        .SampleRows(logits, uses);
  });
  kernels->EndStep();
  kernels->Synchronize();
  kernels->FreezeScratch();
  return status;
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
    if (step.pending_slot >= 0 && (plan.number != last_plan + 1 || step.token_ids.size() != 1 ||
                                   step.pending_slot >= static_cast<int64_t>(chosen.size()))) {
      return bad(step, absl::StrCat("feeds ", step.token_ids.size(), " tokens from slot ",
                                    step.pending_slot, " of the plan before, but the last one was ",
                                    last_plan, " with ", chosen.size(), " slots"));
    }
    for (const int32_t id : step.token_ids) {
      if (id < 0 || id >= vocab) {
        return bad(step, absl::StrCat("token id ", id, " with a vocabulary of ", vocab));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Worker::Impl::ShareChosen(const StepPlan& plan) {
  const bool wanted = std::any_of(plan.sequences.begin(), plan.sequences.end(),
                                  [](const SequenceStep& step) { return step.pending_slot >= 0; });
  if (!wanted || group.size() == 1) return absl::OkStatus();
  return group.Broadcast(chosen.data(), static_cast<int64_t>(chosen.size() * sizeof(int32_t)),
                         context->result_rank());
}

void Worker::Impl::KeepChosen(const StepPlan& plan, const StepResult& result) {
  last_plan = plan.number;
  chosen.clear();
  if (sampler == nullptr) {
    size_t slots = 0;
    for (const SequenceStep& step : plan.sequences) slots += step.samples.size();
    chosen.resize(slots);
    return;
  }
  // A sequence whose logits gave no token ends with this step; what it feeds next means nothing.
  for (const SequenceResult& sequence : result.sequences) {
    for (const scheduler::SampleResult& sample : sequence.samples) {
      chosen.push_back(std::max(sample.token.id, 0));
    }
  }
}

absl::StatusOr<StepResult> Worker::Execute(const StepPlan& plan) {
  const absl::Time begin = absl::Now();
  Impl& m = *impl_;
  if (absl::Status status = m.CheckPlan(plan); !status.ok()) return status;
  if (absl::Status status = m.ShareChosen(plan); !status.ok()) return status;
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
  std::vector<sampling::LogitUse> uses;
  result.sequences.resize(plan.sequences.size());
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const SequenceStep& step = plan.sequences[s];
    SequenceResult& out = result.sequences[s];
    out.sequence_id = step.sequence_id;
    const int64_t first_row = batch.rows();
    const int64_t count = static_cast<int64_t>(step.token_ids.size());
    const int32_t* table = step.block_table.data();
    if (groups.sp != nullptr) {
      tables.push_back(LocalBlocks(step.block_table, m.decoder->kv_blocks(), groups.at.s));
      table = tables.back().data();
    }
    const int32_t* ids =
        step.pending_slot >= 0 ? &m.chosen[step.pending_slot] : step.token_ids.data();
    batch.Append(ids, count, step.start, table);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = static_cast<int32_t>(first_row + i);
      if (step.sampling.prompt_logprobs >= 0 && step.start + i + 1 < step.prompt_length) {
        rows.push_back(row);
        uses.push_back(
            {&step, i + 1 < count ? step.token_ids[i + 1] : step.next_prompt_token, &out});
      }
      if (i + 1 == count && !step.samples.empty()) {
        rows.push_back(row);
        uses.push_back({&step, -1, &out});
      }
    }
  }

  m.kernels->BeginStep(batch.rows());
  m.decoder->CopyBlocks(m.LocalCopies(plan.copies));
  model::StageHooks hooks;
  hooks.input_ready = [&] { trace(true); };
  // The rank that samples is not done before it has.
  if (!samples && m.options.trace) hooks.output_ready = [&] { trace(false); };
  if (absl::Status status = m.decoder->Forward(batch, hooks); !status.ok()) return status;

  const absl::Status status =
      m.decoder->Logits(rows, [&](int64_t first, kernels::TensorView logits) {
        m.sampler->SampleRows(logits, absl::MakeConstSpan(uses).subspan(first, logits.rows));
      });
  if (!status.ok()) return status;
  m.kernels->EndStep();
  m.KeepChosen(plan, result);
  if (samples) {
    if (absl::Status sound = m.context->CheckDeviceCalls(); !sound.ok()) return sound;
    result.expert_tokens = m.decoder->expert_tokens();
    trace(false);
  } else {
    result.sequences.clear();
  }
  result.compute_us = absl::ToInt64Microseconds(absl::Now() - begin);
  return result;
}

}  // namespace phalanx::worker
