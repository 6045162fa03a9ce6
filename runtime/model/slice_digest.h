// What ranks agree on about their files: a digest of every tensor slice that each has read.
//
// Slices are cut where leaves are (KV heads one by one, vocabulary rows in granules), never where a
// layout cuts, so ranks of any two layouts have pieces in common.
#ifndef PHALANX_RUNTIME_MODEL_SLICE_DIGEST_H_
#define PHALANX_RUNTIME_MODEL_SLICE_DIGEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/leaves.h"
#include "runtime/checkpoint/checkpoint.h"

namespace phalanx::model {

struct SliceDigest {
  uint64_t key = 0;     // of which bytes: tensor, rows, columns
  uint64_t digest = 0;  // XXH3 of the bytes, row by row (https://github.com/Cyan4973/xxHash)
  std::string name;     // "model.norm.weight, rows 0 to 64, columns 0 to 1", for messages
};

// Of rows x columns of `tensor`, which has them. Not a defence against forgery.
SliceDigest DigestSlice(const checkpoint::TensorRef& tensor, parallel::Range rows,
                        parallel::Range columns);

// One number for all of them, in any order, repeated ones counted once: what a whole group holds.
uint64_t CombineDigests(std::vector<std::pair<uint64_t, uint64_t>> keys_and_digests);

// Of any text: 32 hexadecimal digits of XXH3.
std::string Digest128(const std::string& text);

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_SLICE_DIGEST_H_
