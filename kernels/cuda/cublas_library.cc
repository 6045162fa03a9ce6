#include "kernels/cuda/cublas_library.h"

#include "absl/status/status.h"
#include "kernels/dynamic_library.h"

namespace phalanx::kernels::cuda::cublas {
namespace {

constexpr const char* kRemedy =
    "install cuBLAS of CUDA 13 (libcublasLt.so.13) where the dynamic linker finds it, or use "
    "--numerics exact";

}  // namespace

absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(const std::string& name) {
  absl::StatusOr<DynamicLibrary> functions = DynamicLibrary::Open(name, "cublasLt");
  if (!functions.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--numerics fast: cannot load ", name, ": ", functions.status().message(),
                     "; expected cuBLAS ", VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  auto library = std::make_shared<Library>();
  library->path = functions->PathOf("GetVersion");
  functions->Find("GetVersion", library->GetVersion);
  if (library->GetVersion == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--numerics fast: ", library->path, " does not tell its version; expected cuBLAS ",
        VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  library->version = library->GetVersion();
  if (library->version < kOldestVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--numerics fast: ", library->path, " is version ", VersionText(library->version),
        "; expected cuBLAS ", VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  Library& l = *library;
  functions->Need("GetStatusString", l.GetStatusString);
  functions->Need("Create", l.Create);
  functions->Need("Destroy", l.Destroy);
  functions->Need("MatmulDescCreate", l.MatmulDescCreate);
  functions->Need("MatmulDescDestroy", l.MatmulDescDestroy);
  functions->Need("MatmulDescSetAttribute", l.MatmulDescSetAttribute);
  functions->Need("MatrixLayoutCreate", l.MatrixLayoutCreate);
  functions->Need("MatrixLayoutDestroy", l.MatrixLayoutDestroy);
  functions->Need("MatmulPreferenceCreate", l.MatmulPreferenceCreate);
  functions->Need("MatmulPreferenceDestroy", l.MatmulPreferenceDestroy);
  functions->Need("MatmulPreferenceSetAttribute", l.MatmulPreferenceSetAttribute);
  functions->Need("MatmulAlgoGetHeuristic", l.MatmulAlgoGetHeuristic);
  functions->Need("Matmul", l.Matmul);
  if (!functions->missing().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--numerics fast: ", library->path, ", version ",
                     VersionText(library->version), ", has no function ", functions->missing(),
                     ", so it is damaged or no cuBLASLt: ", kRemedy));
  }
  return library;
}

}  // namespace phalanx::kernels::cuda::cublas
