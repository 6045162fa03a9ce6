#include "parallel/gpu_types.h"

#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace phalanx::parallel {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// Bandwidth, BF16 rate without sparsity and NVLink (both directions together there, half of it
// here) are from NVIDIA's data sheets:
//   A100 80GB SXM  "NVIDIA A100 Tensor Core GPU", nvidia-a100-datasheet, 2021
//   H100 SXM       "NVIDIA H100 Tensor Core GPU", h100-tensor-core-gpu-datasheet, 2023 (1979 TFLOPS
//                  with sparsity)
//   H200 SXM       "NVIDIA H200 Tensor Core GPU", hpc-datasheet-sc23-h200, 2023
// The sheets give memory as 80, 80 and 141 GB; here it is what the CUDA runtime reports, rounded
// down.
constexpr GpuType kTypes[] = {
    {"a100-80g", "A100-SXM4-80GB", 79 * kGiB, 2.039e12, 312e12, 300e9},
    {"h100-sxm", "H100 80GB HBM3", 79 * kGiB, 3.35e12, 989e12, 450e9},
    {"h200", "H200", 139 * kGiB, 4.8e12, 989e12, 450e9},
};

// What programs reach of a vendor's figures: reads, matmuls of many rows, transfers. Assumed: no
// figure here was measured with these kernels.
constexpr double kReadShare = 0.84;
constexpr double kMatrixShare = 0.63;
constexpr double kLinkShare = 0.8;
// Of a small collective over NVLink, and of starting one op.
constexpr double kLinkLatency = 12e-6;
constexpr double kOpLatency = 3e-6;

}  // namespace

const GpuType* FindGpuType(const std::string& name) {
  for (const GpuType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

const GpuType* FindGpuModel(const std::string& model) {
  for (const GpuType& type : kTypes) {
    // "H200 NVL" and "GH200" are others.
    if (absl::EndsWith(model, absl::StrCat(" ", type.model))) return &type;
  }
  return nullptr;
}

std::string GpuTypeNames() {
  std::string out;
  for (const GpuType& type : kTypes) {
    const auto after = std::end(kTypes) - &type - 1;
    absl::StrAppend(&out, type.name, after > 1 ? ", " : after == 1 ? " or " : "");
  }
  return out;
}

NodeSpec GpuNode(const GpuType& type, int devices) {
  NodeSpec node;
  node.name = type.name;
  node.devices = devices;
  node.memory_bytes = type.memory_bytes;
  node.read_bytes_per_s = kReadShare * type.read_bytes_per_s;
  node.matrix_flops_per_s = kMatrixShare * type.matrix_flops_per_s;
  node.op_s = kOpLatency;
  node.link = {kLinkLatency, kLinkShare * type.link_bytes_per_s};
  return node;
}

}  // namespace phalanx::parallel
