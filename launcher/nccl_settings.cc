#include "launcher/nccl_settings.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx::launcher {
namespace {

constexpr char kPath[] = "cluster.nccl";

// "NVL" for DISTANCE_NVL.
template <typename E>
std::string Word(const google::protobuf::EnumDescriptor* type, E value) {
  return absl::AsciiStrToUpper(YamlName(*type->FindValueByNumber(static_cast<int>(value))));
}

// A name in a list that NCCL splits at commas.
bool IsListItem(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isgraph(c) && c != ',';
  });
}

}  // namespace

std::map<std::string, std::string> NcclEnvironment(const v1::NcclConfig& c) {
  std::map<std::string, std::string> out;
  const auto text = [&out](const char* name, const std::string& value) {
    if (!value.empty()) out[name] = value;
  };
  const auto number = [&out](const char* name, bool has, int value) {
    if (has) out[name] = absl::StrCat(value);
  };
  text("NCCL_SOCKET_IFNAME", c.socket_interface());
  text("NCCL_IB_HCA", absl::StrJoin(c.ib_hcas(), ","));
  number("NCCL_IB_GID_INDEX", c.has_ib_gid_index(), c.ib_gid_index());
  number("NCCL_IB_TC", c.has_ib_traffic_class(), c.ib_traffic_class());
  number("NCCL_IB_SL", c.has_ib_service_level(), c.ib_service_level());
  number("NCCL_IB_TIMEOUT", c.has_ib_timeout(), c.ib_timeout());
  number("NCCL_IB_RETRY_CNT", c.has_ib_retry_count(), c.ib_retry_count());
  number("NCCL_IB_QPS_PER_CONNECTION", c.has_ib_qps_per_connection(), c.ib_qps_per_connection());
  number("NCCL_IB_DISABLE", c.has_disable_ib(), c.disable_ib() ? 1 : 0);
  number("NCCL_P2P_DISABLE", c.has_disable_p2p(), c.disable_p2p() ? 1 : 0);
  number("NCCL_SHM_DISABLE", c.has_disable_shm(), c.disable_shm() ? 1 : 0);
  number("NCCL_NVLS_ENABLE", c.disable_nvls(), 0);
  text("NCCL_P2P_LEVEL", Word(v1::NcclConfig::Distance_descriptor(), c.p2p_level()));
  text("NCCL_NET_GDR_LEVEL",
       Word(v1::NcclConfig::Distance_descriptor(), c.gpu_direct_rdma_level()));
  number("NCCL_CROSS_NIC", c.has_cross_nic(), c.cross_nic());
  text("NCCL_NET_PLUGIN", c.net_plugin());
  text("NCCL_TOPO_FILE", c.topology_file());
  std::vector<std::string> off;
  if (c.disable_ll()) off.emplace_back("LL");
  if (c.disable_ll128()) off.emplace_back("LL128");
  if (!off.empty()) out["NCCL_PROTO"] = absl::StrCat("^", absl::StrJoin(off, ","));
  text("NCCL_DEBUG", Word(v1::NcclConfig::Debug_descriptor(), c.debug()));
  text("NCCL_DEBUG_SUBSYS", absl::StrJoin(c.debug_subsystems(), ","));
  text("NCCL_DEBUG_FILE", c.debug_file());
  return out;
}

void CheckNccl(const v1::NcclConfig& c, YamlFaults& faults) {
  const auto items = [&faults](const char* field, const auto& list) {
    for (int i = 0; i < list.size(); ++i) {
      if (IsListItem(list[i])) continue;
      faults.FaultAt(absl::StrCat(kPath, ".", field, "[", i, "]"),
                     absl::StrCat(Quoted(list[i]),
                                  " is not one name; write each as an item of its "
                                  "own"));
    }
  };
  items("ib_hcas", c.ib_hcas());
  items("debug_subsystems", c.debug_subsystems());
  if (c.gpu_direct_rdma_level() == v1::NcclConfig::DISTANCE_NVL) {
    faults.FaultAt(absl::StrCat(kPath, ".gpu_direct_rdma_level"),
                   "adapters are not on NVLink; expected loc, pix, pxb, phb or sys");
  }
  const bool tells =
      c.debug() == v1::NcclConfig::DEBUG_INFO || c.debug() == v1::NcclConfig::DEBUG_TRACE;
  if (c.debug_subsystems_size() > 0 && !tells) {
    faults.FaultAt(absl::StrCat(kPath, ".debug_subsystems"),
                   "has no effect unless debug is info or trace");
  }
}

}  // namespace phalanx::launcher
