#include "parallel/gpu_types.h"

#include <string>

#include "gtest/gtest.h"

namespace phalanx::parallel {
namespace {

TEST(GpuTypes, AreFoundByTheirNames) {
  for (const char* name : {"a100-80g", "h100-sxm", "h200"}) {
    ASSERT_NE(FindGpuType(name), nullptr) << name;
    EXPECT_STREQ(FindGpuType(name)->name, name);
  }
  EXPECT_EQ(FindGpuType("h100"), nullptr);
  EXPECT_EQ(FindGpuType(""), nullptr);
  EXPECT_EQ(GpuTypeNames(), "a100-80g, h100-sxm or h200");
}

TEST(GpuTypes, AreFoundByWhatTheDriverCallsThem) {
  EXPECT_EQ(FindGpuModel("NVIDIA A100-SXM4-80GB"), FindGpuType("a100-80g"));
  EXPECT_EQ(FindGpuModel("NVIDIA H100 80GB HBM3"), FindGpuType("h100-sxm"));
  EXPECT_EQ(FindGpuModel("NVIDIA H200"), FindGpuType("h200"));
  for (const char* other : {"NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA H100 PCIe",
                            "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA T4", ""}) {
    EXPECT_EQ(FindGpuModel(other), nullptr) << other;
  }
}

TEST(GpuTypes, ANodeReachesLessThanTheDataSheet) {
  for (const char* name : {"a100-80g", "h100-sxm", "h200"}) {
    const GpuType& type = *FindGpuType(name);
    const NodeSpec node = GpuNode(type, 4);
    EXPECT_EQ(node.devices, 4);
    EXPECT_FALSE(node.shared);
    EXPECT_EQ(node.memory_bytes, type.memory_bytes);
    for (const double share : {node.read_bytes_per_s / type.read_bytes_per_s,
                               node.matrix_flops_per_s / type.matrix_flops_per_s,
                               node.link.bytes_per_s / type.link_bytes_per_s}) {
      EXPECT_GT(share, 0.5);
      EXPECT_LT(share, 1);
    }
    EXPECT_GT(node.link.latency_s, 0);
    EXPECT_GT(node.op_s, 0);
  }
}

TEST(GpuTypes, ANewerOneHasMoreOfEverything) {
  const GpuType& a100 = *FindGpuType("a100-80g");
  const GpuType& h100 = *FindGpuType("h100-sxm");
  const GpuType& h200 = *FindGpuType("h200");
  EXPECT_LT(a100.read_bytes_per_s, h100.read_bytes_per_s);
  EXPECT_LT(h100.read_bytes_per_s, h200.read_bytes_per_s);
  EXPECT_LT(a100.matrix_flops_per_s, h100.matrix_flops_per_s);
  EXPECT_EQ(h100.matrix_flops_per_s, h200.matrix_flops_per_s);
  EXPECT_LT(h100.memory_bytes, h200.memory_bytes);
}

}  // namespace
}  // namespace phalanx::parallel
