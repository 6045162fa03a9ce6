// Reads YAML into a protobuf message by reflection, checked whole: every fault is reported at once
// with its place. What launcher/config.cc and launcher/calibration.cc share.
#ifndef PHALANX_LAUNCHER_YAML_READER_H_
#define PHALANX_LAUNCHER_YAML_READER_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"

namespace phalanx::launcher {

// For messages: in quotes, escaped, cut where it is long.
std::string Quoted(const std::string& text);
// "mpirun" for KIND_MPIRUN; empty for the value that stands for a field left out.
std::string YamlName(const google::protobuf::EnumValueDescriptor& value);

// Faults found so far and the places of all values.
class YamlFaults {
 public:
  explicit YamlFaults(std::string path) : path_(std::move(path)) {}

  // Whether the file gives the value at `path`, e.g. "cluster.hosts[0].name".
  bool Given(const std::string& path) const { return marks_.count(path) > 0; }
  // At the place of `path`, which the file gives. For checks of what was read; silent where the
  // reading of that place has found a fault already.
  void FaultAt(const std::string& path, const std::string& what);
  // OK, or INVALID_ARGUMENT with one line per fault in the file's order.
  absl::Status status();
  // Of every value that the file gives: "FILE:LINE:COLUMN".
  const std::map<std::string, std::string>& positions() const { return positions_; }

 private:
  friend class YamlReader;
  struct Mark {
    int line = 0;
    int column = 0;
  };
  struct FaultLine {
    Mark mark;
    std::string text;
  };
  std::string Place(Mark mark) const;
  void Fault(Mark mark, const std::string& path, const std::string& what);
  void Note(Mark mark, const std::string& path);

  const std::string path_;
  std::map<std::string, Mark> marks_;
  std::map<std::string, std::string> positions_;
  std::vector<FaultLine> faults_;
};

// Reads `text` into `message`. `path` stands in messages only. INVALID_ARGUMENT where the text is
// no YAML or more than one document; every other fault goes to `faults`: unknown and repeated keys,
// values of the wrong type, out of range, that are no size, duration or name of the enum. Numbers
// of fields whose names end in _bytes or _ms may have a unit.
absl::Status ReadYaml(const std::string& text, const std::string& path,
                      google::protobuf::Message& message, YamlFaults& faults);

// The text of a file of at most 1 MiB. `name` stands for it in messages. NOT_FOUND: there is none.
// INVALID_ARGUMENT: it can't be read or is larger.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, const std::string& name);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_YAML_READER_H_
