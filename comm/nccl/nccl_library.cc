#include "comm/nccl/nccl_library.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/dynamic_library.h"

namespace phalanx::comm::nccl {
namespace {

constexpr const char* kRemedy =
    "install NCCL (libnccl2) where the dynamic linker finds it, or use --device-comm staged";

}  // namespace

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(const std::string& name) {
  absl::StatusOr<kernels::DynamicLibrary> functions = kernels::DynamicLibrary::Open(name, "nccl");
  if (!functions.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL: cannot load ", name, ": ", functions.status().message(),
                     "; expected NCCL ", VersionText(kOldestVersion), " or newer: ", kRemedy));
  }
  auto library = std::make_shared<Library>();
  library->path = functions->PathOf("GetVersion");
  functions->Find("GetVersion", library->GetVersion);
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
  functions->Need("GetUniqueId", l.GetUniqueId);
  functions->Need("CommInitRankConfig", l.CommInitRankConfig);
  functions->Need("CommFinalize", l.CommFinalize);
  functions->Need("CommDestroy", l.CommDestroy);
  functions->Need("CommAbort", l.CommAbort);
  functions->Need("CommGetAsyncError", l.CommGetAsyncError);
  functions->Need("GetErrorString", l.GetErrorString);
  functions->Need("GetLastError", l.GetLastError);
  functions->Need("AllReduce", l.AllReduce);
  functions->Need("ReduceScatter", l.ReduceScatter);
  functions->Need("AllGather", l.AllGather);
  functions->Need("Broadcast", l.Broadcast);
  functions->Need("Send", l.Send);
  functions->Need("Recv", l.Recv);
  functions->Need("GroupStart", l.GroupStart);
  functions->Need("GroupEnd", l.GroupEnd);
  if (!functions->missing().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "NCCL: ", library->path, ", version ", VersionText(library->version), ", has no function ",
        functions->missing(), ", so it is damaged or no NCCL: ", kRemedy));
  }
  return library;
}

}  // namespace phalanx::comm::nccl
