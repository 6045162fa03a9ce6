#include "parallel/mesh.h"

#include <cassert>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace phalanx::parallel {
namespace {

constexpr int kMaxRanks = 65536;

}  // namespace

std::string Layout::ToString() const {
  std::vector<std::string> parts;
  const std::pair<const char*, int> axes[] = {
      {"dp", dp}, {"pp", pp}, {"sp", sp}, {"tp", tp}, {"ep", ep}};
  for (const auto& [name, size] : axes) {
    if (size > 1) parts.push_back(absl::StrCat(name, "=", size));
  }
  return parts.empty() ? "tp=1" : absl::StrJoin(parts, ",");
}

absl::StatusOr<Layout> ParseLayout(std::string_view text) {
  Layout layout;
  std::set<std::string> seen;
  for (absl::string_view item : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    item = absl::StripAsciiWhitespace(item);
    const std::pair<absl::string_view, absl::string_view> kv =
        absl::StrSplit(item, absl::MaxSplits('=', 1));
    const std::string axis(absl::StripAsciiWhitespace(kv.first));
    int size = 0;
    if (!absl::SimpleAtoi(kv.second, &size) || size < 1 || size > 65536) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout: \"", item, "\" is not AXIS=SIZE with a size of 1 to 65536; ",
                       "write for example tp=2,pp=2"));
    }
    if (!seen.insert(axis).second) {
      return absl::InvalidArgumentError(absl::StrCat("layout: axis ", axis, " is given twice"));
    }
    if (axis == "dp") {
      layout.dp = size;
    } else if (axis == "pp") {
      layout.pp = size;
    } else if (axis == "sp") {
      layout.sp = size;
    } else if (axis == "tp") {
      layout.tp = size;
    } else if (axis == "ep") {
      layout.ep = size;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("layout: unknown axis \"", axis, "\"; the axes are dp, pp, sp, tp and ep"));
    }
  }
  // Each step stays within 64 bits: no factor is above the limit.
  int64_t ranks = 1;
  for (const int size : {layout.tp, layout.sp, layout.pp, layout.dp}) {
    ranks *= size;
    if (ranks > kMaxRanks) {
      return absl::InvalidArgumentError(
          absl::StrCat("layout: \"", absl::string_view(text.data(), text.size()),
                       "\" has more than ", kMaxRanks, " ranks; take smaller axes"));
    }
  }
  return layout;
}

MeshCoordinates Mesh::coordinates(int rank) const {
  assert(rank >= 0 && rank < size());
  MeshCoordinates at;
  at.t = rank % layout_.tp;
  at.s = rank / layout_.tp % layout_.sp;
  at.p = rank / (layout_.tp * layout_.sp);
  return at;
}

int Mesh::rank(MeshCoordinates at) const { return (at.p * layout_.sp + at.s) * layout_.tp + at.t; }

}  // namespace phalanx::parallel
