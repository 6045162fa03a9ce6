#include "launcher/slurm.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace phalanx::launcher {
namespace {

constexpr size_t kMaxNodes = 65536;

// "a,b[1,2],c" at its commas outside of brackets.
std::vector<std::string> SplitOutsideBrackets(const std::string& text) {
  std::vector<std::string> out(1);
  bool inside = false;
  for (const char c : text) {
    if (c == '[') inside = true;
    if (c == ']') inside = false;
    if (c == ',' && !inside) {
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  return out;
}

// "1-3,07" to 1, 2, 3, 07; a number keeps the width of its range's first.
bool ExpandRanges(absl::string_view text, std::vector<std::string>& out) {
  for (const absl::string_view range : absl::StrSplit(text, ',')) {
    const std::vector<std::string> ends = absl::StrSplit(range, '-');
    int64_t first = 0;
    int64_t last = 0;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first < 0 || last < first ||
        last - first > static_cast<int64_t>(kMaxNodes)) {
      return false;
    }
    for (; first <= last; ++first) {
      std::string number = absl::StrCat(first);
      if (number.size() < ends.front().size()) {
        number.insert(0, ends.front().size() - number.size(), '0');
      }
      out.push_back(std::move(number));
    }
  }
  return true;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseNodeList(const std::string& text) {
  const auto fault = [&text] {
    return absl::InvalidArgumentError(
        absl::StrCat("SLURM_JOB_NODELIST: \"", text, "\" is not a list of nodes like n[1-3,5],m1"));
  };
  std::vector<std::string> out;
  for (const std::string& item : SplitOutsideBrackets(text)) {
    // Each bracket multiplies what is before it.
    std::vector<std::string> names = {""};
    absl::string_view rest = item;
    while (!rest.empty()) {
      const size_t open = rest.find('[');
      for (std::string& name : names) absl::StrAppend(&name, rest.substr(0, open));
      if (open == absl::string_view::npos) break;
      const size_t close = rest.find(']', open);
      std::vector<std::string> numbers;
      if (close == absl::string_view::npos ||
          !ExpandRanges(rest.substr(open + 1, close - open - 1), numbers) ||
          names.size() * numbers.size() > kMaxNodes) {
        return fault();
      }
      std::vector<std::string> longer;
      for (const std::string& name : names) {
        for (const std::string& number : numbers) longer.push_back(absl::StrCat(name, number));
      }
      names = std::move(longer);
      rest = rest.substr(close + 1);
    }
    for (std::string& name : names) {
      if (name.empty() || name.find(']') != std::string::npos) return fault();
      out.push_back(std::move(name));
    }
  }
  return out;
}

absl::StatusOr<std::vector<int>> ParseTaskCounts(const std::string& text) {
  std::vector<int> out;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(item, absl::MaxSplits("(x", 1));
    int count = 0;
    int times = 1;
    absl::string_view repeated = parts.second;
    const bool has_times = parts.first.size() < item.size();
    if (!absl::SimpleAtoi(parts.first, &count) || count < 1 ||
        (has_times &&
         (!absl::ConsumeSuffix(&repeated, ")") || !absl::SimpleAtoi(repeated, &times) ||
          times < 1 || times > static_cast<int>(kMaxNodes)))) {
      return absl::InvalidArgumentError(absl::StrCat(
          "SLURM_TASKS_PER_NODE: \"", text, "\" is not a list of task counts like 2(x3),1"));
    }
    out.insert(out.end(), times, count);
  }
  return out;
}

absl::StatusOr<std::vector<HostSlots>> AllocatedHosts(const Environment& environment) {
  const auto names = ParseNodeList(environment.slurm_nodes);
  if (!names.ok()) return names.status();
  const auto counts = ParseTaskCounts(environment.slurm_tasks_per_node);
  if (!counts.ok()) return counts.status();
  if (counts->size() != names->size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("SLURM_JOB_NODELIST names ", names->size(), " nodes (",
                     environment.slurm_nodes, "), but SLURM_TASKS_PER_NODE has ", counts->size(),
                     " (", environment.slurm_tasks_per_node, "); name the hosts with --hosts"));
  }
  std::vector<HostSlots> out;
  for (size_t i = 0; i < names->size(); ++i) out.push_back({(*names)[i], (*counts)[i]});
  return out;
}

absl::Status SettleHosts(const Environment& environment, ServiceOptions& options) {
  if (!environment.in_slurm_allocation || !options.hosts.empty() || !options.hostfile.empty()) {
    return absl::OkStatus();
  }
  const auto hosts = AllocatedHosts(environment);
  if (!hosts.ok()) return hosts.status();
  if (hosts->size() == 1 && hosts->front().host == environment.slurm_node_name) {
    return absl::OkStatus();
  }
  options.hosts = ToHostList(*hosts);
  return absl::OkStatus();
}

absl::Status SettleAllocation(const Environment& environment, ServiceOptions& options) {
  if (options.binding == "core" && options.rank.threads == 0) {
    return absl::InvalidArgumentError(
        "--binding core gives each rank as many cores as it has threads; say how many with "
        "--threads");
  }
  if (!environment.in_slurm_allocation) {
    if (options.workers != "srun") return absl::OkStatus();
    return absl::InvalidArgumentError(
        "--workers srun: this is no Slurm job (SLURM_JOB_ID is not set) or a task of one of its "
        "steps; use sbatch or salloc, see cluster-configs/slurm/");
  }
  if (options.workers == "threads" || options.workers == "external") return absl::OkStatus();
  if (IsProgram(options.srun)) options.auto_workers = "srun";
  return SettleHosts(environment, options);
}

}  // namespace phalanx::launcher
