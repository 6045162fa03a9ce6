// The communicators that one rank's part of a decoder speaks through.
#ifndef PHALANX_RUNTIME_MODEL_GROUPS_H_
#define PHALANX_RUNTIME_MODEL_GROUPS_H_

#include "comm/communicator.h"
#include "parallel/mesh.h"

namespace phalanx::model {

// Borrowed. A group of one rank is null: there is nobody to speak to. The rank of `tp` is at.t, of
// `sp` at.s, of `pp` at.p, of `stage` at.s * layout.tp + at.t.
//
// Buffers given to tp, sp, pp and stage lie on the rank's device. A call comes after all that was
// enqueued there, and what is enqueued later sees its results: nobody has to synchronise. Those
// given to host_stage and host_pp lie on the host; on a CPU they are stage and pp themselves.
struct ParallelGroups {
  parallel::Layout layout;  // of the worker group; ep may be 0
  parallel::MeshCoordinates at;
  comm::Communicator* tp = nullptr;     // ranks that differ in t alone
  comm::Communicator* sp = nullptr;     // ranks that differ in s alone
  comm::Communicator* pp = nullptr;     // ranks that differ in p alone
  comm::Communicator* stage = nullptr;  // the sp x tp ranks of a stage
  comm::Communicator* host_pp = nullptr;
  comm::Communicator* host_stage = nullptr;

  int stage_rank() const { return at.s * layout.tp + at.t; }
  int stage_size() const { return layout.sp * layout.tp; }
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_GROUPS_H_
