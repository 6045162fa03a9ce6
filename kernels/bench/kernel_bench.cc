#include "kernels/bench/kernel_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/bench/peak.h"
#include "kernels/bench/read_bandwidth.h"
#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kIntermediate = 8192;
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kVocabulary = 128256;
constexpr int64_t kPrefillTokens = 512;
constexpr int kLeaves = 8;
// Rows of the random source that all weights are packed from.
constexpr int64_t kSourceRows = 2048;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string MachineName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  std::string model = "unknown processor";
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) == 0) {
      model = line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  }
  return absl::StrCat(model, ", ", std::thread::hardware_concurrency(), " logical CPUs");
}

struct Linear {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
  bool split_k = false;  // row-parallel: k in leaves, added by the tree
};

// The linears of one decoder layer.
std::vector<Linear> LayerLinears() {
  return {{"qkv", (kHeads + 2 * kKvHeads) * kHeadDim, kHidden, false},
          {"o", kHidden, kHeads * kHeadDim, true},
          {"gate_up", 2 * kIntermediate, kHidden, false},
          {"down", kHidden, kIntermediate, true}};
}

struct Model {
  std::vector<std::unique_ptr<PackedWeight>> weights;
  int64_t bytes = 0;
};

// Random BF16 of magnitude 2^-7 to 1, either sign.
std::vector<uint16_t> RandomBf16(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) {
    const uint32_t bits = random();
    value = static_cast<uint16_t>((bits & 0x807F) | (120 + (bits >> 16) % 7) << 7);
  }
  return values;
}

absl::Status AddLinear(Kernels& kernels, const Linear& linear, const std::vector<uint16_t>& source,
                       Model& model) {
  WeightSpec spec;
  spec.dtype = DType::kBF16;
  for (int64_t row = 0; row < linear.n; row += kSourceRows) {
    spec.rows.push_back({source.data(), std::min(kSourceRows, linear.n - row), kIntermediate});
  }
  if (linear.split_k) {
    const int64_t step = linear.k / kLeaves;
    for (int64_t i = 0; i < kLeaves; ++i) spec.leaves.push_back({i * step, (i + 1) * step});
    spec.parts = {{0, 1, -1, 2, 3, -1, -1, 4, 5, -1, 6, 7, -1, -1, -1}};
  } else {
    spec.leaves = {{0, linear.k}};
    spec.parts = {{0}};
  }
  absl::StatusOr<std::unique_ptr<PackedWeight>> weight = kernels.Pack(spec);
  if (!weight.ok()) return weight.status();
  model.bytes += (*weight)->bytes();
  model.weights.push_back(*std::move(weight));
  return absl::OkStatus();
}

// Multiplies `rows` rows with every weight of the model; returns the seconds it took.
double RunModel(Kernels& kernels, const Model& model, int64_t rows, std::vector<uint16_t>& x,
                std::vector<float>& y) {
  const double start = Seconds();
  for (const std::unique_ptr<PackedWeight>& weight : model.weights) {
    const TensorView out = {y.data(), DType::kF32, rows, weight->n(), weight->n()};
    kernels.MatMul({x.data(), DType::kBF16, rows, weight->k(), weight->k()}, *weight, {out});
  }
  return Seconds() - start;
}

struct Spread {
  double least = 0;
  double median = 0;
  double most = 0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return {values.front(),
          values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2,
          values.back()};
}

struct Result {
  std::string name;
  std::string measured;  // what
  std::string limit;     // over what
  std::string unit;
  std::vector<double> values;
  std::vector<double> limits;

  Spread Ratio() const {
    std::vector<double> ratios;
    for (size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / limits[i]);
    return SpreadOf(ratios);
  }
};

absl::StatusOr<Result> MeasureDecode(Kernels& kernels, ThreadPool& pool, const Model& model,
                                     const KernelBenchOptions& options) {
  const int64_t bytes = (options.quick ? int64_t{128} : int64_t{512}) << 20;
  absl::StatusOr<Buffer> buffer = kernels.Allocate(bytes);
  if (!buffer.ok()) return buffer.status();
  pool.ParallelFor(bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    std::memset(buffer->as<char>() + begin, 1, end - begin);
  });
  const auto read = [&](const bench::ReadPattern& pattern) {
    const double start = Seconds();
    bench::ReadAll(pool, pattern, buffer->data(), bytes);
    return static_cast<double>(bytes) / (Seconds() - start) / 1e9;
  };
  // The best pattern by its median of three rounds over all of them.
  const std::vector<bench::ReadPattern> patterns = bench::ReadPatterns();
  std::vector<std::vector<double>> rates(patterns.size());
  for (int round = 0; round < (options.quick ? 1 : 3); ++round) {
    for (size_t i = 0; i < patterns.size(); ++i) rates[i].push_back(read(patterns[i]));
  }
  size_t best = 0;
  for (size_t i = 1; i < patterns.size(); ++i) {
    if (SpreadOf(rates[i]).median > SpreadOf(rates[best]).median) best = i;
  }

  std::vector<uint16_t> x = RandomBf16(kIntermediate, 7);
  std::vector<float> y(kVocabulary);
  Result result;
  result.name = "decode";
  result.measured = "weights read, batch 1";
  result.limit = absl::StrCat("read bandwidth, ", patterns[best].Describe());
  result.unit = "GB/s";
  RunModel(kernels, model, 1, x, y);
  for (int pair = 0; pair < options.pairs; ++pair) {
    result.limits.push_back(read(patterns[best]));
    result.values.push_back(static_cast<double>(model.bytes) / RunModel(kernels, model, 1, x, y) /
                            1e9);
  }
  return result;
}

const bench::PeakLoop& PeakFor(CpuPath path) {
#if defined(__x86_64__)
  switch (path) {
    case CpuPath::kPortable:
      break;
    case CpuPath::kAvx2:
      return bench::PeakAvx2();
    case CpuPath::kAvx512:
      return bench::PeakAvx512();
    case CpuPath::kAmx:
      return bench::PeakAmx();
  }
#endif
  (void)path;
  return bench::PeakPortable();
}

// Seconds that `iterations` of the loop on every thread take.
double RunPeak(ThreadPool& pool, const bench::PeakLoop& loop, int64_t iterations) {
  // In slices, so that a thread which loses its core hands work to the others as MatMul's do.
  constexpr int64_t kSlices = 16;
  const double start = Seconds();
  pool.ParallelFor(pool.size() * kSlices, 1, [&](int64_t begin, int64_t end) {
    loop.run((end - begin) * (iterations / kSlices));
  });
  return Seconds() - start;
}

Result MeasurePrefill(Kernels& kernels, ThreadPool& pool, const Model& layer,
                      const KernelBenchOptions& options) {
  const int64_t tokens = options.quick ? 64 : kPrefillTokens;
  const bench::PeakLoop& loop = PeakFor(options.path);
  std::vector<uint16_t> x = RandomBf16(tokens * kIntermediate, 8);
  std::vector<float> y(tokens * 2 * kIntermediate);
  int64_t iterations = 4096;
  const double wanted = options.quick ? 0.02 : 0.2;
  while (RunPeak(pool, loop, iterations) < wanted) iterations *= 2;
  const double peak_flops =
      static_cast<double>(iterations) * static_cast<double>(loop.flops_per_iteration) * pool.size();
  double flops = 0;
  for (const std::unique_ptr<PackedWeight>& weight : layer.weights) {
    flops += 2.0 * static_cast<double>(tokens * weight->n()) * static_cast<double>(weight->k());
  }
  Result result;
  result.name = "prefill";
  result.measured = absl::StrCat("matmul rate, ", tokens, " tokens");
  result.limit = absl::StrCat(loop.instruction, " on registers");
  result.unit = "GFLOP/s";
  RunModel(kernels, layer, tokens, x, y);
  for (int pair = 0; pair < options.pairs; ++pair) {
    result.limits.push_back(peak_flops / RunPeak(pool, loop, iterations) / 1e9);
    result.values.push_back(flops / RunModel(kernels, layer, tokens, x, y) / 1e9);
  }
  return result;
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) quoted += c;
  }
  return quoted + "\"";
}

std::string JsonSpread(const Spread& spread) {
  return absl::StrFormat("{\"min\": %.4g, \"median\": %.4g, \"max\": %.4g}", spread.least,
                         spread.median, spread.most);
}

void Print(const KernelBenchOptions& options, const std::string& kernels, int64_t decode_bytes,
           const std::vector<Result>& results, std::ostream& out) {
  if (options.json) {
    out << "{\"machine\": " << Quoted(MachineName()) << ", \"kernels\": " << Quoted(kernels)
        << ", \"pairs\": " << options.pairs << ", \"decode_weight_bytes\": " << decode_bytes;
    for (const Result& result : results) {
      out << ", " << Quoted(result.name) << ": {\"measured\": " << Quoted(result.measured)
          << ", \"limit\": " << Quoted(result.limit) << ", \"unit\": " << Quoted(result.unit)
          << ", \"ratio\": " << JsonSpread(result.Ratio())
          << ", \"value\": " << JsonSpread(SpreadOf(result.values))
          << ", \"limit_value\": " << JsonSpread(SpreadOf(result.limits)) << "}";
    }
    out << "}\n";
    return;
  }
  out << "Machine: " << MachineName() << "\nKernels: " << kernels
      << "\nShape:   linear layers of Llama-3.2-1B, random BF16 weights, "
      << absl::StrFormat("%.0f MB in decode", static_cast<double>(decode_bytes) / 1e6)
      << "\nMedians of " << options.pairs
      << " interleaved pairs; [least, most]. A ratio is of the two halves of a pair.\n\n";
  out << absl::StrFormat("%-8s  %-26s %-24s %-24s %s\n", "", "measured", "limit", "ratio", "unit");
  for (const Result& result : results) {
    const auto cell = [](const Spread& spread, bool ratio) {
      return ratio ? absl::StrFormat("%.2f [%.2f, %.2f]", spread.median, spread.least, spread.most)
                   : absl::StrFormat("%.1f [%.1f, %.1f]", spread.median, spread.least, spread.most);
    };
    out << absl::StrFormat(
        "%-8s  %-26s %-24s %-24s %s\n", result.name, cell(SpreadOf(result.values), false),
        cell(SpreadOf(result.limits), false), cell(result.Ratio(), true), result.unit);
  }
  out << "\n";
  for (const Result& result : results) {
    out << result.name << ": " << result.measured << ", over " << result.limit << "\n";
  }
}

}  // namespace

absl::Status RunKernelBench(const KernelBenchOptions& options, std::ostream& out) {
  if (options.pairs < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("pairs is ", options.pairs, "; it must be at least 1"));
  }
  absl::StatusOr<std::unique_ptr<Kernels>> kernels =
      CreateCpuKernels({options.threads, options.path});
  if (!kernels.ok()) return kernels.status();

  const std::vector<uint16_t> source = RandomBf16(kSourceRows * kIntermediate, 1);
  Model decode;
  Model layer;
  for (const Linear& linear : LayerLinears()) {
    if (absl::Status status = AddLinear(**kernels, linear, source, layer); !status.ok()) {
      return status;
    }
  }
  if (!options.quick) {
    constexpr int kDecodeLayers = 3;
    for (int i = 0; i < kDecodeLayers; ++i) {
      for (const Linear& linear : LayerLinears()) {
        if (absl::Status status = AddLinear(**kernels, linear, source, decode); !status.ok()) {
          return status;
        }
      }
    }
    const Linear head = {"lm_head", kVocabulary, kHidden, false};
    if (absl::Status status = AddLinear(**kernels, head, source, decode); !status.ok()) {
      return status;
    }
  }
  const Model& decode_model = options.quick ? layer : decode;

  // The limits' own threads; the two pools are never busy at once.
  ThreadPool pool(options.threads);
  absl::StatusOr<Result> decode_result = MeasureDecode(**kernels, pool, decode_model, options);
  if (!decode_result.ok()) return decode_result.status();
  const Result prefill_result = MeasurePrefill(**kernels, pool, layer, options);
  Print(options, (*kernels)->Describe(), decode_model.bytes, {*decode_result, prefill_result}, out);
  return absl::OkStatus();
}

}  // namespace phalanx::kernels
