// The figures of a GPU: read bandwidth, decode, prefill, and a table of ops, in profile exact and,
// where cuBLASLt is, in fast. One JSON object on stdout; progress on stderr. Times are medians of
// --repeats (at least seven) measurements between two CUDA events on the ops' own stream, with the
// least and the most.
//
//   gpu_timing [--models llama-3.2-1b,llama-3.1-8b] [--repeats 9] [--device 0]
//
// Exit codes: 0 done, or no device (said on stderr); 1 failed; 2 wrong usage.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"
#include "kernels/cuda/cuda_device.h"
#include "nlohmann/json.hpp"
#include "tests/gpu/read_bandwidth.h"
#include "tests/gpu/timing_model.h"

namespace phalanx::timing {
namespace {

using Json = nlohmann::ordered_json;

void Check(cudaError_t error, const char* what) {
  PHALANX_CHECK(error == cudaSuccess) << what << ": " << cudaGetErrorString(error);
}

struct Times {
  double median = 0;  // seconds
  double least = 0;
  double most = 0;
};

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
    std::sort(seconds.begin(), seconds.end());
    return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
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

Json TimesOf(const Times& times) {
  return {{"microseconds", times.median * 1e6},
          {"least", times.least * 1e6},
          {"most", times.most * 1e6}};
}

double MeasureReads(kernels::Kernels& kernels, Clock& clock, Json& out) {
  constexpr int64_t kBytes = int64_t{4} << 30;
  auto data = kernels.Allocate(kBytes);
  auto sums = kernels.Allocate(kReadBlocks * 4);
  PHALANX_CHECK(data.ok() && sums.ok()) << data.status().message();
  const Times times = clock.Measure([&] {
    Check(ReadOnce(data->data(), kBytes, sums->as<uint32_t>(),
                   static_cast<cudaStream_t>(kernels.native_stream())),
          "reading");
  });
  const double bandwidth = static_cast<double>(kBytes) / times.median;
  out["read_bandwidth"] = TimesOf(times);
  out["read_bandwidth"]["bytes"] = kBytes;
  out["read_bandwidth"]["bytes_per_second"] = bandwidth;
  return bandwidth;
}

Json Step(TimingModel& model, Clock& clock, const StepShape& step, double bandwidth) {
  const Times times = clock.Measure([&] { model.Run(step); });
  const int64_t bytes = model.weight_bytes() + model.kv_bytes(step);
  Json out = TimesOf(times);
  out["sequences"] = step.sequences;
  out["rows"] = step.rows;
  out["past"] = step.past;
  out["bytes_read"] = bytes;
  out["of_read_bandwidth"] = static_cast<double>(bytes) / times.median / bandwidth;
  out["teraflops"] = static_cast<double>(model.flops(step)) / times.median / 1e12;
  out["tokens_per_second"] = static_cast<double>(step.sequences * step.rows) / times.median;
  return out;
}

Json Ops(kernels::Kernels& kernels, TimingModel& model, Clock& clock, const StepShape& step,
         double bandwidth) {
  Json table = Json::array();
  model.Run(step);  // what the ops read is there
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
    row.update(TimesOf(times));
    row["bytes"] = bytes;
    row["of_read_bandwidth"] = static_cast<double>(bytes) / times.median / bandwidth;
    row["teraflops"] = static_cast<double>(flops) / times.median / 1e12;
    table.push_back(std::move(row));
  });
  return {{"sequences", step.sequences}, {"rows", step.rows}, {"past", step.past}, {"ops", table}};
}

Json Model(kernels::Kernels& kernels, const ModelShape& shape, Clock& clock, double bandwidth) {
  constexpr int64_t kPast = 512;
  constexpr int64_t kPrefill = 8192;
  constexpr int64_t kMostSequences = 256;
  std::cerr << shape.name << ": making weights\n";
  TimingModel model(kernels, shape, kPrefill,
                    std::max<int64_t>(kPrefill, kMostSequences * (kPast + 32)));
  Json out = {{"model", shape.name}, {"weight_bytes", model.weight_bytes()}};
  for (const int64_t sequences : {int64_t{1}, int64_t{64}, kMostSequences}) {
    std::cerr << shape.name << ": decode of " << sequences << "\n";
    out["decode"].push_back(Step(model, clock, {sequences, 1, kPast}, bandwidth));
  }
  for (const int64_t rows : {int64_t{2048}, kPrefill}) {
    std::cerr << shape.name << ": prefill of " << rows << "\n";
    out["prefill"].push_back(Step(model, clock, {1, rows, 0}, bandwidth));
  }
  for (const StepShape& step :
       {StepShape{1, 1, kPast}, {1, 1, kPrefill - 32}, {64, 1, kPast}, {1, 2048, 0}}) {
    std::cerr << shape.name << ": ops of " << step.sequences << " x " << step.rows << "\n";
    out["ops"].push_back(Ops(kernels, model, clock, step, bandwidth));
  }
  return out;
}

// Of steps, tokens per second in exact ÷ in fast.
Json ExactOverFast(const Json& exact, const Json& fast) {
  Json out;
  for (const char* kind : {"decode", "prefill"}) {
    for (size_t i = 0; i < exact[kind].size(); ++i) {
      const Json& step = exact[kind][i];
      out[kind].push_back({{"sequences", step["sequences"]},
                           {"rows", step["rows"]},
                           {"ratio", step["tokens_per_second"].get<double>() /
                                         fast[kind][i]["tokens_per_second"].get<double>()}});
    }
  }
  return out;
}

int Main(int argc, char** argv) {
  std::vector<std::string> models = {Llama1B().name, Llama8B().name};
  int repeats = 9;
  int device = 0;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--models") {
      models = absl::StrSplit(value, ',');
    } else if (!((flag == "--repeats" && absl::SimpleAtoi(value, &repeats) && repeats >= 7) ||
                 (flag == "--device" && absl::SimpleAtoi(value, &device) && device >= 0))) {
      std::cerr << "gpu_timing: " << flag << " " << value
                << ": expected --models NAMES, --repeats N (at least 7), --device N\n";
      return 2;
    }
  }
  std::vector<ModelShape> shapes;
  for (const std::string& name : models) {
    for (const ModelShape& shape : {Llama1B(), Llama8B()}) {
      if (shape.name == name) shapes.push_back(shape);
    }
  }
  if (shapes.size() != models.size()) {
    std::cerr << "gpu_timing: --models: expected llama-3.2-1b or llama-3.1-8b, or both with a "
                 "comma between them\n";
    return 2;
  }
  if (const auto count = kernels::CudaDeviceCount(); !count.ok()) {
    std::cerr << "skipped: " << count.status().message() << "\n";
    return 0;
  }
  auto kernels = kernels::CreateCudaKernels({.device = device});
  if (!kernels.ok()) {
    std::cerr << "gpu_timing: " << kernels.status().message() << "\n";
    return 1;
  }
  const auto fast =
      kernels::CreateCudaKernels({.device = device, .numerics = kernels::Numerics::kFast});
  if (!fast.ok()) {
    std::cerr << "profile fast is left out: " << fast.status().message() << "\n";
  }
  int driver = 0;
  Check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  Json out = {{"device", (*kernels)->Describe()},
              {"driver", driver},
              {"runtime", CUDART_VERSION},
              {"repeats", repeats}};
  Clock clock(**kernels, repeats);
  const double bandwidth = MeasureReads(**kernels, clock, out);
  if (fast.ok()) out["fast"] = (*fast)->Describe();
  for (const ModelShape& shape : shapes) {
    Json& model = out["models"].emplace_back(Model(**kernels, shape, clock, bandwidth));
    if (!fast.ok()) continue;
    // After it, not beside it: a card needn't hold the weights twice.
    std::cerr << shape.name << ": the same in profile fast\n";
    Clock fast_clock(**fast, repeats);
    model["fast"] = Model(**fast, shape, fast_clock, bandwidth);
    model["exact_over_fast"] = ExactOverFast(model, model["fast"]);
  }
  std::cout << out.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace phalanx::timing

int main(int argc, char** argv) { return phalanx::timing::Main(argc, argv); }
