#include "launcher/placement.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace phalanx::launcher {

absl::StatusOr<std::vector<HostSlots>> ParseHosts(const std::string& text) {
  std::vector<HostSlots> out;
  for (const absl::string_view spaced : absl::StrSplit(text, ',')) {
    const absl::string_view item = absl::StripAsciiWhitespace(spaced);
    const std::pair<std::string, std::string> parts = absl::StrSplit(item, absl::MaxSplits(':', 1));
    HostSlots host{parts.first, 1};
    const bool has_slots = parts.first.size() < item.size();
    if (host.host.empty() || absl::StrContains(host.host, ' ') ||
        (has_slots && (!absl::SimpleAtoi(parts.second, &host.slots) || host.slots < 1))) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--hosts: \"", item, "\" is not HOST or HOST:SLOTS; write for example a:2,b:2"));
    }
    out.push_back(std::move(host));
  }
  return out;
}

absl::StatusOr<std::vector<HostSlots>> ReadHostfile(const std::string& path) {
  std::ifstream in(path);
  if (!in) return absl::NotFoundError(absl::StrCat("--hostfile ", path, ": can't be read"));
  std::vector<HostSlots> out;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    line.resize(std::min(line.size(), line.find('#')));
    const std::string joined =
        absl::StrJoin(absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty()), " ");
    // mpirun reads "slots = 2", too.
    const std::vector<std::string> words =
        absl::StrSplit(absl::StrReplaceAll(joined, {{" =", "="}, {"= ", "="}, {" = ", "="}}), ' ',
                       absl::SkipEmpty());
    if (words.empty()) continue;
    HostSlots host{words[0], 1};
    for (size_t i = 1; i < words.size(); ++i) {
      absl::string_view word = words[i];
      // mpirun's names for one thing.
      if (!absl::ConsumePrefix(&word, "slots=") && !absl::ConsumePrefix(&word, "cpu=") &&
          !absl::ConsumePrefix(&word, "count=")) {
        if (absl::StartsWith(word, "slot=")) {
          return absl::InvalidArgumentError(
              absl::StrCat("--hostfile ", path, ":", number, ": \"", word, "\" is not slots=N"));
        }
        continue;
      }
      if (!absl::SimpleAtoi(word, &host.slots) || host.slots < 1) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--hostfile ", path, ":", number, ": \"", words[i], "\" is not slots=N with N from 1"));
      }
    }
    out.push_back(std::move(host));
  }
  if (out.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--hostfile ", path, ": names no host; write one a line, HOST slots=N"));
  }
  return out;
}

std::string ToHostList(const std::vector<HostSlots>& hosts) {
  return absl::StrJoin(hosts, ",", [](std::string* out, const HostSlots& host) {
    absl::StrAppend(out, host.host, ":", host.slots);
  });
}

absl::StatusOr<std::vector<Placement>> PlaceReplicas(const std::vector<HostSlots>& hosts,
                                                     int replicas, int ranks_per_replica) {
  int64_t slots = 0;
  for (const HostSlots& host : hosts) slots += host.slots;
  const int64_t needed = int64_t{replicas} * ranks_per_replica;
  if (slots < needed) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the hosts have ", slots, slots == 1 ? " slot" : " slots", ", but ", replicas,
        " replicas of ", ranks_per_replica, ranks_per_replica == 1 ? " rank" : " ranks", " need ",
        needed, "; add hosts or slots, or take a smaller layout"));
  }
  std::vector<Placement> out(replicas);
  std::map<std::string, int> ranks;  // by host; one may be named twice
  size_t next = 0;
  int left = hosts[0].slots;
  for (Placement& placement : out) {
    for (int missing = ranks_per_replica; missing > 0;) {
      if (left == 0) left = hosts[++next].slots;
      const int taken = std::min(left, missing);
      placement.hosts.push_back({hosts[next].host, taken, ranks[hosts[next].host]});
      ranks[hosts[next].host] += taken;
      left -= taken;
      missing -= taken;
    }
  }
  for (Placement& placement : out) {
    for (const HostSlots& host : placement.hosts) {
      placement.ranks_per_host = std::max(placement.ranks_per_host, ranks[host.host]);
    }
  }
  return out;
}

std::vector<HostSlots> HostsToTry(const std::vector<HostSlots>& hosts, int fruitless) {
  if (fruitless < 2 || hosts.empty()) return hosts;
  const size_t count = std::max<size_t>(1, hosts.size() >> std::min(fruitless - 1, 31));
  if (fruitless % 2 == 0) return {hosts.begin(), hosts.begin() + count};
  return {hosts.end() - count, hosts.end()};
}

}  // namespace phalanx::launcher
