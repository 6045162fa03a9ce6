// What `phalanx status` prints of the ranks.
#ifndef PHALANX_LAUNCHER_STATUS_TABLE_H_
#define PHALANX_LAUNCHER_STATUS_TABLE_H_

#include <string>

#include "proto/phalanx/v1/inference.pb.h"

namespace phalanx::launcher {

// A line for each rank under one of headings, columns as wide as what they hold; empty where there
// is no rank. A rank's device is what its kernels call it: "cpu avx2, 4 threads", "cuda 0: NVIDIA
// H100 80GB HBM3, sm_90, 132 multiprocessors".
std::string RankTable(const v1::GetStatusResponse& status);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_STATUS_TABLE_H_
