// Every layout of a model, for tests that run them all.
#ifndef PHALANX_TESTS_TESTING_LAYOUTS_H_
#define PHALANX_TESTS_TESTING_LAYOUTS_H_

#include <vector>

#include "parallel/shard.h"

namespace phalanx::testing {

// Every layout with pp x sp x tp <= `ranks` that the model allows under the default profile, and
// with experts every ep.
inline std::vector<parallel::Layout> LayoutsOf(const parallel::DecoderShape& shape, int ranks) {
  std::vector<parallel::Layout> out;
  for (int pp = 1; pp <= ranks; ++pp) {
    for (int sp = 1; pp * sp <= ranks; ++sp) {
      for (int tp = 1; pp * sp * tp <= ranks; ++tp) {
        for (int ep = 1; ep <= (shape.num_experts == 0 ? 1 : sp * tp); ++ep) {
          const parallel::Layout layout{.pp = pp, .sp = sp, .tp = tp, .ep = ep};
          if (parallel::DecoderShards::Check(shape, layout, 8, 8).ok()) out.push_back(layout);
        }
      }
    }
  }
  return out;
}

}  // namespace phalanx::testing

#endif  // PHALANX_TESTS_TESTING_LAYOUTS_H_
