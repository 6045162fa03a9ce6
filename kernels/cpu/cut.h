// Cuts of a row of logits on the CPU.
#ifndef PHALANX_KERNELS_CPU_CUT_H_
#define PHALANX_KERNELS_CPU_CUT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/choosing.h"
#include "kernels/cpu/ops.h"

namespace phalanx::kernels::cpu {

// Memory that is kept from call to call.
struct CutScratch {
  std::vector<float> weights;       // of a row
  std::vector<uint64_t> sums;       // units of each chunk of a row
  std::vector<int32_t> candidates;  // ids
};

// As above, of ChooseRows.
struct ChoiceScratch {
  CutScratch cut;
  std::vector<Choice> choices;  // the best of each chunk of a row
};

// What `row` leaves of `logits`; HasCut(row).
Cut CutRow(ThreadPool& pool, const OpTable& ops, CutScratch& scratch,
           absl::Span<const float> logits, const ChoiceRow& row);

}  // namespace phalanx::kernels::cpu

#endif  // PHALANX_KERNELS_CPU_CUT_H_
