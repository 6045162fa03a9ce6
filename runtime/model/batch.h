// The rows of one forward pass.
#ifndef PHALANX_RUNTIME_MODEL_BATCH_H_
#define PHALANX_RUNTIME_MODEL_BATCH_H_

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace phalanx::model {

// Rows of all sequences side by side. Block tables are borrowed from whoever made the batch.
struct Batch {
  // [m] token ids, each in [0, vocab_size); or -1 - s: chosen[s].id.
  std::vector<int32_t> ids;
  const kernels::Choice* chosen = nullptr;  // on the rank's device
  std::vector<int32_t> positions;           // [m] absolute positions
  std::vector<int32_t> slots;  // [m] physical block * 32 + offset; -1: not on this rank
  std::vector<kernels::AttentionSequence> sequences;

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  // Appends `count` tokens at positions start, start + 1, ... of a sequence whose block table holds
  // every block up to the last of them, -1 for blocks of other ranks. `block_table` must outlive
  // the batch.
  void Append(const int32_t* tokens, int64_t count, int32_t start, const int32_t* block_table) {
    sequences.push_back({rows(), count, start, block_table});
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = start + i;
      ids.push_back(tokens[i]);
      positions.push_back(static_cast<int32_t>(position));
      const int64_t block = block_table[position / kernels::kBlockTokens];
      slots.push_back(block < 0 ? -1
                                : static_cast<int32_t>(block * kernels::kBlockTokens +
                                                       position % kernels::kBlockTokens));
    }
  }
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_BATCH_H_
