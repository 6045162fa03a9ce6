// Leaves and the reduction tree: rule R2 of the design, "a sum over a dimension that may be sharded
// has fixed leaves".
//
// A dimension of n granules (whole heads, runs of 32 channels, runs of 32 vocabulary rows) is cut
// into L leaves, leaf i = [floor(i*n/L), floor((i+1)*n/L)) in granules. Each leaf is summed from
// zero; leaves are added by one fixed binary tree over [0, L) that splits [a, b) at a + the largest
// power of two below b - a. A rank owns a contiguous run of leaves, adds up the largest whole
// subtrees of its run and sends those; whoever finishes the tree gets the same bits as one rank.
//
// Everything here is arithmetic on values; nothing allocates beyond the vectors returned.
#ifndef PHALANX_PARALLEL_LEAVES_H_
#define PHALANX_PARALLEL_LEAVES_H_

#include <cstdint>
#include <vector>

namespace phalanx::parallel {

// A half-open interval [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

// The cut of one dimension into leaves.
class LeafPartition {
 public:
  // `extent`: elements of the dimension; `granule`: elements that stay together (>= 1); the last
  // granule may be partial. `num_leaves`: L >= 1. Precondition: extent >= 0.
  LeafPartition(int64_t extent, int64_t granule, int num_leaves);

  int num_leaves() const { return num_leaves_; }
  int64_t extent() const { return extent_; }
  int64_t granule() const { return granule_; }

  // Leaf `i`'s elements, clipped to the extent. May be empty.
  Range leaf(int i) const;
  // The elements of a run of leaves [run.begin, run.end).
  Range elements(Range run) const;

 private:
  int64_t extent_;
  int64_t granule_;
  int num_leaves_;
};

// The contiguous run of leaves that member `rank` of `size` owns: [floor(r*L/size),
// floor((r+1)*L/size)). Precondition: 0 <= rank < size <= num_leaves (else runs may be empty).
Range LeafRun(int rank, int size, int num_leaves);

// Where the tree splits [a, b): a + the largest power of two below b - a. Precondition: b - a >= 2.
int64_t TreeSplit(Range node);

// The largest whole subtrees of the tree over [0, num_leaves) that tile `run`, in rising order.
std::vector<Range> WholeSubtrees(Range run, int num_leaves);

// A tree as a postfix program over a stack: i >= 0 pushes operand i, kTreeAdd pops right, pops left
// and pushes left + right. Plain integers, so that kernels/ and comm/ can run one without knowing
// of leaves.
inline constexpr int kTreeAdd = -1;

// The program that adds `parts` (disjoint whole subtrees in rising order that tile `node`) into
// `node`. With parts = every leaf of `node` it is the tree of the node itself.
std::vector<int> TreeProgram(Range node, const std::vector<Range>& parts);

// The program over the leaves of `node`, operands counted from `first_operand`.
std::vector<int> LeafProgram(Range node, int first_operand);

// Runs `program` with `push(i)` giving operand i and `add(left, right)` the sum; returns the root.
// `T` may be any value: a float, a (max, sum) pair. Precondition: `program` is not empty.
template <typename T, typename Push, typename Add>
T RunTree(const std::vector<int>& program, Push push, Add add) {
  std::vector<T> stack;
  for (const int op : program) {
    if (op == kTreeAdd) {
      T right = stack.back();
      stack.pop_back();
      stack.back() = add(stack.back(), right);
    } else {
      stack.push_back(push(op));
    }
  }
  return stack.back();
}

}  // namespace phalanx::parallel

#endif  // PHALANX_PARALLEL_LEAVES_H_
