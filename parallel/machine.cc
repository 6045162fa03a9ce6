#include "parallel/machine.h"

#include <algorithm>
#include <cmath>

namespace phalanx::parallel {
namespace {

// Sums of at most this many bytes of parts go to everybody at once.
constexpr double kReduceAloneBytes = 256 << 10;
// What an op costs that moves an element of the residual stream through memory.
constexpr double kNormBytes = 14;
constexpr double kSiluBytes = 10;
constexpr double kRopeBytes = 8;
constexpr double kLogitBytes = 8;
// Attention reaches this share of the matmuls' rate.
constexpr double kAttentionShare = 0.5;

ComputeRates Stated(const NodeSpec& node, double read, double flops) {
  ComputeRates out;
  out.read_bytes_per_s = read;
  out.matrix_flops_per_s = flops;
  out.op = node.op_s;
  out.norm_element = kNormBytes / read;
  out.silu_element = kSiluBytes / read;
  out.rope_element = kRopeBytes / read;
  out.copy_byte = 2 / read;
  out.logit_element = kLogitBytes / read;
  out.attention_pair = Curve(2 / (kAttentionShare * flops));
  return out;
}

Curve Scaled(const Curve& curve, double by) {
  std::vector<std::pair<double, double>> points = curve.points();
  for (auto& [x, y] : points) y *= by;
  return Curve(std::move(points));
}

ComputeRates Scaled(const ComputeRates& rates, double slower) {
  ComputeRates out = rates;
  out.read_bytes_per_s /= slower;
  out.matrix_flops_per_s /= slower;
  out.matmul_weight = Scaled(rates.matmul_weight, slower);
  out.matmul_small_weight = Scaled(rates.matmul_small_weight, slower);
  out.attention_pair = Scaled(rates.attention_pair, slower);
  for (double* value :
       {&out.pack_element, &out.leaf_element, &out.attention_head, &out.norm_element,
        &out.silu_element, &out.rope_element, &out.copy_byte, &out.logit_element}) {
    *value *= slower;
  }
  return out;
}

}  // namespace

const char* Name(Collective op) {
  switch (op) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kGather:
      return "gather";
    case Collective::kSend:
      return "send";
  }
  return "";
}

ComputeRates NodeSpec::Rates(int running, int threads) const {
  if (!shared) {
    // A GPU is its rank's own: whatever was measured holds for any number of ranks.
    if (!measured.empty()) return measured.front();
    return Stated(*this, read_bytes_per_s, matrix_flops_per_s);
  }
  running = std::max(running, 1);
  threads = std::max(threads, 1);
  // Cores that one rank has to itself, on average; never more than its threads.
  const auto own_cores = [this](int ranks, int threads_each) {
    return std::min<double>(threads_each, static_cast<double>(cores) / ranks);
  };
  const double mine = own_cores(running, threads);
  const ComputeRates* best = nullptr;
  double least = 0;
  for (const ComputeRates& rates : measured) {
    const double distance =
        std::abs(std::log(static_cast<double>(rates.ranks * rates.threads) / (running * threads))) +
        std::abs(std::log(static_cast<double>(rates.threads) / threads)) * 0.5;
    if (best == nullptr || distance < least) {
      best = &rates;
      least = distance;
    }
  }
  if (best != nullptr) {
    if (best->ranks == running && best->threads == threads) return *best;
    return Scaled(*best, own_cores(best->ranks, best->threads) / mine);
  }
  // Half of the cores are taken to saturate the memory.
  const double active = std::min<double>(cores, static_cast<double>(running) * threads);
  const double read = read_bytes_per_s * std::min(1.0, 2 * active / cores) / running;
  return Stated(*this, read, matrix_flops_per_s * active / cores / running);
}

int ClusterSpec::devices() const {
  int total = 0;
  for (const NodeSpec& node : nodes) total += node.devices;
  return total;
}

int ClusterSpec::ThreadsOn(const NodeSpec& node, int ranks) const {
  if (!node.shared) return 1;
  return threads > 0 ? threads : std::max(1, node.cores / std::max(1, ranks));
}

double CollectiveSeconds(const ClusterSpec& cluster, const GroupPlace& place, Collective op,
                         double bytes, int parts) {
  const int n = place.members;
  if (n < 2) return 0;
  const CollectiveTimes* best = nullptr;
  double least = 0;
  for (const CollectiveTimes& times : cluster.collectives) {
    if (times.op != op || times.across_nodes != place.across_nodes()) continue;
    const double distance =
        2 * std::abs(std::log(static_cast<double>(times.members) / n)) +
        std::abs(std::log(static_cast<double>(times.running) / std::max(place.running, 1)));
    if (best == nullptr || distance < least) {
      best = &times;
      least = distance;
    }
  }
  if (best != nullptr) {
    // Time goes with the members that are waited for and, beyond the cores, with who else runs.
    return best->seconds.At(bytes) * n / best->members;
  }

  const NodeSpec& node = *place.node;
  // Bytes that one member receives from all others, and steps that it waits for.
  double received = 0;
  int steps = 1;
  switch (op) {
    case Collective::kAllReduce: {
      const double all = parts * bytes * (n - 1) / n;
      if (parts * bytes <= kReduceAloneBytes) {
        received = all;
      } else {
        received = all / n + bytes * (n - 1) / n;
        steps = 2;
      }
      break;
    }
    case Collective::kReduceScatter:
      received = parts * bytes * (n - 1) / n / n;
      break;
    case Collective::kAllGather:
    case Collective::kGather:
      received = bytes * (n - 1);
      break;
    case Collective::kAllToAll:
      received = bytes * (n - 1) / n;
      break;
    case Collective::kSend:
      received = bytes;
      break;
  }
  if (!place.across_nodes()) {
    // Ranks that take turns on cores are woken one after another.
    const double turns =
        node.shared ? std::max(1.0, static_cast<double>(place.running) / node.cores) : 1.0;
    return steps * node.link.latency_s * turns + received * turns / node.link.bytes_per_s;
  }
  // The share that comes from other nodes goes through the node's network, together with what the
  // node's other ranks receive.
  const double outside =
      op == Collective::kSend ? 1.0 : static_cast<double>(n - place.per_node) / (n - 1);
  const double network = received * outside * std::max(1, place.running) / node.network.bytes_per_s;
  const double inside = received * (1 - outside) / node.link.bytes_per_s;
  return steps * node.network.latency_s + std::max(network, inside);
}

}  // namespace phalanx::parallel
