// cuBLASLt's matrices are column-major: the row-major w[n, k] is its [k, n], which it is to
// transpose, x[m, k] its [k, m], and out[m, n] its [n, m].
#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace phalanx::kernels::cuda {
namespace {

// The power of two that `address` is a multiple of; more than 256 bytes are worth nothing.
uint32_t AlignmentOf(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

cublas::DataType TypeOf(DType type) {
  return type == DType::kBF16 ? cublas::kBF16 : type == DType::kF16 ? cublas::kF16 : cublas::kF32;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(std::shared_ptr<const cublas::Library> library) {
  std::unique_ptr<Gemm> gemm(new Gemm(std::move(library)));
  const cublas::Library& l = gemm->library();
  cublas::Status status = l.Create(&gemm->context_);
  if (status == cublas::kSuccess) {
    status = l.MatmulDescCreate(&gemm->desc_, cublas::kCompute32F, cublas::kF32);
  }
  if (status == cublas::kSuccess) {
    const cublas::Operation transposed = cublas::kTransposed;
    status = l.MatmulDescSetAttribute(gemm->desc_, cublas::kTransA, &transposed, sizeof transposed);
  }
  if (status != cublas::kSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--numerics fast: ", l.path, ", version ", cublas::VersionText(l.version),
        ", does not start on this device: ", l.GetStatusString(status),
        "; leave the device more memory (--gpu-memory-fraction), or use --numerics exact"));
  }
  return gemm;
}

Gemm::~Gemm() {
  Forget();
  if (desc_ != nullptr) (void)library_->MatmulDescDestroy(desc_);
  if (context_ != nullptr) (void)library_->Destroy(context_);
}

void Gemm::Forget() {
  for (const auto& [key, choice] : choices_) {
    for (cublas::MatrixLayout* layout : {choice.w, choice.x, choice.out}) {
      if (layout != nullptr) (void)library_->MatrixLayoutDestroy(layout);
    }
  }
  choices_.clear();
}

void Gemm::Check(cublas::Status status, const char* what, const Product& p) const {
  PHALANX_CHECK(status == cublas::kSuccess)
      << library_->path << ", " << what << " of " << p.m << " x " << p.n << " x " << p.k << " "
      << Name(p.type) << ": " << library_->GetStatusString(status)
      << "; this rank ends: use --numerics exact, or another version of cuBLAS";
}

Gemm::Choice Gemm::Choose(const Product& p) {
  const cublas::Library& l = *library_;
  const cublas::DataType type = TypeOf(p.type);
  Choice choice;
  const auto layout = [&](cublas::MatrixLayout*& to, cublas::DataType of, int64_t rows,
                          int64_t cols, int64_t stride) {
    Check(l.MatrixLayoutCreate(&to, of, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                               stride),
          "a layout", p);
  };
  layout(choice.w, type, p.k, p.n, p.w_stride);
  layout(choice.x, type, p.k, p.m, p.x_stride);
  layout(choice.out, TypeOf(p.out_type), p.n, p.m, p.out_stride);

  cublas::Preference* preference = nullptr;
  Check(l.MatmulPreferenceCreate(&preference), "a preference", p);
  const auto prefer = [&](cublas::PreferenceAttribute attribute, auto value) {
    Check(l.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
          "a preference", p);
  };
  prefer(cublas::kMaxWorkspaceBytes, static_cast<uint64_t>(kWorkspaceBytes));
  prefer(cublas::kMinAlignmentA, AlignmentOf(p.w));
  prefer(cublas::kMinAlignmentB, AlignmentOf(p.x));
  prefer(cublas::kMinAlignmentC, AlignmentOf(p.out));
  prefer(cublas::kMinAlignmentD, AlignmentOf(p.out));
  cublas::HeuristicResult best;
  int count = 0;
  const cublas::Status status =
      l.MatmulAlgoGetHeuristic(context_, desc_, choice.w, choice.x, choice.out, choice.out,
                               preference, /*most_results=*/1, &best, &count);
  // What the library can't do is none of its errors.
  if (status != cublas::kNotSupported) Check(status, "the choice of a kernel", p);
  (void)l.MatmulPreferenceDestroy(preference);
  choice.exists = status == cublas::kSuccess && count > 0 && best.state == cublas::kSuccess &&
                  best.workspace_bytes <= static_cast<size_t>(kWorkspaceBytes);
  if (choice.exists) choice.algorithm = best.algorithm;
  return choice;
}

const Gemm::Choice& Gemm::Find(const Product& p) {
  const Key key = {static_cast<int64_t>(p.type),
                   static_cast<int64_t>(p.out_type),
                   p.m,
                   p.n,
                   p.k,
                   p.x_stride,
                   p.w_stride,
                   p.out_stride,
                   AlignmentOf(p.x),
                   AlignmentOf(p.w),
                   AlignmentOf(p.out)};
  const auto known = choices_.find(key);
  if (known != choices_.end()) return known->second;
  if (choices_.size() >= kMostChoices) Forget();
  return choices_.emplace(key, Choose(p)).first->second;
}

bool Gemm::CanRun(const Product& product) { return Find(product).exists; }

void Gemm::Run(const Product& p, void* workspace, void* stream) {
  const Choice& choice = Find(p);
  PHALANX_CHECK(choice.exists) << "cuBLASLt has no kernel for " << p.m << " x " << p.n << " x "
                               << p.k;
  const float kept = p.adds ? 1.0f : 0.0f;
  Check(library_->Matmul(context_, desc_, &p.factor, p.w, choice.w, p.x, choice.x, &kept, p.out,
                         choice.out, p.out, choice.out, &choice.algorithm, workspace,
                         static_cast<size_t>(kWorkspaceBytes), stream),
        "the product", p);
}

}  // namespace phalanx::kernels::cuda
