// Where packed weights survive the rank that packed them.
#ifndef PHALANX_RUNTIME_MODEL_WEIGHT_STORE_H_
#define PHALANX_RUNTIME_MODEL_WEIGHT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "runtime/model/weight_arena.h"

namespace phalanx::model {

// Used by one loading thread. Keys are Decoder::WeightKeys: equal exactly where two ranks would
// pack the same bytes.
class WeightStore {
 public:
  struct Found {
    std::shared_ptr<WeightArena> arena;  // null: there is nothing, or it is damaged; pack
    uint64_t agreed = 0;                 // what Agreed() said of it; 0: nothing
  };

  virtual ~WeightStore() = default;
  // What is kept for `keys[rank]`, mapped and checked. `keys`: of all ranks of this rank's group;
  // what was kept for an earlier group and isn't among them is let go.
  virtual Found Find(const std::vector<std::string>& keys, int rank) = 0;
  // Keeps a sealed arena under its key. Where that fails, the next rank packs again.
  virtual void Keep(const WeightArena& arena) = 0;
  // All ranks of the group have loaded, and agree on `content` (Decoder::content of R6; not 0):
  // what is kept for earlier groups alone is let go.
  virtual void Agreed(uint64_t content) = 0;
  // Weights are packed into ordinary memory, or packed again, because of `why`.
  virtual void Warn(absl::string_view why) = 0;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_WEIGHT_STORE_H_
