// What `phalanx plan --calibrate` writes and later plans read: measured rates in place of stated
// ones. The schema is Calibration in proto/phalanx/v1/cluster.proto.
#ifndef PHALANX_LAUNCHER_CALIBRATION_H_
#define PHALANX_LAUNCHER_CALIBRATION_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/machine.h"
#include "proto/phalanx/v1/cluster.pb.h"

namespace phalanx::launcher {

// As ParseConfig(): INVALID_ARGUMENT has one line per fault, with its place. A rate or a collective
// without what it needs is a fault.
absl::StatusOr<v1::Calibration> ParseCalibration(const std::string& text, const std::string& path);
// NOT_FOUND: there is no such file.
absl::StatusOr<v1::Calibration> ReadCalibration(const std::string& path);
// The YAML that ParseCalibration() reads back to the same values.
std::string ToYaml(const v1::Calibration& calibration);
// To be asked before minutes of measuring. INVALID_ARGUMENT names the path.
absl::Status CheckCalibrationCanBeWritten(const std::string& path);
// Replaces the file. UNAVAILABLE names the path.
absl::Status WriteCalibration(const v1::Calibration& calibration, const std::string& path);

// Gives the measurements to the cluster's nodes: to those that the calibration names, or to all.
// INVALID_ARGUMENT: no node has that name.
absl::Status Apply(const v1::Calibration& calibration, parallel::ClusterSpec& cluster);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_CALIBRATION_H_
