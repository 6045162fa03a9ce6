// Where Open MPI keeps the files of one worker group on one host, its shared memory among them: a
// directory in /dev/shm, since neither a killed rank nor a killed mpirun removes its own.
#ifndef PHALANX_LAUNCHER_GROUP_FILES_H_
#define PHALANX_LAUNCHER_GROUP_FILES_H_

#include <string>

#include "launcher/descriptor.h"

namespace phalanx::launcher {

class GroupFiles {
 public:
  // A name that no other group has. mpirun hands its own to all its ranks, so guards of one group
  // have one name on every host.
  static std::string NewName();

  // Makes the directory `name` of NewName(), or joins others of this user that have it (hosts may
  // be namespaces of one machine). Directories that nobody holds any more, since their guard was
  // killed, are removed first. Where there can be none, path() is empty.
  explicit GroupFiles(const std::string& name);
  // Removes it, if nobody else holds it.
  ~GroupFiles();
  GroupFiles(const GroupFiles&) = delete;
  GroupFiles& operator=(const GroupFiles&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Descriptor held_;  // locked (flock) by all who hold it
};

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_GROUP_FILES_H_
