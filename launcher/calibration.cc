#include "launcher/calibration.h"

#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/yaml_reader.h"

namespace phalanx::launcher {
namespace {

constexpr double kNano = 1e-9;
constexpr double kMicro = 1e-6;

// The op of parallel/ that a collective of the file is; the enums' orders agree.
parallel::Collective ToCollective(v1::CollectiveMeasurement::Op op) {
  return static_cast<parallel::Collective>(static_cast<int>(op) - 1);
}

void CheckTogether(const v1::Calibration& file, YamlFaults& faults) {
  const auto need = [&](const std::string& path, const char* key) {
    if (!faults.Given(absl::StrCat(path, ".", key))) {
      faults.FaultAt(path, absl::StrCat(key, " is missing"));
    }
  };
  for (int i = 0; i < file.rates_size(); ++i) {
    const std::string path = absl::StrCat("rates[", i, "]");
    for (const char* key : {"ranks", "threads", "read_gb_per_s", "matrix_gflops"}) need(path, key);
    const auto check_points = [&](const char* name, const auto& points) {
      for (int p = 0; p < points.size(); ++p) {
        const std::string point = absl::StrCat(path, ".", name, "[", p, "]");
        need(point, "rows");
        need(point, "ns");
        if (p > 0 && points[p].rows() <= points[p - 1].rows()) {
          faults.FaultAt(point, "rows must rise from point to point");
        }
      }
    };
    check_points("matmul", file.rates(i).matmul());
    check_points("matmul_small", file.rates(i).matmul_small());
    check_points("attention", file.rates(i).attention());
  }
  for (int i = 0; i < file.collectives_size(); ++i) {
    const std::string path = absl::StrCat("collectives[", i, "]");
    for (const char* key : {"op", "members", "running", "times"}) need(path, key);
    const auto& times = file.collectives(i).times();
    for (int p = 0; p < times.size(); ++p) {
      const std::string point = absl::StrCat(path, ".times[", p, "]");
      need(point, "size");
      need(point, "us");
      if (p > 0 && times[p].size() <= times[p - 1].size()) {
        faults.FaultAt(point, "sizes must rise from point to point");
      }
    }
  }
}

template <typename Points>
parallel::Curve RateCurve(const Points& points) {
  std::vector<std::pair<double, double>> out;
  for (const v1::RatePoint& point : points) out.emplace_back(point.rows(), point.ns() * kNano);
  return parallel::Curve(std::move(out));
}

parallel::ComputeRates ToRates(const v1::RateMeasurement& in) {
  parallel::ComputeRates out;
  out.ranks = in.ranks();
  out.threads = in.threads();
  out.read_bytes_per_s = in.read_gb_per_s() * 1e9;
  out.matrix_flops_per_s = in.matrix_gflops() * 1e9;
  out.matmul_weight = RateCurve(in.matmul());
  out.matmul_small_weight = RateCurve(in.matmul_small());
  out.pack_element = in.pack_ns() * kNano;
  out.leaf_element = in.leaf_ns() * kNano;
  out.op = in.op_ns() * kNano;
  out.matmul_op = in.matmul_op_ns() * kNano;
  out.attention_pair = RateCurve(in.attention());
  if (out.attention_pair.empty()) {
    out.attention_pair = parallel::Curve(4 / out.matrix_flops_per_s);
  }
  out.attention_head = in.attention_head_ns() * kNano;
  out.norm_element = in.norm_ns() * kNano;
  out.silu_element = in.silu_ns() * kNano;
  out.rope_element = in.rope_ns() * kNano;
  out.copy_byte = in.copy_ns() * kNano;
  out.logit_element = in.logit_ns() * kNano;
  return out;
}

// A text that YAML reads as it is.
std::string YamlText(const std::string& text) {
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text), "\"");
}

}  // namespace

absl::StatusOr<v1::Calibration> ParseCalibration(const std::string& text, const std::string& path) {
  v1::Calibration out;
  YamlFaults faults(path);
  if (absl::Status status = ReadYaml(text, path, out, faults); !status.ok()) return status;
  CheckTogether(out, faults);
  if (absl::Status status = faults.status(); !status.ok()) return status;
  return out;
}

absl::StatusOr<v1::Calibration> ReadCalibration(const std::string& path) {
  const absl::StatusOr<std::string> text =
      ReadSmallFile(path, absl::StrCat("--calibration ", path));
  if (!text.ok()) return text.status();
  return ParseCalibration(*text, path);
}

std::string ToYaml(const v1::Calibration& c) {
  std::string out = "# Written by `phalanx plan --calibrate`; read with --calibration.\n";
  if (c.has_node()) absl::StrAppend(&out, "node: ", YamlText(c.node()), "\n");
  if (c.has_machine()) absl::StrAppend(&out, "machine: ", YamlText(c.machine()), "\n");
  if (c.has_cores()) absl::StrAppend(&out, "cores: ", c.cores(), "\n");
  if (c.has_weights()) absl::StrAppend(&out, "weights: ", c.weights(), "\n");
  if (c.has_handover_us()) absl::StrAppendFormat(&out, "handover_us: %.9g\n", c.handover_us());
  const auto points = [&out](const char* name, const auto& list) {
    if (list.empty()) return;
    absl::StrAppend(&out, "    ", name, ":\n");
    for (const v1::RatePoint& p : list) {
      absl::StrAppendFormat(&out, "      - { rows: %.9g, ns: %.9g }\n", p.rows(), p.ns());
    }
  };
  if (c.rates_size() > 0) absl::StrAppend(&out, "rates:\n");
  for (const v1::RateMeasurement& r : c.rates()) {
    absl::StrAppendFormat(&out, "  - ranks: %d\n    threads: %d\n", r.ranks(), r.threads());
    absl::StrAppendFormat(&out, "    read_gb_per_s: %.9g\n    matrix_gflops: %.9g\n",
                          r.read_gb_per_s(), r.matrix_gflops());
    points("matmul", r.matmul());
    points("matmul_small", r.matmul_small());
    const auto number = [&out](bool has, const char* name, double value) {
      if (has) absl::StrAppendFormat(&out, "    %s: %.9g\n", name, value);
    };
    number(r.has_pack_ns(), "pack_ns", r.pack_ns());
    number(r.has_leaf_ns(), "leaf_ns", r.leaf_ns());
    number(r.has_op_ns(), "op_ns", r.op_ns());
    number(r.has_matmul_op_ns(), "matmul_op_ns", r.matmul_op_ns());
    points("attention", r.attention());
    number(r.has_attention_head_ns(), "attention_head_ns", r.attention_head_ns());
    number(r.has_norm_ns(), "norm_ns", r.norm_ns());
    number(r.has_silu_ns(), "silu_ns", r.silu_ns());
    number(r.has_rope_ns(), "rope_ns", r.rope_ns());
    number(r.has_copy_ns(), "copy_ns", r.copy_ns());
    number(r.has_logit_ns(), "logit_ns", r.logit_ns());
  }
  if (c.collectives_size() > 0) absl::StrAppend(&out, "collectives:\n");
  for (const v1::CollectiveMeasurement& m : c.collectives()) {
    absl::StrAppendFormat(&out, "  - op: %s\n    members: %d\n    running: %d\n",
                          parallel::Name(ToCollective(m.op())), m.members(), m.running());
    if (m.across_nodes()) absl::StrAppend(&out, "    across_nodes: true\n");
    absl::StrAppend(&out, "    times:\n");
    for (const v1::TransferPoint& p : m.times()) {
      absl::StrAppendFormat(&out, "      - { size: %.9g, us: %.9g }\n", p.size(), p.us());
    }
  }
  return out;
}

absl::Status CheckCalibrationCanBeWritten(const std::string& path) {
  std::error_code ignored;
  const bool is_new = !std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
  const bool can = std::ofstream(path, std::ios::binary | std::ios::app).good();
  if (can && is_new) std::filesystem::remove(path, ignored);
  if (can) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--calibrate ", path, ": can't be written; name a file in a folder that is there"));
}

absl::Status WriteCalibration(const v1::Calibration& calibration, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << ToYaml(calibration);
  out.close();
  if (out.good()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("--calibrate ", path, ": can't be written"));
}

absl::Status Apply(const v1::Calibration& calibration, parallel::ClusterSpec& cluster) {
  std::vector<parallel::ComputeRates> rates;
  for (const v1::RateMeasurement& measured : calibration.rates()) {
    rates.push_back(ToRates(measured));
  }
  bool used = false;
  for (parallel::NodeSpec& node : cluster.nodes) {
    if (calibration.has_node() && calibration.node() != node.name) continue;
    node.measured = rates;
    used = true;
  }
  if (!used) {
    return absl::InvalidArgumentError(absl::StrCat("the calibration is of node ",
                                                   calibration.node(),
                                                   ", but the cluster has no node of that name"));
  }
  for (const v1::CollectiveMeasurement& measured : calibration.collectives()) {
    parallel::CollectiveTimes times;
    times.op = ToCollective(measured.op());
    times.members = measured.members();
    times.running = measured.running();
    times.across_nodes = measured.across_nodes();
    std::vector<std::pair<double, double>> points;
    for (const v1::TransferPoint& point : measured.times()) {
      points.emplace_back(point.size(), point.us() * kMicro);
    }
    times.seconds = parallel::Curve(std::move(points));
    cluster.collectives.push_back(std::move(times));
  }
  if (calibration.has_handover_us()) cluster.handover_s = calibration.handover_us() * kMicro;
  return absl::OkStatus();
}

}  // namespace phalanx::launcher
