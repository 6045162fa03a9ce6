#include "launcher/group_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launcher/machine.h"

namespace phalanx::launcher {
namespace {

constexpr char kFolder[] = "/dev/shm/";
constexpr char kPrefix[] = "phalanx-group-";
// Longer than a guard takes from making its directory to locking it.
constexpr time_t kSettledSeconds = 60;
// Free bytes that Open MPI's files want: a segment of 4 MiB for each of a host's ranks, and more.
// With less it waits for ever.
constexpr uint64_t kLeastBytes = uint64_t{32} << 20;

bool HasRoom() {
  struct statvfs info;
  return statvfs(kFolder, &info) == 0 && info.f_bavail * info.f_frsize >= kLeastBytes;
}

// A directory of this user's that nobody else may look into; not valid: it is something else.
Descriptor OpenOwn(const std::string& path, struct stat* info) {
  Descriptor opened(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  const bool own = opened.valid() && fstat(opened.get(), info) == 0 && info->st_uid == geteuid() &&
                   (info->st_mode & 0777) == 0700;
  return own ? std::move(opened) : Descriptor();
}

void Remove(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void Sweep() {
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(kFolder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (!absl::StartsWith(it->path().filename().string(), kPrefix)) continue;
    struct stat info;
    const Descriptor found = OpenOwn(it->path(), &info);
    if (found.valid() && time(nullptr) - info.st_mtime > kSettledSeconds &&
        flock(found.get(), LOCK_EX | LOCK_NB) == 0) {
      Remove(it->path());
    }
  }
}

}  // namespace

std::string GroupFiles::NewName() { return absl::StrCat(kPrefix, RandomToken().substr(0, 16)); }

GroupFiles::GroupFiles(const std::string& name) {
  Sweep();
  if (!absl::StartsWith(name, kPrefix) || absl::StrContains(name, '/') || !HasRoom()) return;
  const std::string path = absl::StrCat(kFolder, name);
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return;
  struct stat info;
  held_ = OpenOwn(path, &info);
  if (held_.valid() && flock(held_.get(), LOCK_SH | LOCK_NB) == 0) path_ = path;
}

GroupFiles::~GroupFiles() {
  if (!path_.empty() && flock(held_.get(), LOCK_EX | LOCK_NB) == 0) Remove(path_);
}

}  // namespace phalanx::launcher
