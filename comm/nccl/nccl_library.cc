#include "comm/nccl/nccl_library.h"

#include <dlfcn.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace phalanx::comm::nccl {
namespace {

constexpr const char* kRemedy =
    "install NCCL (libnccl2) where the dynamic linker finds it, or use --device-comm staged";

// Sets `function` to symbol "nccl<name>"; false if there is none.
template <typename Function>
bool Find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, absl::StrCat("nccl", name).c_str()));
  return function != nullptr;
}

}  // namespace

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* error = dlerror();
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL: cannot load ", name, ": ", error == nullptr ? "no reason given" : error,
                     "; expected NCCL ", VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  auto library = std::make_shared<Library>();
  library->path = name;
  if (Dl_info info; Find(handle, "GetVersion", library->GetVersion) &&
                    dladdr(reinterpret_cast<void*>(library->GetVersion), &info) != 0 &&
                    info.dli_fname != nullptr) {
    library->path = info.dli_fname;
  }
  if (library->GetVersion == nullptr || library->GetVersion(&library->version) != kSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL: ", library->path, " does not tell its version; expected NCCL ",
                     VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  // Before 2.9 versions were major * 1000 + minor * 100 + patch, which is below any since.
  if (library->version < kOldestVersion) {
    const std::string found = library->version < 10000 ? absl::StrCat(library->version / 1000, ".",
                                                                      library->version % 1000 / 100,
                                                                      ".", library->version % 100)
                                                       : VersionText(library->version);
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL: ", library->path, " is version ", found, "; expected ",
                     VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  Library& l = *library;
  const char* missing = nullptr;
  const auto need = [&](const char* function, auto& pointer) {
    if (!Find(handle, function, pointer) && missing == nullptr) missing = function;
  };
  need("GetUniqueId", l.GetUniqueId);
  need("CommInitRankConfig", l.CommInitRankConfig);
  need("CommFinalize", l.CommFinalize);
  need("CommDestroy", l.CommDestroy);
  need("CommAbort", l.CommAbort);
  need("CommGetAsyncError", l.CommGetAsyncError);
  need("GetErrorString", l.GetErrorString);
  need("GetLastError", l.GetLastError);
  need("AllReduce", l.AllReduce);
  need("ReduceScatter", l.ReduceScatter);
  need("AllGather", l.AllGather);
  need("Broadcast", l.Broadcast);
  need("Send", l.Send);
  need("Recv", l.Recv);
  need("GroupStart", l.GroupStart);
  need("GroupEnd", l.GroupEnd);
  if (missing != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "NCCL: ", library->path, ", version ", VersionText(library->version),
        ", has no function nccl", missing, ", so it is damaged or no NCCL: ", kRemedy));
  }
  return library;
}

}  // namespace phalanx::comm::nccl
