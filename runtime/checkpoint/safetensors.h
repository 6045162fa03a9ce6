// One safetensors file, memory-mapped (https://huggingface.co/docs/safetensors): 8 bytes of header
// length N (little endian), N bytes of JSON, then the tensors' bytes, which the header must cover
// without overlap or hole. Everything the header says is checked against the file before it is used
// to allocate or to point.
#ifndef PHALANX_RUNTIME_CHECKPOINT_SAFETENSORS_H_
#define PHALANX_RUNTIME_CHECKPOINT_SAFETENSORS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace phalanx::checkpoint {

using Shape = absl::InlinedVector<int64_t, 4>;
std::string ShapeString(const Shape& shape);  // "[128, 64]"

// A header may not be longer than this (the limit of the reference implementation).
inline constexpr int64_t kMaxHeaderBytes = 100'000'000;
inline constexpr int kMaxRank = 8;

// One entry of the header.
struct TensorInfo {
  std::string name;
  absl::string_view dtype;  // the format's name, e.g. "BF16"; points at static storage
  Shape shape;              // each >= 0
  int64_t begin = 0;        // bytes from the start of the data section
  int64_t end = 0;          // end - begin = product(shape) * size of dtype
};

// What a header says; valid once returned.
struct SafetensorsHeader {
  int64_t data_offset = 0;          // bytes from the start of the file: 8 + header length
  std::vector<TensorInfo> tensors;  // by rising (begin, end)
};

// `prefix`: the first bytes of the file, at least 8 + header length of them if the file has them.
// `file_size`: bytes of the whole file. `file` names it in errors. INVALID_ARGUMENT says what is
// wrong with the header.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view prefix,
                                                         int64_t file_size, absl::string_view file);

// A mapped file. Immutable; any thread may read. Truncating the file while it is mapped is the
// caller's fault and ends the process (SIGBUS), as with every mapped file.
class SafetensorsFile {
 public:
  // Maps `path` (symbolic links are followed: the Hugging Face cache is made of them) read-only and
  // parses its header. Reads nothing else.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const TensorInfo* Find(absl::string_view name) const;  // null: no such tensor
  // First byte of a tensor of this file. Aligned to the element only if the writer aligned it.
  const uint8_t* data(const TensorInfo& tensor) const {
    return map_ + header_.data_offset + tensor.begin;
  }
  // The length field and the JSON, as in the file.
  absl::string_view header_bytes() const {
    return {reinterpret_cast<const char*>(map_), static_cast<size_t>(header_.data_offset)};
  }
  int64_t size() const { return size_; }
  // Lets go of the pages that have been read; they are read again if touched.
  void ReleasePages() const;
  // Inode, size and time of change: differs between two copies of a file, and is the same on every
  // host for a file that they share.
  std::array<int64_t, 3> identity() const { return identity_; }

 private:
  SafetensorsFile() = default;

  std::string path_;
  const uint8_t* map_ = nullptr;
  int64_t size_ = 0;
  std::array<int64_t, 3> identity_ = {};
  SafetensorsHeader header_;
  absl::flat_hash_map<absl::string_view, const TensorInfo*> by_name_;
};

// Asks the kernel to read [data, data + bytes) of a mapped file ahead, or to let go of its pages
// (they are read from the file again if touched). Hints; never fail.
void AdviseWillNeed(const void* data, int64_t bytes);
void AdviseDone(const void* data, int64_t bytes);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_SAFETENSORS_H_
