#include "runtime/model/weight_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::model {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kHeaderBytes = 4096;
constexpr int64_t kAlignment = 64;
constexpr std::array<char, 8> kMagic = {'P', 'H', 'X', 'W', 'E', 'I', 'G', '1'};
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
constexpr int64_t kLargestStep = int64_t{512} << 20;
constexpr int64_t kLeastHuge = int64_t{8} << 20;  // less has small pages
constexpr int kMadvCollapse = 25;                 // Linux 6.1; not in this libc's headers

struct Header {
  std::array<char, 8> magic;
  std::array<char, 64> key;
  int64_t pieces_end;
  int64_t index_bytes;
  uint64_t index_digest;
  uint64_t header_digest;  // of what stands before
};

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

uint64_t DigestOf(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, header_digest));
}

absl::Status SystemError(const char* call) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no shared memory for packed weights: ", call, ": ", std::strerror(errno)));
}

absl::Status Damaged(const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("kept weights are not usable: ", why));
}

void AppendInt(int64_t value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendString(const std::string& value, std::string* out) {
  AppendInt(static_cast<int64_t>(value.size()), out);
  out->append(value);
}

// Reads what the two above have written; ok() is false once something was not there.
class Reader {
 public:
  explicit Reader(const std::string& text) : at_(text.data()), left_(text.size()) {}
  bool ok() const { return ok_; }
  bool done() const { return ok_ && left_ == 0; }
  int64_t Int() {
    int64_t value = 0;
    Copy(&value, sizeof(value));
    return value;
  }
  std::string String() {
    const int64_t size = Int();
    if (size < 0 || static_cast<size_t>(size) > left_) ok_ = false;
    std::string value(ok_ ? size : 0, '\0');
    Copy(value.data(), value.size());
    return value;
  }
  // Of entries that follow, at least `least_bytes` each.
  int64_t Count(size_t least_bytes) {
    const int64_t count = Int();
    if (count < 0 || static_cast<size_t>(count) > left_ / least_bytes) ok_ = false;
    return ok_ ? count : 0;
  }

 private:
  void Copy(void* to, size_t bytes) {
    if (!ok_ || bytes > left_) {
      ok_ = false;
      return;
    }
    std::memcpy(to, at_, bytes);
    at_ += bytes;
    left_ -= bytes;
  }
  const char* at_;
  size_t left_;
  bool ok_ = true;
};

}  // namespace

absl::StatusOr<std::shared_ptr<WeightArena>> WeightArena::Create(const std::string& key,
                                                                 int64_t most_bytes) {
  if (key.size() > sizeof(Header::key)) {
    return absl::InvalidArgumentError(absl::StrCat("an arena's key of ", key.size(), " bytes"));
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    return absl::ResourceExhaustedError(
        "no shared memory for packed weights: file sizes are limited (ulimit -f)");
  }
  const int fd = memfd_create("phalanx-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError("memfd_create");
  std::shared_ptr<WeightArena> arena(new WeightArena(fd, key));
  const int64_t bytes = RoundUp(kHeaderBytes + most_bytes, kHugePage);
  if (absl::Status status = arena->Reserve(bytes); !status.ok()) return status;
  // Beyond the file's end there is address space alone.
  if (mmap(arena->base_, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
           0) == MAP_FAILED) {
    return SystemError("mmap");
  }
  arena->end_ = kHeaderBytes;
  if (absl::Status status = arena->Grow(kHeaderBytes); !status.ok()) return status;
  return arena;
}

absl::StatusOr<std::shared_ptr<WeightArena>> WeightArena::Map(int fd, const std::string& key,
                                                              int threads) {
  std::shared_ptr<WeightArena> arena(new WeightArena(fd, key));
  arena->mapped_ = true;
  if (absl::Status status = arena->Read(threads); !status.ok()) return status;
  return arena;
}

WeightArena::~WeightArena() {
  if (base_ != nullptr) munmap(base_, reserved_);
  close(fd_);
}

absl::Status WeightArena::Reserve(int64_t bytes) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return SystemError("mmap");
  char* begin = static_cast<char*>(raw);
  const int64_t skipped =
      RoundUp(reinterpret_cast<intptr_t>(begin), kHugePage) - reinterpret_cast<intptr_t>(begin);
  if (skipped > 0) munmap(begin, skipped);
  if (skipped < kHugePage) munmap(begin + skipped + bytes, kHugePage - skipped);
  base_ = begin + skipped;
  reserved_ = bytes;
  return absl::OkStatus();
}

absl::Status WeightArena::Grow(int64_t end) {
  if (end <= file_bytes_) return absl::OkStatus();
  if (end > reserved_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("packed weights take more than the ", reserved_, " bytes reserved for them"));
  }
  // Much at a time, for each collapse waits for all cores; Seal gives back what is not needed.
  const int64_t step = std::clamp(file_bytes_ / 2, kHugePage, kLargestStep);
  const int64_t new_bytes =
      std::min(RoundUp(std::max(end, file_bytes_ + step), kHugePage), reserved_);
  if (ftruncate(fd_, new_bytes) != 0) return SystemError("ftruncate");
  file_bytes_ = new_bytes;
  if (new_bytes < kLeastHuge) return absl::OkStatus();
  // One small page of each huge one says on which memory node the huge one is to be: this thread's.
  for (int64_t at = huge_bytes_; at < new_bytes; at += kHugePage) {
    auto* page = const_cast<volatile char*>(base_ + at);
    *page = *page;
  }
  // Advice: an older kernel refuses, and small pages do.
  (void)madvise(base_ + huge_bytes_, new_bytes - huge_bytes_, kMadvCollapse);
  huge_bytes_ = new_bytes;
  return absl::OkStatus();
}

absl::StatusOr<kernels::Buffer> WeightArena::Take(const std::string& name, int64_t bytes) {
  int64_t begin = 0;
  if (mapped_) {
    if (next_ == pieces_.size()) {
      return Damaged(absl::StrCat("they hold ", next_, " pieces, not ", name));
    }
    const Piece& piece = pieces_[next_];
    if (piece.name != name || piece.bytes != bytes) {
      return Damaged(absl::StrCat("piece ", next_, " is ", piece.name, " of ", piece.bytes,
                                  " bytes; expected ", name, " of ", bytes));
    }
    begin = piece.begin;
  } else {
    begin = RoundUp(end_, kAlignment);
    if (absl::Status status = Grow(begin + bytes); !status.ok()) return status;
    pieces_.push_back({name, begin, bytes});
    end_ = begin + bytes;
  }
  ++next_;
  return kernels::Buffer(base_ + begin, bytes, [self = shared_from_this()](void*) {});
}

std::vector<uint64_t> WeightArena::ChunkDigests(int64_t begin, int64_t end, int threads) const {
  const int64_t count = (end - begin + kChunk - 1) / kChunk;
  std::vector<uint64_t> out(count);
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      const int64_t at = begin + i * kChunk;
      out[i] = XXH3_64bits(base_ + at, std::min(kChunk, end - at));
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(run);
  run();
  for (std::thread& thread : others) thread.join();
  return out;
}

std::string WeightArena::IndexText(const std::vector<uint64_t>& chunks) const {
  std::string out;
  AppendInt(static_cast<int64_t>(pieces_.size()), &out);
  for (const Piece& piece : pieces_) {
    AppendInt(piece.begin, &out);
    AppendInt(piece.bytes, &out);
    AppendString(piece.name, &out);
  }
  AppendInt(static_cast<int64_t>(digests_.size()), &out);
  for (const SliceDigest& slice : digests_) {
    AppendInt(static_cast<int64_t>(slice.key), &out);
    AppendInt(static_cast<int64_t>(slice.digest), &out);
    AppendString(slice.name, &out);
  }
  AppendInt(static_cast<int64_t>(chunks.size()), &out);
  for (const uint64_t chunk : chunks) AppendInt(static_cast<int64_t>(chunk), &out);
  return out;
}

absl::Status WeightArena::Seal(const std::vector<SliceDigest>& digests, int threads) {
  digests_ = digests;
  const int64_t begin = RoundUp(end_, kAlignment);
  const std::string index = IndexText(ChunkDigests(kHeaderBytes, begin, threads));
  if (absl::Status status = Grow(begin + static_cast<int64_t>(index.size())); !status.ok()) {
    return status;
  }
  std::memcpy(base_ + begin, index.data(), index.size());
  Header header = {};
  header.magic = kMagic;
  key_.copy(header.key.data(), header.key.size());
  header.pieces_end = begin;
  header.index_bytes = static_cast<int64_t>(index.size());
  header.index_digest = XXH3_64bits(index.data(), index.size());
  header.header_digest = DigestOf(header);
  std::memcpy(base_, &header, sizeof(header));

  // A file that is mapped for writing can't be sealed. Others' mappings must not land in between.
  if (mmap(base_, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
           0) == MAP_FAILED) {
    return SystemError("mmap");
  }
  file_bytes_ = RoundUp(begin + static_cast<int64_t>(index.size()), kHugePage);
  const bool sealed = ftruncate(fd_, file_bytes_) == 0 && fcntl(fd_, F_ADD_SEALS, kSeals) == 0;
  const int error = errno;
  // Its pages are there: mapped now, not one by one in the first step.
  if (mmap(base_, file_bytes_, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd_, 0) ==
      MAP_FAILED) {
    return SystemError("mmap");
  }
  errno = error;
  return sealed ? absl::OkStatus() : SystemError("F_ADD_SEALS");
}

absl::Status WeightArena::Read(int threads) {
  const int seals = fcntl(fd_, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) return Damaged("the memory is not sealed");
  struct stat info = {};
  if (fstat(fd_, &info) != 0) return SystemError("fstat");
  if (info.st_size < kHeaderBytes) return Damaged("the memory ends inside its header");
  file_bytes_ = info.st_size;
  if (absl::Status status = Reserve(RoundUp(file_bytes_, kHugePage)); !status.ok()) return status;
  if (mmap(base_, file_bytes_, PROT_READ, MAP_SHARED | MAP_FIXED, fd_, 0) == MAP_FAILED) {
    return SystemError("mmap");
  }
  Header header;
  std::memcpy(&header, base_, sizeof(header));
  if (header.magic != kMagic) return Damaged("they are incomplete");
  if (header.header_digest != DigestOf(header)) return Damaged("the header is damaged");
  std::array<char, 64> key = {};
  key_.copy(key.data(), key.size());
  if (header.key != key) return Damaged("they belong to another model, layout or build");
  if (header.pieces_end < kHeaderBytes || header.pieces_end > file_bytes_ ||
      header.index_bytes < 0 || header.index_bytes > file_bytes_ - header.pieces_end) {
    return Damaged("the header is damaged");
  }
  const std::string index(base_ + header.pieces_end, header.index_bytes);
  if (XXH3_64bits(index.data(), index.size()) != header.index_digest) {
    return Damaged("the index is damaged");
  }
  end_ = header.pieces_end;
  std::vector<uint64_t> expected;
  if (absl::Status status = ParseIndex(index, &expected); !status.ok()) return status;
  const std::vector<uint64_t> chunks = ChunkDigests(kHeaderBytes, end_, threads);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (i < expected.size() && chunks[i] == expected[i]) continue;
    return Damaged(absl::StrCat("bytes from ", kHeaderBytes + static_cast<int64_t>(i) * kChunk,
                                " on differ from their digest"));
  }
  return absl::OkStatus();
}

absl::Status WeightArena::ParseIndex(const std::string& text, std::vector<uint64_t>* chunks) {
  Reader reader(text);
  for (int64_t i = reader.Count(24); i > 0 && reader.ok(); --i) {
    Piece piece;
    piece.begin = reader.Int();
    piece.bytes = reader.Int();
    piece.name = reader.String();
    if (piece.begin < kHeaderBytes || piece.begin > end_ || piece.bytes < 0 ||
        piece.bytes > end_ - piece.begin) {
      return Damaged("the index is damaged");
    }
    pieces_.push_back(std::move(piece));
  }
  for (int64_t i = reader.Count(24); i > 0 && reader.ok(); --i) {
    SliceDigest slice;
    slice.key = static_cast<uint64_t>(reader.Int());
    slice.digest = static_cast<uint64_t>(reader.Int());
    slice.name = reader.String();
    digests_.push_back(std::move(slice));
  }
  for (int64_t i = reader.Count(8); i > 0 && reader.ok(); --i) {
    chunks->push_back(static_cast<uint64_t>(reader.Int()));
  }
  return reader.done() ? absl::OkStatus() : Damaged("the index is damaged");
}

}  // namespace phalanx::model
