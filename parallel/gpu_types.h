// GPUs that planning knows by name.
#ifndef PHALANX_PARALLEL_GPU_TYPES_H_
#define PHALANX_PARALLEL_GPU_TYPES_H_

#include <cstdint>
#include <string>

#include "parallel/machine.h"

namespace phalanx::parallel {

// A vendor's promises for one GPU.
struct GpuType {
  const char* name;   // in configurations and flags
  const char* model;  // what the driver's name of it holds, e.g. "H100 80GB HBM3"
  int64_t memory_bytes;
  double read_bytes_per_s;
  double matrix_flops_per_s;  // BF16, dense
  double link_bytes_per_s;    // NVLink, all links, one direction
};

// By GpuType::name; null where there is none of that name.
const GpuType* FindGpuType(const std::string& name);
// By the driver's name, e.g. "NVIDIA H100 80GB HBM3"; null where it is none of these.
const GpuType* FindGpuModel(const std::string& model);
// "a100-80g, h100-sxm or h200".
std::string GpuTypeNames();

// A machine with `devices` of them. Its rates are what large matmuls, long reads and large
// transfers reach of the vendor's figures; the network is left 0.
NodeSpec GpuNode(const GpuType& type, int devices);

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_GPU_TYPES_H_
