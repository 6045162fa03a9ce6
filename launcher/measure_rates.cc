// The ops' side of a calibration.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/bench/read_bandwidth.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/rope.h"
#include "launcher/measure.h"
#include "launcher/statistics.h"
#include "parallel/shard.h"
#include "runtime/sampling/sampler.h"

namespace phalanx::launcher {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kK = 2048;      // summed dimension of the weights
constexpr int64_t kWide = 2048;   // output columns of most
constexpr int64_t kMiddle = 640;  // of some whose time is more of x than of weights
constexpr int64_t kNarrow = 256;  // and of some that are small enough for small pages
constexpr int64_t kMaxRows = 512;
constexpr int64_t kHeads = 8;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kContext = 1024;
constexpr int64_t kSequences = 8;
constexpr int64_t kBlocks = kSequences * kContext / kernels::kBlockTokens;
constexpr int64_t kVocabulary = 32768;
// Weights that all ranks together stream, so that no cache holds them.
constexpr int64_t kStreamedBytes = int64_t{96} << 20;

std::vector<uint16_t> RandomBf16(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    const uint32_t bits = random();
    value = static_cast<uint16_t>((bits & 0x807F) | (118 + (bits >> 16) % 7) << 7);
  }
  return values;
}

// Segments of work between two barriers, all repeated in turns, so that a slow moment of the
// machine falls on each alike.
class Probes {
 public:
  // `segment_s`: what a segment lasts at least: enough that its barriers hardly count.
  Probes(comm::Communicator& world, double segment_s) : world_(world), segment_s_(segment_s) {}

  void Add(const std::string& name, std::function<void()> work) {
    probes_.push_back({name, 1, std::move(work)});
  }
  absl::Status Run(int rounds) {
    // How often each is repeated is agreed on in two rounds that also warm up.
    for (int round = -2; round < rounds; ++round) {
      for (Probe& probe : probes_) {
        const absl::StatusOr<double> seconds = Segment(probe);
        if (!seconds.ok()) return seconds.status();
        if (round >= 0) {
          times_[probe.name].push_back(*seconds / probe.repeats);
        } else {
          const double wanted = segment_s_ / std::max(*seconds / probe.repeats, 1e-7);
          probe.repeats = static_cast<int>(std::clamp(wanted, 1.0, 4096.0));
          absl::Status status = world_.Broadcast(&probe.repeats, sizeof(probe.repeats), /*root=*/0);
          if (!status.ok()) return status;
        }
      }
    }
    return absl::OkStatus();
  }
  // Seconds of one call.
  double Seconds(const std::string& name) const { return TrimmedMean(times_.at(name)); }

 private:
  struct Probe {
    std::string name;
    int repeats;
    std::function<void()> work;
  };

  // From the first rank's begin to the last one's end: where ranks take turns on cores, none of
  // them sees all of it. The barrier's own time is no part of it.
  absl::StatusOr<double> Segment(const Probe& probe) {
    if (absl::Status status = world_.Barrier(); !status.ok()) return status;
    const double begin = SteadySeconds();
    for (int i = 0; i < probe.repeats; ++i) probe.work();
    const double mine[2] = {begin, SteadySeconds()};
    std::vector<double> all(2 * world_.size());
    const std::vector<int64_t> bytes(world_.size(), sizeof(mine));
    if (absl::Status status = world_.AllGather(mine, all.data(), bytes); !status.ok()) {
      return status;
    }
    double first = all[0];
    double last = all[1];
    for (int r = 1; r < world_.size(); ++r) {
      first = std::min(first, all[2 * r]);
      last = std::max(last, all[2 * r + 1]);
    }
    return last - first;
  }

  comm::Communicator& world_;
  const double segment_s_;
  std::vector<Probe> probes_;
  std::map<std::string, std::vector<double>> times_;
};

// One rank's kernels, weights and buffers.
class Rank {
 public:
  Rank(comm::Communicator& world, std::unique_ptr<kernels::Kernels> kernels, int threads,
       const RateEffort& effort)
      : kernels_(std::move(kernels)),
        pool_(threads),
        probes_(world, effort.segment_s),
        ranks_(world.size()),
        threads_(threads),
        effort_(effort) {}

  absl::Status Prepare();
  absl::StatusOr<v1::RateMeasurement> Run();

 private:
  using Weights = std::vector<std::unique_ptr<kernels::PackedWeight>>;
  absl::Status Pack(int64_t n, int64_t k, int leaves, int64_t count, Weights& out);
  void AddMatMuls();
  void AddRowOps();
  void AddAttention();
  // The next weight of a set: never one that a cache may still hold.
  void MatMul(const Weights& weights, size_t& next, int64_t rows);
  void Attend(int64_t sequences, int64_t rows_each, int64_t context);
  std::vector<int64_t> RowCounts() const {
    if (effort_.few_rows) return {1, 16, 128};
    std::vector<int64_t> rows;
    for (const int64_t m : {1, 2, 4, 8, 16, 31, 32, 64, 128, 256, 512}) {
      if (m <= effort_.max_rows) rows.push_back(m);
    }
    return rows;
  }
  v1::RateMeasurement Fit() const;

  std::unique_ptr<kernels::Kernels> kernels_;
  kernels::ThreadPool pool_;  // of the plain reads; never busy with the kernels' own
  Probes probes_;
  const int ranks_;
  const int threads_;
  const RateEffort effort_;
  std::vector<uint16_t> source_ = RandomBf16(kWide * kK, 1);
  std::vector<uint16_t> x_ = RandomBf16(kMaxRows * kK, 2);
  std::vector<float> y_ = std::vector<float>(kMaxRows * kWide);
  std::vector<float> residual_ = std::vector<float>(kMaxRows * kWide, 0.5F);
  std::vector<float> zeros_ = std::vector<float>(128 * kWide);
  std::vector<float> norm_ = std::vector<float>(kWide, 1.0F);
  std::vector<float> logits_ = std::vector<float>(kVocabulary);
  std::vector<char> copy_from_ = std::vector<char>(1 << 20, 1);
  std::vector<char> copy_to_ = std::vector<char>(1 << 20);
  Weights wide_, middle_, narrow_, leaves_, whole_, tiny_;
  size_t next_wide_ = 0, next_middle_ = 0, next_narrow_ = 0, next_leaves_ = 0, next_whole_ = 0,
         next_tiny_ = 0;
  int64_t read_bytes_ = 0;
  kernels::Buffer read_;
  std::vector<kernels::Buffer> caches_;
  size_t next_cache_ = 0;
  std::vector<int32_t> block_table_;
  std::vector<int32_t> positions_, slots_, kv_head_of_, out_column_;
  std::vector<int> stripe_program_;
  kernels::RopeTables rope_;
  std::unique_ptr<sampling::Sampler> sampler_;
  scheduler::SequenceStep step_;
  std::vector<kernels::bench::ReadPattern> patterns_;
};

absl::Status Rank::Pack(int64_t n, int64_t k, int leaves, int64_t count, Weights& out) {
  kernels::WeightSpec spec;
  spec.rows.push_back({source_.data(), n, kK});
  for (int64_t i = 0; i < leaves; ++i)
    spec.leaves.push_back({i * k / leaves, (i + 1) * k / leaves});
  spec.parts = {parallel::LeafProgram({0, leaves}, 0)};
  for (int64_t i = 0; i < count; ++i) {
    auto packed = kernels_->Pack(spec);
    if (!packed.ok()) return packed.status();
    out.push_back(*std::move(packed));
  }
  return absl::OkStatus();
}

absl::Status Rank::Prepare() {
  const int64_t bytes = std::max<int64_t>(kStreamedBytes / ranks_, 2 * kWide * kK * 2);
  absl::Status status = Pack(kWide, kK, 1, bytes / (kWide * kK * 2), wide_);
  if (status.ok()) status = Pack(kMiddle, kK, 1, bytes / (kMiddle * kK * 2) / 2 + 1, middle_);
  if (status.ok()) status = Pack(kNarrow, kK, 1, bytes / (kNarrow * kK * 2) / 2, narrow_);
  if (status.ok()) status = Pack(kNarrow, kK, 8, 1, leaves_);
  if (status.ok()) status = Pack(kNarrow, kK, 1, 1, whole_);
  if (status.ok()) status = Pack(64, 64, 1, 1, tiny_);
  if (!status.ok()) return status;
  read_bytes_ = bytes;
  auto read = kernels_->Allocate(read_bytes_);
  if (!read.ok()) return read.status();
  read_ = *std::move(read);
  std::memset(read_.data(), 1, read_bytes_);
  // Layers of KV cache, as many as no cache of the processor holds, all with other content.
  const kernels::KvShape shape = {DType::kBF16, kKvHeads, kHeadDim};
  const int64_t layer_bytes = kBlocks * kernels_->KvBlockBytes(shape);
  const int64_t layers = std::max<int64_t>(1, kStreamedBytes / 2 / ranks_ / layer_bytes);
  for (int64_t i = 0; i < layers; ++i) {
    auto cache = kernels_->Allocate(layer_bytes);
    if (!cache.ok()) return cache.status();
    for (int64_t at = 0; at < layer_bytes; at += kWide * kK) {
      std::memcpy(cache->as<char>() + at, source_.data(), std::min(kWide * kK, layer_bytes - at));
    }
    caches_.push_back(*std::move(cache));
  }
  for (int64_t b = 0; b < kBlocks; ++b) block_table_.push_back(static_cast<int32_t>(b));
  for (int64_t i = 0; i < kMaxRows; ++i) {
    positions_.push_back(static_cast<int32_t>(i));
    slots_.push_back(static_cast<int32_t>(i));
  }
  for (int64_t h = 0; h < kHeads; ++h) {
    kv_head_of_.push_back(static_cast<int32_t>(h * kKvHeads / kHeads));
    out_column_.push_back(static_cast<int32_t>(h * kHeadDim));
  }
  stripe_program_ = parallel::LeafProgram({0, 8}, 0);
  std::vector<float> frequencies;
  for (int64_t i = 0; i < kHeadDim / 2; ++i) {
    frequencies.push_back(1.0F / static_cast<float>(1 + i));
  }
  rope_ = kernels::BuildRopeTables(frequencies, kContext + kMaxRows, 1);
  std::mt19937 random(3);
  for (float& logit : logits_) logit = static_cast<float>(random() % 1000) / 100;
  sampler_ = std::make_unique<sampling::Sampler>(kernels_.get(), kVocabulary, 8);
  step_.token_ids = {1};
  step_.samples = {{}};
  step_.sampling.temperature = 0;
  return absl::OkStatus();
}

void Rank::MatMul(const Weights& weights, size_t& next, int64_t rows) {
  const kernels::PackedWeight& w = *weights[next++ % weights.size()];
  const TensorView out = {y_.data(), DType::kF32, rows, w.n(), w.n()};
  kernels_->MatMul({x_.data(), DType::kBF16, rows, w.k(), w.k()}, w, {&out, 1});
}

void Rank::AddMatMuls() {
  for (const int64_t m : RowCounts()) {
    probes_.Add(absl::StrCat("wide", m), [=, this] { MatMul(wide_, next_wide_, m); });
    if (m >= 8) {
      probes_.Add(absl::StrCat("middle", m), [=, this] { MatMul(middle_, next_middle_, m); });
    }
    probes_.Add(absl::StrCat("narrow", m), [=, this] { MatMul(narrow_, next_narrow_, m); });
  }
  // What leaves add is the same in the cache and out of it.
  probes_.Add("leaves", [this] { MatMul(leaves_, next_leaves_, 1); });
  probes_.Add("whole", [this] { MatMul(whole_, next_whole_, 1); });
  probes_.Add("tiny", [this] { MatMul(tiny_, next_tiny_, 1); });
}

void Rank::AddRowOps() {
  for (const int64_t m : {8, 128}) {
    const TensorView x = {residual_.data(), DType::kF32, m, kWide, kWide};
    const TensorView delta = {zeros_.data(), DType::kF32, m, kWide, kWide};
    const TensorView out = {x_.data(), DType::kBF16, m, kWide, kWide};
    probes_.Add(absl::StrCat("norm", m), [=, this] {
      kernels_->AddResidualRmsNorm(x, delta, nullptr, norm_.data(), 1e-5F, out);
    });
    const TensorView half = {x_.data(), DType::kBF16, m, kWide / 2, kWide / 2};
    probes_.Add(absl::StrCat("silu", m),
                [=, this] { kernels_->SiluMul(x, nullptr, kWide / 2, half); });
    probes_.Add(absl::StrCat("rope", m), [=, this] {
      kernels::QkvArgs args;
      const int64_t width = (kHeads + 2 * kKvHeads) * kHeadDim;
      args.qkv = {residual_.data(), DType::kF32, m, width, width};
      args.num_heads = kHeads;
      args.cos = rope_.cos.data();
      args.sin = rope_.sin.data();
      args.rotary_dim = kHeadDim;
      args.positions = absl::MakeSpan(positions_).subspan(0, m);
      args.slots = absl::MakeSpan(slots_).subspan(0, m);
      args.cache = {{DType::kBF16, kKvHeads, kHeadDim},
                    caches_[next_cache_++ % caches_.size()].data(),
                    kBlocks};
      args.q = {x_.data(), DType::kBF16, m, kHeads * kHeadDim, kHeads * kHeadDim};
      kernels_->QkvToCache(args);
    });
  }
  probes_.Add("copy", [this] {
    std::memcpy(copy_to_.data(), copy_from_.data(), copy_from_.size());
    copy_from_[0] = copy_to_[1];
  });
  probes_.Add("logits", [this] {
    const auto vocab = static_cast<int64_t>(logits_.size());
    scheduler::SequenceResult result;
    kernels::Choice choice;
    sampler_->SampleRows({logits_.data(), DType::kF32, 1, vocab, vocab}, {{&step_, -1, &result}},
                         &choice);
  });
}

void Rank::Attend(int64_t sequences, int64_t rows_each, int64_t context) {
  std::vector<kernels::AttentionSequence> steps;
  for (int64_t s = 0; s < sequences; ++s) {
    steps.push_back({s * rows_each, rows_each, context - rows_each,
                     block_table_.data() + s * kContext / kernels::kBlockTokens});
  }
  const int64_t rows = sequences * rows_each;
  kernels::AttentionArgs args;
  args.q = {x_.data(), DType::kBF16, rows, kHeads * kHeadDim, kHeads * kHeadDim};
  args.num_heads = kHeads;
  args.kv_head_of = kv_head_of_;
  args.scale = 0.125F;
  args.cache = {
      {DType::kBF16, kKvHeads, kHeadDim}, caches_[next_cache_++ % caches_.size()].data(), kBlocks};
  args.sequences = steps;
  args.stripe_program = stripe_program_;
  args.out_column = out_column_;
  args.out = {y_.data(), DType::kBF16, rows, kHeads * kHeadDim, kHeads * kHeadDim};
  kernels_->Attention(args);
}

void Rank::AddAttention() {
  probes_.Add("attend-short", [this] { Attend(kSequences, 1, 256); });
  probes_.Add("attend1", [this] { Attend(kSequences, 1, kContext); });
  probes_.Add("attend16", [this] { Attend(1, 16, kContext); });
  probes_.Add("attend128", [this] { Attend(1, 128, kContext); });
}

// Context of a row on average, of `rows` rows that end at `context`.
double MeanContext(double context, double rows) { return context - (rows - 1) / 2; }

v1::RateMeasurement Rank::Fit() const {
  constexpr double kNano = 1e9;
  v1::RateMeasurement out;
  out.set_ranks(ranks_);
  out.set_threads(threads_);
  double read = 1e30;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    read = std::min(read, probes_.Seconds(absl::StrCat("read", i)));
  }
  out.set_read_gb_per_s(static_cast<double>(read_bytes_) / read / 1e9);

  // Ops: what two sizes have in common, and what one element more takes.
  double op = 1e30;
  const auto slope = [&](const char* name, double elements, double ops) {
    const double few = probes_.Seconds(absl::StrCat(name, 8));
    const double many = probes_.Seconds(absl::StrCat(name, 128));
    const double each = std::max(0.0, (many - few) / (120 * elements));
    op = std::min(op, std::max(0.0, few - each * 8 * elements) / ops);
    return each;
  };
  out.set_norm_ns(slope("norm", kWide, 1) * kNano);
  constexpr int64_t kSiluColumns = kWide / 2;
  out.set_silu_ns(slope("silu", kSiluColumns, 1) * kNano);
  out.set_rope_ns(slope("rope", (kHeads + 2 * kKvHeads) * kHeadDim, 1) * kNano);
  out.set_op_ns(op * kNano);
  out.set_copy_ns(probes_.Seconds("copy") / static_cast<double>(copy_from_.size()) * kNano);
  out.set_logit_ns(probes_.Seconds("logits") / kVocabulary * kNano);

  // Matmuls: a wide and a narrower weight have x's part in common.
  const double matmul_op = probes_.Seconds("tiny");
  out.set_matmul_op_ns(matmul_op * kNano);
  std::vector<double> packs;
  for (const int64_t m : RowCounts()) {
    if (m < 8) continue;
    const double middle = probes_.Seconds(absl::StrCat("middle", m)) - matmul_op;
    const double wide = probes_.Seconds(absl::StrCat("wide", m)) - matmul_op;
    const double weight = (wide - middle) / static_cast<double>((kWide - kMiddle) * kK);
    packs.push_back((middle - weight * kMiddle * kK) / static_cast<double>(m * kK));
  }
  const double pack = std::max(0.0, Median(packs));
  out.set_pack_ns(pack * kNano);
  for (const int64_t m : RowCounts()) {
    const auto per_weight = [&](const char* name, int64_t n) {
      const double seconds =
          probes_.Seconds(absl::StrCat(name, m)) - matmul_op - pack * static_cast<double>(m * kK);
      return std::max(1e-15, seconds) / static_cast<double>(n * kK);
    };
    const double weight = per_weight("wide", kWide);
    v1::RatePoint* point = out.add_matmul();
    point->set_rows(static_cast<double>(m));
    point->set_ns(weight * kNano);
    out.set_matrix_gflops(std::max(out.matrix_gflops(), 2 * static_cast<double>(m) / weight / 1e9));
    point = out.add_matmul_small();
    point->set_rows(static_cast<double>(m));
    point->set_ns(per_weight("narrow", kNarrow) * kNano);
  }
  const double leaf = (probes_.Seconds("leaves") - probes_.Seconds("whole")) / (kNarrow * 7.0);
  out.set_leaf_ns(std::max(0.0, leaf) * kNano);

  // Attention: a short and a long context have in common what a row and head takes anyway.
  const double per_token = 1.0 * kSequences * kHeads * 2 * kHeadDim;
  const double brief = probes_.Seconds("attend-short") - op;
  const double decode = probes_.Seconds("attend1") - op;
  const double pair = std::max(1e-15, (decode - brief) / (per_token * (kContext - 256)));
  const double head = std::max(0.0, (brief - pair * per_token * 256) / (1.0 * kSequences * kHeads));
  out.set_attention_head_ns(head * kNano);
  const auto point = [&](double rows, double seconds) {
    v1::RatePoint* to = out.add_attention();
    to->set_rows(rows);
    to->set_ns(seconds * kNano);
  };
  point(1, pair);
  for (const int rows : {16, 128}) {
    const double seconds =
        probes_.Seconds(absl::StrCat("attend", rows)) - op - rows * kHeads * head;
    point(rows,
          std::max(1e-15, seconds) / (rows * kHeads * MeanContext(kContext, rows) * 2 * kHeadDim));
  }
  return out;
}

absl::StatusOr<v1::RateMeasurement> Rank::Run() {
  for (const kernels::bench::ReadPattern& pattern : kernels::bench::ReadPatterns()) {
    // The extremes and the middle: the best is never far from one of them.
    if (pattern.streams == 2 || pattern.prefetch_bytes == 512 || pattern.prefetch_bytes == 4096) {
      continue;
    }
    const std::string name = absl::StrCat("read", patterns_.size());
    patterns_.push_back(pattern);
    probes_.Add(name, [this, pattern] {
      kernels::bench::ReadAll(pool_, pattern, read_.data(), read_bytes_);
    });
  }
  AddMatMuls();
  AddRowOps();
  AddAttention();
  if (absl::Status status = probes_.Run(effort_.rounds); !status.ok()) return status;
  return Fit();
}

}  // namespace

absl::StatusOr<v1::RateMeasurement> MeasureRates(comm::Communicator& world,
                                                 const kernels::CpuOptions& cpu,
                                                 const RateEffort& effort) {
  auto kernels = kernels::CreateCpuKernels(cpu);
  if (!kernels.ok()) return kernels.status();
  Rank rank(world, *std::move(kernels), cpu.threads, effort);
  if (absl::Status status = rank.Prepare(); !status.ok()) {
    world.Abort(std::string(status.message()));
    return status;
  }
  return rank.Run();
}

}  // namespace phalanx::launcher
