// The configuration's NCCL settings as the environment variables that NCCL reads in each rank.
#ifndef PHALANX_LAUNCHER_NCCL_SETTINGS_H_
#define PHALANX_LAUNCHER_NCCL_SETTINGS_H_

#include <map>
#include <string>
#include <vector>

#include "launcher/yaml_reader.h"
#include "proto/phalanx/v1/cluster.pb.h"

namespace phalanx::launcher {

// One variable for each field that is set, by name, and none else. See NcclConfig and
// https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html.
std::map<std::string, std::string> NcclEnvironment(const v1::NcclConfig& config);

// What the schema alone can't say of `config`, the file's cluster.nccl.
void CheckNccl(const v1::NcclConfig& config, YamlFaults& faults);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_NCCL_SETTINGS_H_
