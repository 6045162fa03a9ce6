// The YAML configuration: one schema (proto/phalanx/v1/cluster.proto), read by reflection, checked
// whole, every fault reported at once with its place.
#ifndef PHALANX_LAUNCHER_CONFIG_H_
#define PHALANX_LAUNCHER_CONFIG_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/options.h"
#include "proto/phalanx/v1/cluster.pb.h"

// CLI11 (declared alone: its header takes the compiler ten seconds).
namespace CLI {
class App;
}  // namespace CLI

namespace phalanx::launcher {

struct ConfigFile {
  v1::Config config;
  std::string path;  // as it was given
  // Of every value that the file gives: "cluster.hosts[0].name" to "FILE:LINE:COLUMN".
  std::map<std::string, std::string> positions;
};

// `path` stands in messages only. INVALID_ARGUMENT has one line per fault, "FILE:LINE:COLUMN:
// what", in the file's order: unknown and repeated keys, values of the wrong type, out of range,
// that are no size, duration or name of the enum, and fields that can't go together. Text that is
// no YAML is one fault, the first.
absl::StatusOr<ConfigFile> ParseConfig(const std::string& text, const std::string& path);
// NOT_FOUND: there is no such file. INVALID_ARGUMENT: it can't be read or as for ParseConfig.
absl::StatusOr<ConfigFile> ReadConfig(const std::string& path);

// Sets every option that the file gives and the command line does not; `flags` is the parsed
// subcommand with the flags of AddServiceOptions(). `serving` may be null: the command opens no
// port. INVALID_ARGUMENT: the file's hosts have fewer slots than the layout has ranks.
absl::Status ApplyConfig(const ConfigFile& file, const CLI::App& flags, ServiceOptions& options,
                         ServingOptions* serving);

// ReadConfig() and ApplyConfig() of --cluster, if it is given; INVALID_ARGUMENT where neither file
// nor command line names a model, where hosts are named for threads, and CheckDeviceFlags()'s.
absl::Status ApplyClusterFile(const CLI::App& flags, ServiceOptions& options,
                              ServingOptions* serving);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_CONFIG_H_
