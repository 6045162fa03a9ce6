#include "kernels/cuda/cublas_library.h"

#include <dlfcn.h>

#include "absl/status/status.h"

namespace phalanx::kernels::cuda::cublas {
namespace {

constexpr const char* kRemedy =
    "install cuBLAS of CUDA 13 (libcublasLt.so.13) where the dynamic linker finds it, or use "
    "--numerics exact";

// Sets `function` to symbol "cublasLt<name>"; false if there is none.
template <typename Function>
bool Find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, absl::StrCat("cublasLt", name).c_str()));
  return function != nullptr;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* error = dlerror();
    return absl::FailedPreconditionError(absl::StrCat(
        "--numerics fast: cannot load ", name, ": ", error == nullptr ? "no reason given" : error,
        "; expected cuBLAS ", VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  auto library = std::make_shared<Library>();
  library->path = name;
  if (Dl_info info; Find(handle, "GetVersion", library->GetVersion) &&
                    dladdr(reinterpret_cast<void*>(library->GetVersion), &info) != 0 &&
                    info.dli_fname != nullptr) {
    library->path = info.dli_fname;
  }
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
  const char* missing = nullptr;
  const auto need = [&](const char* function, auto& pointer) {
    if (!Find(handle, function, pointer) && missing == nullptr) missing = function;
  };
  need("GetStatusString", l.GetStatusString);
  need("Create", l.Create);
  need("Destroy", l.Destroy);
  need("MatmulDescCreate", l.MatmulDescCreate);
  need("MatmulDescDestroy", l.MatmulDescDestroy);
  need("MatmulDescSetAttribute", l.MatmulDescSetAttribute);
  need("MatrixLayoutCreate", l.MatrixLayoutCreate);
  need("MatrixLayoutDestroy", l.MatrixLayoutDestroy);
  need("MatmulPreferenceCreate", l.MatmulPreferenceCreate);
  need("MatmulPreferenceDestroy", l.MatmulPreferenceDestroy);
  need("MatmulPreferenceSetAttribute", l.MatmulPreferenceSetAttribute);
  need("MatmulAlgoGetHeuristic", l.MatmulAlgoGetHeuristic);
  need("Matmul", l.Matmul);
  if (missing != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--numerics fast: ", library->path, ", version ", VersionText(library->version),
        ", has no function cublasLt", missing, ", so it is damaged or no cuBLASLt: ", kRemedy));
  }
  return library;
}

}  // namespace phalanx::kernels::cuda::cublas
