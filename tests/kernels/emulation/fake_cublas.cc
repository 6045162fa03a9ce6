#include "tests/kernels/emulation/fake_cublas.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda_runtime_api.h"
#include "kernels/float16.h"

namespace phalanx::kernels::cuda::cublas {

struct Context {};
struct MatmulDesc {
  Operation trans_a = kNone;
};
struct MatrixLayout {
  DataType type;
  uint64_t rows;
  uint64_t cols;
  int64_t stride;

  size_t element() const { return type == kF32 ? 4 : 2; }
  // From the first element's first byte to the last one's last.
  size_t bytes() const { return ((cols - 1) * static_cast<uint64_t>(stride) + rows) * element(); }
};
struct Preference {
  uint64_t workspace = 0;
  // As in the real one: what isn't said is taken to be aligned to 256.
  uint32_t alignment[4] = {256, 256, 256, 256};
};

}  // namespace phalanx::kernels::cuda::cublas

namespace phalanx::kernels::emulation {
namespace {

using cuda::cublas::Algorithm;
using cuda::cublas::Context;
using cuda::cublas::DataType;
using cuda::cublas::HeuristicResult;
using cuda::cublas::Library;
using cuda::cublas::MatmulDesc;
using cuda::cublas::MatrixLayout;
using cuda::cublas::Preference;
using cuda::cublas::Status;

// What a kernel that was chosen here asks for: some of the workspace that there is.
constexpr size_t kUsedWorkspace = 64 << 10;

struct State {
  std::mutex mutex;
  FakeCublasFaults faults;
  FakeCublasCounts counts;
  int64_t live = 0;
};
State& Shared() {
  static auto* state = new State();
  return *state;
}

template <typename T>
Status Make(T** to, const T& value) {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  ++Shared().live;
  *to = new T(value);
  return cuda::cublas::kSuccess;
}
template <typename T>
Status Drop(T* object) {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  --Shared().live;
  delete object;
  return cuda::cublas::kSuccess;
}

// w: [k, n] column by column, transposed; x: [k, m]; out: [n, m].
bool Fit(const MatmulDesc& desc, const MatrixLayout& w, const MatrixLayout& x,
         const MatrixLayout& out) {
  return desc.trans_a == cuda::cublas::kTransposed && w.type == x.type &&
         (out.type == cuda::cublas::kF32 || out.type == w.type) && w.rows == x.rows &&
         w.cols == out.rows && x.cols == out.cols;
}

// The types, sizes and alignments for which a kernel was chosen, kept in the algorithm.
Algorithm AlgorithmFor(const MatrixLayout& w, const MatrixLayout& x, const MatrixLayout& out,
                       const Preference& preference) {
  Algorithm algorithm = {{w.rows, w.cols, x.cols, static_cast<uint64_t>(w.stride),
                          static_cast<uint64_t>(x.stride), static_cast<uint64_t>(out.stride), 0,
                          static_cast<uint64_t>(w.type) << 8 | static_cast<uint64_t>(out.type)}};
  for (const uint32_t alignment : preference.alignment) {
    algorithm.data[6] = algorithm.data[6] << 16 | alignment;
  }
  return algorithm;
}

bool OnDevice(const void* data, size_t bytes) {
  for (const size_t at : {size_t{0}, bytes - 1}) {
    cudaPointerAttributes attributes;
    (void)cudaPointerGetAttributes(&attributes, static_cast<const char*>(data) + at);
    if (attributes.type != cudaMemoryTypeDevice) return false;
  }
  return true;
}

double Load(const void* data, DataType type, uint64_t index) {
  if (type == cuda::cublas::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == cuda::cublas::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

void Store(void* data, DataType type, uint64_t index, double value) {
  const auto rounded = static_cast<float>(value);
  if (type == cuda::cublas::kF32) {
    static_cast<float*>(data)[index] = rounded;
  } else {
    static_cast<uint16_t*>(data)[index] =
        type == cuda::cublas::kBF16 ? F32ToBf16(rounded) : F32ToF16(rounded);
  }
}

// In double from the last k to the first. `beta` 0: what `out` held doesn't matter, NaN or not.
void Multiply(double alpha, const void* w, const MatrixLayout& wl, const void* x,
              const MatrixLayout& xl, double beta, void* out, const MatrixLayout& outl) {
  std::vector<double> row(wl.rows);
  for (uint64_t m = 0; m < xl.cols; ++m) {
    for (uint64_t k = 0; k < xl.rows; ++k) row[k] = Load(x, xl.type, m * xl.stride + k);
    for (uint64_t n = 0; n < wl.cols; ++n) {
      double sum = 0;
      for (uint64_t k = wl.rows; k-- > 0;) sum += row[k] * Load(w, wl.type, n * wl.stride + k);
      const uint64_t to = m * outl.stride + n;
      Store(out, outl.type, to, alpha * sum + (beta == 0 ? 0 : beta * Load(out, outl.type, to)));
    }
  }
}

Status Choose(Context* /*context*/, MatmulDesc* desc, MatrixLayout* w, MatrixLayout* x,
              MatrixLayout* c, MatrixLayout* out, Preference* preference, int most_results,
              HeuristicResult* results, int* num_results) {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  ++Shared().counts.asked;
  if (!Fit(*desc, *w, *x, *out) || c != out || most_results < 1) {
    return cuda::cublas::kInvalidValue;
  }
  *num_results = 0;
  const FakeCublasFaults& faults = Shared().faults;
  if (static_cast<int64_t>(x->cols) == faults.no_kernel_for_rows) {
    return faults.says_not_supported ? cuda::cublas::kNotSupported : cuda::cublas::kSuccess;
  }
  results[0] = {};
  results[0].algorithm = AlgorithmFor(*w, *x, *out, *preference);
  results[0].workspace_bytes = kUsedWorkspace;
  *num_results = preference->workspace >= kUsedWorkspace ? 1 : 0;
  return cuda::cublas::kSuccess;
}

Status Run(Context* /*context*/, MatmulDesc* desc, const void* alpha, const void* w,
           MatrixLayout* w_layout, const void* x, MatrixLayout* x_layout, const void* beta,
           const void* c, MatrixLayout* c_layout, void* out, MatrixLayout* out_layout,
           const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  {
    const std::lock_guard<std::mutex> lock(Shared().mutex);
    ++Shared().counts.products;
    if (Shared().faults.refuses_products) return cuda::cublas::kNotSupported;
  }
  Preference promised;
  for (int i = 0; i < 4; ++i) {
    promised.alignment[i] = static_cast<uint32_t>(algorithm->data[6] >> (48 - 16 * i) & 0xffff);
  }
  const Algorithm expected = AlgorithmFor(*w_layout, *x_layout, *out_layout, promised);
  const void* pointers[] = {w, x, c, out};
  bool valid = Fit(*desc, *w_layout, *x_layout, *out_layout) && c == out &&
               c_layout == out_layout && std::memcmp(&expected, algorithm, sizeof expected) == 0 &&
               workspace_bytes >= kUsedWorkspace && OnDevice(workspace, workspace_bytes) &&
               reinterpret_cast<uintptr_t>(workspace) % 256 == 0 &&
               OnDevice(w, w_layout->bytes()) && OnDevice(x, x_layout->bytes()) &&
               OnDevice(out, out_layout->bytes());
  for (int i = 0; i < 4; ++i) {
    valid = valid && reinterpret_cast<uintptr_t>(pointers[i]) % promised.alignment[i] == 0;
  }
  if (!valid) return cuda::cublas::kInvalidValue;
  Enqueue(static_cast<cudaStream_t>(stream),
          [=, a = *static_cast<const float*>(alpha), b = *static_cast<const float*>(beta),
           wl = *w_layout, xl = *x_layout, outl = *out_layout] {
            std::memset(workspace, 0xA5, workspace_bytes);
            Multiply(a, w, wl, x, xl, b, out, outl);
          });
  return cuda::cublas::kSuccess;
}

}  // namespace

std::shared_ptr<const Library> FakeCublas() {
  auto library = std::make_shared<Library>();
  Library& l = *library;
  l.version = 130100;
  l.path = "an emulated cuBLASLt";
  l.GetVersion = []() -> size_t { return 130100; };
  l.GetStatusString = [](Status status) -> const char* {
    return status == cuda::cublas::kNotInitialized ? "the emulated library was not initialized"
           : status == cuda::cublas::kInvalidValue ? "an invalid value"
           : status == cuda::cublas::kNotSupported ? "not supported"
                                                   : "another emulated error";
  };
  l.Create = [](Context** to) {
    {
      const std::lock_guard<std::mutex> lock(Shared().mutex);
      if (Shared().faults.no_context) return cuda::cublas::kNotInitialized;
    }
    return Make(to, Context());
  };
  l.Destroy = [](Context* context) { return Drop(context); };
  l.MatmulDescCreate = [](MatmulDesc** to, cuda::cublas::ComputeType compute, DataType scale) {
    if (compute != cuda::cublas::kCompute32F || scale != cuda::cublas::kF32) {
      return cuda::cublas::kInvalidValue;
    }
    return Make(to, MatmulDesc());
  };
  l.MatmulDescDestroy = [](MatmulDesc* desc) { return Drop(desc); };
  l.MatmulDescSetAttribute = [](MatmulDesc* desc, cuda::cublas::MatmulDescAttribute attribute,
                                const void* value, size_t bytes) {
    if (attribute != cuda::cublas::kTransA || bytes != sizeof desc->trans_a) {
      return cuda::cublas::kInvalidValue;
    }
    std::memcpy(&desc->trans_a, value, bytes);
    return cuda::cublas::kSuccess;
  };
  l.MatrixLayoutCreate = [](MatrixLayout** to, DataType type, uint64_t rows, uint64_t cols,
                            int64_t stride) {
    if (rows == 0 || cols == 0 || static_cast<uint64_t>(stride) < rows) {
      return cuda::cublas::kInvalidValue;
    }
    return Make(to, MatrixLayout{type, rows, cols, stride});
  };
  l.MatrixLayoutDestroy = [](MatrixLayout* layout) { return Drop(layout); };
  l.MatmulPreferenceCreate = [](Preference** to) { return Make(to, Preference()); };
  l.MatmulPreferenceDestroy = [](Preference* preference) { return Drop(preference); };
  l.MatmulPreferenceSetAttribute = [](Preference* preference,
                                      cuda::cublas::PreferenceAttribute attribute,
                                      const void* value, size_t bytes) {
    const bool is_workspace = attribute == cuda::cublas::kMaxWorkspaceBytes;
    const int which = attribute - cuda::cublas::kMinAlignmentA;
    if (bytes != (is_workspace ? 8 : 4) || (!is_workspace && (which < 0 || which > 3))) {
      return cuda::cublas::kInvalidValue;
    }
    std::memcpy(
        is_workspace ? static_cast<void*>(&preference->workspace) : &preference->alignment[which],
        value, bytes);
    return cuda::cublas::kSuccess;
  };
  l.MatmulAlgoGetHeuristic = Choose;
  l.Matmul = Run;
  return library;
}

void SetFakeCublasFaults(const FakeCublasFaults& faults) {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  Shared().faults = faults;
}

FakeCublasCounts TakeFakeCublasCounts() {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  return std::exchange(Shared().counts, {});
}

int64_t LiveFakeCublasObjects() {
  const std::lock_guard<std::mutex> lock(Shared().mutex);
  return Shared().live;
}

}  // namespace phalanx::kernels::emulation

namespace phalanx::kernels::cuda::cublas {

// In place of the product's, which looks for a shared library.
absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(const std::string& /*name*/) {
  return emulation::FakeCublas();
}

}  // namespace phalanx::kernels::cuda::cublas
