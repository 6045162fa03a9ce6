#include "launcher/nccl_settings.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/config.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StartsWith;

// What the ranks are given where cluster.nccl is `text`.
std::map<std::string, std::string> Variables(const std::string& text) {
  const auto file = ParseConfig(absl::StrCat("cluster: {nccl: {", text, "}}"), "c.yaml");
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return {};
  return NcclEnvironment(file->config.cluster().nccl());
}

std::vector<std::string> Faults(const std::string& text) {
  const auto file = ParseConfig(text, "c.yaml");
  if (file.ok()) return {};
  return absl::StrSplit(std::string(file.status().message()), '\n');
}

TEST(NcclEnvironment, IsEmptyWhereNothingIsSaid) { EXPECT_THAT(Variables(""), IsEmpty()); }

TEST(NcclEnvironment, EveryFieldIsAVariable) {
  EXPECT_THAT(
      Variables("socket_interface: =ib0, ib_hcas: [mlx5_0, \"mlx5_1:1\"], ib_gid_index: 3, "
                "ib_traffic_class: 106, ib_service_level: 1, ib_timeout: 22, ib_retry_count: 7, "
                "ib_qps_per_connection: 4, disable_ib: true, disable_p2p: true, "
                "disable_shm: true, disable_nvls: true, p2p_level: nvl, "
                "gpu_direct_rdma_level: phb, cross_nic: 1, net_plugin: ofi, "
                "topology_file: /t.xml, disable_ll: true, disable_ll128: true, debug: info, "
                "debug_subsystems: [INIT, NET], debug_file: /tmp/nccl.%h.%p"),
      ElementsAre(Pair("NCCL_CROSS_NIC", "1"), Pair("NCCL_DEBUG", "INFO"),
                  Pair("NCCL_DEBUG_FILE", "/tmp/nccl.%h.%p"), Pair("NCCL_DEBUG_SUBSYS", "INIT,NET"),
                  Pair("NCCL_IB_DISABLE", "1"), Pair("NCCL_IB_GID_INDEX", "3"),
                  Pair("NCCL_IB_HCA", "mlx5_0,mlx5_1:1"), Pair("NCCL_IB_QPS_PER_CONNECTION", "4"),
                  Pair("NCCL_IB_RETRY_CNT", "7"), Pair("NCCL_IB_SL", "1"),
                  Pair("NCCL_IB_TC", "106"), Pair("NCCL_IB_TIMEOUT", "22"),
                  Pair("NCCL_NET_GDR_LEVEL", "PHB"), Pair("NCCL_NET_PLUGIN", "ofi"),
                  Pair("NCCL_NVLS_ENABLE", "0"), Pair("NCCL_P2P_DISABLE", "1"),
                  Pair("NCCL_P2P_LEVEL", "NVL"), Pair("NCCL_PROTO", "^LL,LL128"),
                  Pair("NCCL_SHM_DISABLE", "1"), Pair("NCCL_SOCKET_IFNAME", "=ib0"),
                  Pair("NCCL_TOPO_FILE", "/t.xml")));
  // As many as the schema has, but that two switches share a variable.
  EXPECT_EQ(v1::NcclConfig::descriptor()->field_count(), 21 + 1);
}

TEST(NcclEnvironment, ProtocolsCanOnlyBeTurnedOff) {
  EXPECT_THAT(Variables("disable_ll128: true"), ElementsAre(Pair("NCCL_PROTO", "^LL128")));
  EXPECT_THAT(Variables("disable_ll128: false, disable_nvls: false"), IsEmpty());
  EXPECT_THAT(Faults("cluster: {nccl: {protocol: LL128}}"),
              ElementsAre(HasSubstr("unknown key \"protocol\"")));
}

TEST(CheckNccl, FaultsHaveTheirPlace) {
  EXPECT_THAT(Faults("cluster:\n  nccl:\n    ib_hcas: [\"mlx5_0,mlx5_1\"]\n"
                     "    gpu_direct_rdma_level: nvl\n    debug_subsystems: [NET]\n"
                     "    cross_nic: 3\n    p2p_level: far\n"),
              ElementsAre("c.yaml: 5 faults in the configuration",
                          StartsWith("c.yaml:3:15: cluster.nccl.ib_hcas[0]: \"mlx5_0,mlx5_1\" is "
                                     "not one name"),
                          StartsWith("c.yaml:4:28: cluster.nccl.gpu_direct_rdma_level: adapters "
                                     "are not on NVLink"),
                          StartsWith("c.yaml:5:23: cluster.nccl.debug_subsystems: has no effect"),
                          HasSubstr("cross_nic: \"3\" is out of range; expected 0 to 2"),
                          HasSubstr("p2p_level: expected loc or nvl or pix or pxb or phb or sys")));
}

TEST(CheckNccl, SettingsWithoutEffectAreRefused) {
  EXPECT_THAT(Faults("worker: {device: cpu, gpu_memory_fraction: 0.5, device_comm: nccl}\n"
                     "cluster: {nccl: {cross_nic: 1}}\n"),
              ElementsAre("c.yaml: 3 faults in the configuration",
                          HasSubstr("worker.gpu_memory_fraction: has no effect where worker.device "
                                    "is cpu"),
                          HasSubstr("worker.device_comm: has no effect"),
                          HasSubstr("cluster.nccl: has no effect where worker.device is cpu")));
  EXPECT_THAT(Faults("worker: {device: cuda, device_comm: staged}\n"
                     "cluster: {nccl: {cross_nic: 1}}\n"),
              ElementsAre(HasSubstr("has no effect where worker.device_comm is staged")));
  EXPECT_THAT(Faults("cluster: {nccl: {cross_nic: 1}, launcher: {kind: threads}}\n"),
              ElementsAre(HasSubstr("cluster.nccl: has no effect where cluster.launcher.kind is "
                                    "threads")));
  EXPECT_THAT(Faults("cluster: {nccl: {debug: warn}, launcher: {pass_environment: [A, "
                     "NCCL_DEBUG]}}\n"),
              ElementsAre(HasSubstr("pass_environment[1]: NCCL_DEBUG is set by cluster.nccl")));
}

}  // namespace
}  // namespace phalanx::launcher
