#include "launcher/scratch_directory.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "launcher/exit_code.h"
#include "launcher/machine.h"

namespace phalanx::launcher {
namespace {

std::string NewPath() {
  std::error_code error;
  return std::filesystem::temp_directory_path(error) /
         absl::StrCat("phalanx-bench-", RandomToken().substr(0, 12));
}

}  // namespace

ScratchDirectory::ScratchDirectory(const char* command)
    : path_(NewPath()), stop_([this, command](int signal) {
        Remove();
        ExitOnSignal(command, signal);
      }) {}

ScratchDirectory::~ScratchDirectory() { Remove(); }

void ScratchDirectory::Remove() {
  std::error_code error;
  // Where a signal came, somebody may still be writing there: what is new since goes, too.
  for (int tries = 0; tries < 100 && std::filesystem::exists(path_, error); ++tries) {
    std::filesystem::remove_all(path_, error);
  }
}

}  // namespace phalanx::launcher
