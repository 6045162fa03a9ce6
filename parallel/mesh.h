// The mesh: how the ranks of one worker group are arranged. A value.
//
// Axes pp, sp, tp, with tp fastest so that it stays inside a node: rank = (p * sp + s) * tp + t.
// ep partitions the sp x tp group; etp = (sp * tp) / ep ranks share each expert. dp counts worker
// groups and is not part of a group's mesh arithmetic.
#ifndef PHALANX_PARALLEL_MESH_H_
#define PHALANX_PARALLEL_MESH_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx::parallel {

// Sizes of the axes, as written in `--layout tp=2,pp=2`. Left-out axes are 1; ep = 0 means "the
// largest that fits", chosen when the model is known.
struct Layout {
  int dp = 1;
  int pp = 1;
  int sp = 1;
  int tp = 1;
  int ep = 0;

  // Ranks of one worker group.
  int group_size() const { return pp * sp * tp; }
  // Ranks of all worker groups.
  int world_size() const { return dp * group_size(); }
  // "tp=2,pp=2": axes of size 1 left out, "tp=1" when all are.
  std::string ToString() const;
  friend bool operator==(const Layout&, const Layout&) = default;
};

// Parses "tp=2,pp=2". INVALID_ARGUMENT names the unknown axis, repeated axis or bad number, and
// says where there would be more than 65536 ranks.
absl::StatusOr<Layout> ParseLayout(std::string_view text);

// One rank's place in its worker group.
struct MeshCoordinates {
  int p = 0;  // pipeline stage
  int s = 0;  // sequence rank
  int t = 0;  // tensor rank
  friend bool operator==(const MeshCoordinates&, const MeshCoordinates&) = default;
};

class Mesh {
 public:
  // Precondition: every axis of `layout` >= 1 (ep may be 0).
  explicit Mesh(Layout layout) : layout_(layout) {}

  const Layout& layout() const { return layout_; }
  int size() const { return layout_.group_size(); }
  // Precondition: 0 <= rank < size().
  MeshCoordinates coordinates(int rank) const;
  int rank(MeshCoordinates at) const;

 private:
  Layout layout_;
};

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_MESH_H_
