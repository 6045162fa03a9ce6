// The figures of a GPU: read bandwidth, what the engine takes to decode and prefill with what the
// device idles between its steps, and a table of ops; in profile exact and, where cuBLASLt is, in
// fast. One JSON object on stdout (README.md); progress on stderr. Times are medians of --repeats
// (at least seven) with the least and the most.
//
//   gpu_timing [--models llama-3.2-1b,llama-3.1-8b] [--repeats 9] [--device 0] [--dir FOLDER]
//
// A model's checkpoint lies in FOLDER (the system's folder for temporary files) while it is
// measured. Exit codes: 0 done, or no device (said on stderr); 1 failed, or tokens differ that must
// not, and what was measured is on stdout; 2 wrong usage.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"
#include "kernels/cuda/cuda_device.h"
#include "runtime/checkpoint/model_config.h"
#include "tests/gpu/engine_timing.h"
#include "tests/gpu/made_checkpoint.h"
#include "tests/gpu/read_bandwidth.h"
#include "tests/gpu/step_clock.h"
#include "tests/gpu/times.h"
#include "tests/gpu/timing_model.h"

namespace phalanx::timing {
namespace {

void Check(cudaError_t error, const char* what) {
  PHALANX_CHECK(error == cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

class Clock {
 public:
  Clock(kernels::Kernels& kernels, int repeats) : kernels_(kernels), repeats_(repeats) {
    Check(cudaEventCreate(&begin_), "creating an event");
    Check(cudaEventCreate(&end_), "creating an event");
  }
  ~Clock() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  // Seconds of one `work`, of which so many are measured together that they take 20 ms.
  Times Measure(const std::function<void()>& work) {
    work();
    work();
    const double once = Once(work, 1);
    const int together = static_cast<int>(std::clamp(0.02 / std::max(once, 1e-7), 1.0, 1000.0));
    std::vector<double> seconds;
    for (int i = 0; i < repeats_; ++i) seconds.push_back(Once(work, together));
    return TimesOf(seconds);
  }

 private:
  double Once(const std::function<void()>& work, int times) {
    Check(cudaEventRecord(begin_, stream()), "recording an event");
    for (int i = 0; i < times; ++i) work();
    Check(cudaEventRecord(end_, stream()), "recording an event");
    Check(cudaEventSynchronize(end_), "waiting for an event");
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin_, end_), "reading a time");
    return milliseconds / 1e3 / times;
  }
  cudaStream_t stream() { return static_cast<cudaStream_t>(kernels_.native_stream()); }

  kernels::Kernels& kernels_;
  const int repeats_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

double MeasureReads(kernels::Kernels& kernels, Clock& clock, int device, Json& out) {
  constexpr int64_t kBytes = int64_t{4} << 30;
  auto data = kernels.Allocate(kBytes);
  auto sums = kernels.Allocate(kMostReadBlocks * 4);
  PHALANX_CHECK(data.ok() && sums.ok()) << data.status().message();
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, device), "asking for its properties");
  // The best of some grids: as many blocks as run at once, and more.
  Times times;
  int best = 0;
  for (const int each : {1, 2, 3, 4, 8, 16, 32}) {
    const int blocks = std::min(each * properties.multiProcessorCount, kMostReadBlocks);
    const Times found = clock.Measure([&] {
      Check(ReadOnce(data->data(), kBytes, sums->as<uint32_t>(), blocks,
                     static_cast<cudaStream_t>(kernels.native_stream())),
            "reading");
    });
    if (best > 0 && found.median >= times.median) continue;
    times = found;
    best = blocks;
  }
  const double bandwidth = static_cast<double>(kBytes) / times.median;
  out["read_bandwidth"] = Microseconds(times);
  out["read_bandwidth"]["blocks"] = best;
  out["read_bandwidth"]["bytes"] = kBytes;
  out["read_bandwidth"]["bytes_per_second"] = bandwidth;
  return bandwidth;
}

Json Ops(kernels::Kernels& kernels, TimingModel& model, Clock& clock, const StepShape& step,
         double bandwidth) {
  Json table = Json::array();
  model.EachOp(step, [&](const std::string& name, int64_t bytes, int64_t flops,
                         const std::function<void()>& op) {
    // As in a step: recorded, and replayed as a graph.
    constexpr int kTogether = 16;
    Times times = clock.Measure([&] {
      kernels.BeginStep(step.sequences * step.rows);
      for (int i = 0; i < kTogether; ++i) op();
      kernels.EndStep();
    });
    times = {times.median / kTogether, times.least / kTogether, times.most / kTogether};
    Json row = {{"op", name}};
    row.update(Microseconds(times));
    row["bytes"] = bytes;
    row["of_read_bandwidth"] = static_cast<double>(bytes) / times.median / bandwidth;
    row["teraflops"] = static_cast<double>(flops) / times.median / 1e12;
    table.push_back(std::move(row));
  });
  return {{"sequences", step.sequences}, {"rows", step.rows}, {"past", step.past}, {"ops", table}};
}

// Each op of a dense model, in one profile.
Json OpTables(kernels::Kernels& kernels, const std::string& name,
              const checkpoint::ModelConfig& config, int repeats, double bandwidth) {
  constexpr int64_t kPast = 512;
  constexpr int64_t kLongPast = 8192 - 32;
  constexpr int64_t kRows = 2048;
  std::cerr << name << ": making the weights of its ops\n";
  TimingModel model(kernels, config, kRows, TimingModel::kMaxSequences * (kPast + 32));
  Clock clock(kernels, repeats);
  Json out;
  for (const StepShape& step : {StepShape{1, 1, kPast},
                                {1, 1, kLongPast},
                                {TimingModel::kMaxSequences, 1, kPast},
                                {1, kRows, 0},
                                {1, 64, kLongPast}}) {
    std::cerr << name << ": ops of " << step.sequences << " x " << step.rows << "\n";
    out.push_back(Ops(kernels, model, clock, step, bandwidth));
  }
  return out;
}

struct Wanted {
  std::vector<NamedShape> shapes;
  int repeats = 9;
  int device = 0;
  std::string folder;  // for checkpoints
};

EngineTimingOptions EngineOptions(const Wanted& wanted, const std::string& directory,
                                  double bandwidth) {
  EngineTimingOptions options;
  options.worker.model_directory = directory;
  options.worker.device.kind = kernels::DeviceKind::kCuda;
  options.worker.device.cuda.device = wanted.device;
  options.worker.device.cuda.pack_threads =
      static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
  options.warm_seconds = 0.5;
  options.windows = wanted.repeats;
  options.repeats = wanted.repeats;
  options.read_bandwidth = bandwidth;
  return options;
}

// Decode of one sequence in `exact`, each kernel started when the one before has ended.
absl::StatusOr<EngineFigures> InTurn(const Wanted& wanted, const NamedShape& shape,
                                     const std::string& directory, double bandwidth) {
  std::cerr << shape.name << ": the engine, each kernel in its turn\n";
  EngineTimingOptions options = EngineOptions(wanted, directory, bandwidth);
  options.worker.device.cuda.early_starts = false;
  options.batches = {1};
  return TimeEngine(options);
}

// The figures of one model in one profile. One thing after the other, so that a card needn't hold
// the weights twice.
absl::StatusOr<EngineFigures> Profile(const Wanted& wanted, const NamedShape& shape,
                                      const std::string& directory, kernels::Kernels& kernels,
                                      kernels::Numerics numerics, double bandwidth) {
  const std::string name = absl::StrCat(shape.name, ", ", std::string(Name(numerics)));
  std::cerr << name << ": the engine\n";
  EngineTimingOptions options = EngineOptions(wanted, directory, bandwidth);
  options.worker.device.cuda.numerics = numerics;
  options.batches = {1, 64, 256};
  options.prompts = {2048, 8192};
  absl::StatusOr<EngineFigures> engine = TimeEngine(options);
  if (!engine.ok()) return engine.status();
  const auto config = checkpoint::ParseModelConfig(shape.config, "config.json");
  if (!config.ok()) return config.status();
  if (config->num_experts == 0) {
    engine->json["ops"] = OpTables(kernels, name, *config, wanted.repeats, bandwidth);
  }
  return engine;
}

// Of steps, tokens per second in exact ÷ in fast.
Json ExactOverFast(const Json& exact, const Json& fast) {
  Json out;
  for (const auto& [kind, size] : {std::pair{"decode", "sequences"}, {"prefill", "rows"}}) {
    for (size_t i = 0; i < exact[kind].size(); ++i) {
      const Json& one = exact[kind][i];
      const Json& other = fast[kind][i];
      // What didn't fit was left out.
      if (!one.contains("tokens_per_second") || !other.contains("tokens_per_second")) continue;
      out[kind].push_back({{size, one[size]},
                           {"ratio", one["tokens_per_second"].get<double>() /
                                         other["tokens_per_second"].get<double>()}});
    }
  }
  return out;
}

// INVALID_ARGUMENT says what is expected.
absl::StatusOr<Wanted> ReadFlags(int argc, char** argv) {
  Wanted wanted;
  wanted.folder = std::filesystem::temp_directory_path().string();
  std::string models = "llama-3.2-1b,llama-3.1-8b";
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--models") {
      models = value;
    } else if (flag == "--dir" && !value.empty()) {
      wanted.folder = value;
    } else if (!((flag == "--repeats" && absl::SimpleAtoi(value, &wanted.repeats) &&
                  wanted.repeats >= 7) ||
                 (flag == "--device" && absl::SimpleAtoi(value, &wanted.device) &&
                  wanted.device >= 0))) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, " ", value, ": expected --models NAMES, --repeats N (at least 7), ",
                       "--device N, --dir FOLDER"));
    }
  }
  for (const absl::string_view name : absl::StrSplit(models, ',')) {
    const auto shapes = TimedShapes();
    const auto found = std::find_if(shapes.begin(), shapes.end(),
                                    [&](const NamedShape& shape) { return shape.name == name; });
    if (found == shapes.end()) {
      const auto names = [](std::string* out, const NamedShape& shape) {
        absl::StrAppend(out, shape.name);
      };
      return absl::InvalidArgumentError(
          absl::StrCat("--models: there is no \"", name, "\"; expected some of ",
                       absl::StrJoin(shapes, ", ", names), ", with commas between them"));
    }
    wanted.shapes.push_back(*found);
  }
  return wanted;
}

absl::Status Measure(const Wanted& wanted, Json& out) {
  const auto kernels = kernels::CreateCudaKernels({.device = wanted.device});
  if (!kernels.ok()) return kernels.status();
  const auto fast =
      kernels::CreateCudaKernels({.device = wanted.device, .numerics = kernels::Numerics::kFast});
  if (!fast.ok()) {
    std::cerr << "profile fast is left out: " << fast.status().message() << "\n";
  }
  int driver = 0;
  Check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  out = {{"device", (*kernels)->Describe()},
         {"driver", driver},
         {"runtime", CUDART_VERSION},
         {"repeats", wanted.repeats}};
  Clock clock(**kernels, wanted.repeats);
  const double bandwidth = MeasureReads(**kernels, clock, wanted.device, out);
  const EventTimes events = MeasureEvents(**kernels, /*bytes=*/int64_t{256} << 20);
  out["events"] = {{"pair", events.pair * 1e6}, {"with_marks", events.with_marks * 1e6}};
  if (fast.ok()) out["fast"] = (*fast)->Describe();
  absl::Status all_same;
  for (const NamedShape& shape : wanted.shapes) {
    std::cerr << shape.name << ": making its checkpoint in " << wanted.folder << "\n";
    const auto made = MadeCheckpoint::Make(shape.config, wanted.folder);
    if (!made.ok()) return made.status();
    Json& model = out["models"].emplace_back(Json{{"model", std::string(shape.name)}});
    const absl::StatusOr<EngineFigures> exact = Profile(
        wanted, shape, (*made)->directory(), **kernels, kernels::Numerics::kExact, bandwidth);
    if (!exact.ok()) return exact.status();
    model.update(exact->json);
    const absl::StatusOr<EngineFigures> in_turn =
        InTurn(wanted, shape, (*made)->directory(), bandwidth);
    if (!in_turn.ok()) return in_turn.status();
    model["in_turn"] = in_turn->json;
    const absl::Status same = CheckSameTokens(*exact, *in_turn);
    model["same_tokens"] = same.ok();
    if (!same.ok()) {
      std::cerr << "gpu_timing: " << shape.name << ": " << same.message() << "\n";
      all_same = same;
    }
    if (!fast.ok()) continue;
    const absl::StatusOr<EngineFigures> other =
        Profile(wanted, shape, (*made)->directory(), **fast, kernels::Numerics::kFast, bandwidth);
    if (!other.ok()) return other.status();
    model["exact_over_fast"] = ExactOverFast(exact->json, other->json);
    model["fast"] = other->json;
  }
  return all_same;
}

int Main(int argc, char** argv) {
  const absl::StatusOr<Wanted> wanted = ReadFlags(argc, argv);
  if (!wanted.ok()) {
    std::cerr << "gpu_timing: " << wanted.status().message() << "\n";
    return 2;
  }
  if (const auto count = kernels::CudaDeviceCount(); !count.ok()) {
    std::cerr << "skipped: " << count.status().message() << "\n";
    return 0;
  }
  Json out;
  const absl::Status status = Measure(*wanted, out);
  if (!out.is_null()) std::cout << out.dump(1) << "\n";
  if (status.ok()) return 0;
  std::cerr << "gpu_timing: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace phalanx::timing

int main(int argc, char** argv) { return phalanx::timing::Main(argc, argv); }
