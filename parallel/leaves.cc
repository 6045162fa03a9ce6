#include "parallel/leaves.h"

#include <algorithm>
#include <cassert>

namespace phalanx::parallel {

LeafPartition::LeafPartition(int64_t extent, int64_t granule, int num_leaves)
    : extent_(extent), granule_(granule), num_leaves_(num_leaves) {
  assert(extent >= 0 && granule >= 1 && num_leaves >= 1);
}

Range LeafPartition::leaf(int i) const { return elements({i, i + 1}); }

Range LeafPartition::elements(Range run) const {
  const int64_t granules = (extent_ + granule_ - 1) / granule_;
  const int64_t begin = run.begin * granules / num_leaves_ * granule_;
  const int64_t end = run.end * granules / num_leaves_ * granule_;
  return {std::min(begin, extent_), std::min(end, extent_)};
}

Range LeafRun(int rank, int size, int num_leaves) {
  assert(rank >= 0 && rank < size);
  const int64_t leaves = num_leaves;
  return {rank * leaves / size, (rank + 1) * leaves / size};
}

int64_t TreeSplit(Range node) {
  assert(node.size() >= 2);
  int64_t half = 1;
  while (half * 2 < node.size()) half *= 2;
  return node.begin + half;
}

namespace {

void CollectSubtrees(Range node, Range run, std::vector<Range>& out) {
  if (node.empty() || node.end <= run.begin || run.end <= node.begin) return;
  if (run.begin <= node.begin && node.end <= run.end) {
    out.push_back(node);
    return;
  }
  const int64_t split = TreeSplit(node);
  CollectSubtrees({node.begin, split}, run, out);
  CollectSubtrees({split, node.end}, run, out);
}

void Emit(Range node, const std::vector<Range>& parts, size_t& next, std::vector<int>& out) {
  assert(next < parts.size());
  if (parts[next] == node) {
    out.push_back(static_cast<int>(next++));
    return;
  }
  const int64_t split = TreeSplit(node);
  Emit({node.begin, split}, parts, next, out);
  Emit({split, node.end}, parts, next, out);
  out.push_back(kTreeAdd);
}

}  // namespace

std::vector<Range> WholeSubtrees(Range run, int num_leaves) {
  std::vector<Range> out;
  CollectSubtrees({0, num_leaves}, run, out);
  return out;
}

std::vector<int> TreeProgram(Range node, const std::vector<Range>& parts) {
  std::vector<int> out;
  size_t next = 0;
  Emit(node, parts, next, out);
  assert(next == parts.size());
  return out;
}

std::vector<int> LeafProgram(Range node, int first_operand) {
  std::vector<Range> leaves;
  for (int64_t i = node.begin; i < node.end; ++i) leaves.push_back({i, i + 1});
  std::vector<int> program = TreeProgram(node, leaves);
  for (int& op : program) {
    if (op != kTreeAdd) op += first_operand;
  }
  return program;
}

}  // namespace phalanx::parallel
