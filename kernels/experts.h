// How a step's slots, the choices (row, k) of its rows, are put together by expert on the host.
#ifndef PHALANX_KERNELS_EXPERTS_H_
#define PHALANX_KERNELS_EXPERTS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

inline TensorView FirstRows(TensorView view, int64_t rows) {
  view.rows = rows;
  return view;
}

// Places of slots: by expert, then in the slots' order.
struct SlotPlaces {
  std::vector<int64_t> begin;  // [experts + 1] first place of each expert
  std::vector<int32_t> place;  // [slots]; -1: its expert isn't one of these
};

// `ids`: the slots' experts, of which [first, first + count) are placed.
SlotPlaces PlaceSlots(absl::Span<const int32_t> ids, int64_t first, int64_t count);

// room.parts = each place's row of `x`, x[rows[place]], through its expert: gate_up, SiluMul, down.
// `begin`: as SlotPlaces, of the set's experts; rows: [places], at least one.
void RunPlacedSlots(Kernels& kernels, TensorView x, absl::Span<const int32_t> rows,
                    absl::Span<const int64_t> begin, const ExpertSet& experts,
                    const ExpertRoom& room);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_EXPERTS_H_
