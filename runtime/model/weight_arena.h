// One rank's packed weights in memory that other processes can map: an anonymous file (memfd).
//
// It is filled by one process, then sealed: from then on its bytes can't change, and whoever holds
// a descriptor can map it. Mapped, it is checked against digests of its contents before use. It
// lives as long as somebody maps it or holds a descriptor: there is no name in a file system that
// could outlive everybody.
//
//   header     4096 bytes; zero until sealed
//   pieces     in the order of Take, each aligned to 64 bytes
//   index      of the pieces, then what Seal was given, then a digest of each kChunk of the pieces
//
// Pages are huge where the system allows (collapsed by hand, for shared memory has no huge pages by
// default): a streaming kernel reads it as fast as ordinary memory, and mapping it costs nothing.
#ifndef PHALANX_RUNTIME_MODEL_WEIGHT_ARENA_H_
#define PHALANX_RUNTIME_MODEL_WEIGHT_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "runtime/model/slice_digest.h"

namespace phalanx::model {

class WeightArena : public std::enable_shared_from_this<WeightArena> {
 public:
  static constexpr int64_t kChunk = int64_t{4} << 20;

  // To be filled. `key`: at most 64 characters. `most_bytes`: what the pieces may come to in all
  // (address space, not memory). RESOURCE_EXHAUSTED or UNIMPLEMENTED: the system gives no such
  // memory, or a limit on file sizes stands in the way.
  static absl::StatusOr<std::shared_ptr<WeightArena>> Create(const std::string& key,
                                                             int64_t most_bytes);
  // Maps a sealed one. Takes `fd` over. `threads`: that compute digests. INVALID_ARGUMENT: it is
  // not sealed, of another key, incomplete or damaged.
  static absl::StatusOr<std::shared_ptr<WeightArena>> Map(int fd, const std::string& key,
                                                          int threads);
  ~WeightArena();
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // Being filled: `bytes` of zeroed memory. Mapped: the piece that was taken at the same place,
  // read-only; INVALID_ARGUMENT where that one had another name or size. The arena lives as long as
  // the buffer. RESOURCE_EXHAUSTED: more than most_bytes.
  absl::StatusOr<kernels::Buffer> Take(const std::string& name, int64_t bytes);
  // Nothing may be written from here on: writes to pieces end the process. `digests`: kept with the
  // weights. Pieces stay where they are.
  absl::Status Seal(const std::vector<SliceDigest>& digests, int threads);

  bool mapped() const { return mapped_; }
  // All pieces of a mapped arena have been taken.
  bool exhausted() const { return next_ == pieces_.size(); }
  const std::string& key() const { return key_; }
  // What Seal was given; of a mapped arena.
  const std::vector<SliceDigest>& digests() const { return digests_; }
  int64_t file_bytes() const { return file_bytes_; }
  // Of the sealed file; borrowed.
  int fd() const { return fd_; }

 private:
  struct Piece {
    std::string name;
    int64_t begin = 0;
    int64_t bytes = 0;
  };

  WeightArena(int fd, std::string key) : fd_(fd), key_(std::move(key)) {}
  absl::Status Reserve(int64_t bytes);
  absl::Status Grow(int64_t end);
  absl::Status Read(int threads);
  std::vector<uint64_t> ChunkDigests(int64_t begin, int64_t end, int threads) const;
  std::string IndexText(const std::vector<uint64_t>& chunks) const;
  absl::Status ParseIndex(const std::string& text, std::vector<uint64_t>* chunks);

  const int fd_;
  const std::string key_;
  bool mapped_ = false;
  char* base_ = nullptr;       // aligned to 2 MiB
  int64_t reserved_ = 0;       // bytes of address space from base_ on
  int64_t file_bytes_ = 0;     // of the file
  int64_t huge_bytes_ = 0;     // of it, backed by huge pages
  int64_t end_ = 0;            // of the last piece
  size_t next_ = 0;            // piece that Take gives next; mapped
  std::vector<Piece> pieces_;  // by rising begin
  std::vector<SliceDigest> digests_;
};

}  // namespace phalanx::model

#endif  // PHALANX_RUNTIME_MODEL_WEIGHT_ARENA_H_
