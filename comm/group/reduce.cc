#include "comm/group/reduce.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace phalanx::comm {
namespace {

// Floats of one block: a few blocks of temporaries stay in the first-level cache.
constexpr int64_t kBlock = 1024;

// `out` may be `left` or `right`, so no __restrict; GCC checks for overlap once and vectorises.
void Add(const float* left, const float* right, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

}  // namespace

absl::Status CheckPlan(const ReducePlan& plan, int members) {
  if (static_cast<int>(plan.parts_per_member.size()) != members) {
    return absl::InvalidArgumentError(absl::StrCat("the plan has parts for ",
                                                   plan.parts_per_member.size(),
                                                   " members, the group has ", members));
  }
  int64_t total = 0;
  for (const int parts : plan.parts_per_member) {
    if (parts < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the plan gives a member ", parts, " parts; expected 0 or more"));
    }
    total += parts;
  }
  int64_t depth = 0;
  for (const int op : plan.program) {
    if (op >= 0 && op < total) {
      ++depth;
    } else if (op == -1 && depth >= 2) {
      --depth;
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "the plan's program has operation ", op, " with ", depth, " values on its stack and ",
          total, " operands; expected an operand below that or -1 with two values"));
    }
  }
  if (depth != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the plan's program leaves ", depth, " values; expected 1"));
  }
  return absl::OkStatus();
}

int TotalParts(const ReducePlan& plan) {
  int total = 0;
  for (const int parts : plan.parts_per_member) total += parts;
  return total;
}

uint64_t Digest(uint64_t seed, absl::Span<const int64_t> values) {
  uint64_t hash = seed ^ 0xcbf29ce484222325;
  for (const int64_t value : values) hash = (hash ^ static_cast<uint64_t>(value)) * 0x100000001b3;
  return hash;
}

uint64_t Digest(uint64_t seed, const ReducePlan& plan) {
  uint64_t hash = seed ^ 0xcbf29ce484222325;
  for (const int parts : plan.parts_per_member) {
    hash = (hash ^ static_cast<uint32_t>(parts)) * 0x100000001b3;
  }
  for (const int op : plan.program) hash = (hash ^ static_cast<uint32_t>(op)) * 0x100000001b3;
  return hash;
}

void TreeReducer::Run(const std::vector<int>& program, absl::Span<const float* const> operands,
                      float* out, int64_t count) {
  if (program.size() == 1) {
    if (count > 0) std::memmove(out, operands[program[0]], count * sizeof(float));
    return;
  }
  // A value on the stack at depth d is an operand's block, read where it lies, or lies in block d
  // of the scratch memory. At most one push more than adds is pending, so depth <= program size.
  const size_t needed = (program.size() / 2 + 1) * kBlock;
  if (scratch_.size() < needed) scratch_.resize(needed);
  stack_.resize(program.size());
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    size_t depth = 0;
    for (size_t i = 0; i < program.size(); ++i) {
      if (program[i] >= 0) {
        stack_[depth++] = operands[program[i]] + begin;
        continue;
      }
      const float* right = stack_[--depth];
      const float* left = stack_[depth - 1];
      // The root goes straight to `out`: an operand that is `out` is not needed any more for this
      // block.
      float* sum = i + 1 == program.size() ? out + begin : &scratch_[(depth - 1) * kBlock];
      Add(left, right, sum, n);
      stack_[depth - 1] = sum;
    }
  }
}

void OrInto(uint32_t* data, const uint32_t* other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) data[i] |= other[i];
}

}  // namespace phalanx::comm
