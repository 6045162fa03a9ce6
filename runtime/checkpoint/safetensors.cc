#include "runtime/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/checkpoint/json_file.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

struct DTypeBits {
  absl::string_view name;
  int bits;
};

// Every dtype of the format (safetensors/src/tensor.rs), so that a file with a tensor that the
// model does not use can be read.
constexpr DTypeBits kDTypes[] = {
    {"BF16", 16},       {"F16", 16},        {"F32", 32},    {"BOOL", 8},    {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
    {"U16", 16},        {"I32", 32},        {"U32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
};

const DTypeBits* FindDType(absl::string_view name) {
  for (const DTypeBits& dtype : kDTypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

// Reads {"name": {"dtype": .., "shape": [..], "data_offsets": [..]}, "__metadata__": {..}} straight
// into entries; nothing of another form is kept.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  HeaderHandler(absl::string_view file, SafetensorsHeader* header) : file_(file), header_(header) {}

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(int64_t value) override { return Unexpected(absl::StrCat("number ", value)); }
  bool number_float(double, const std::string& text) override {
    return Unexpected(absl::StrCat("number ", Printable(text)));
  }
  bool binary(json::binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(uint64_t value) override {
    if (state_ != State::kShape && state_ != State::kOffsets) {
      return Unexpected(absl::StrCat("number ", value));
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Unexpected(absl::StrCat("number ", value));
    }
    if (state_ == State::kShape) {
      if (tensor_.shape.size() >= static_cast<size_t>(kMaxRank)) {
        return Fail(absl::StrCat("has more than ", kMaxRank, " dimensions"));
      }
      tensor_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (num_offsets_ >= 2) return Fail("data_offsets has more than 2 numbers");
    (num_offsets_ == 0 ? tensor_.begin : tensor_.end) = static_cast<int64_t>(value);
    ++num_offsets_;
    return true;
  }

  bool string(std::string& value) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kTensor || field_ != Field::kDType) {
      return Unexpected(absl::StrCat("string \"", Printable(value), "\""));
    }
    const DTypeBits* dtype = FindDType(value);
    if (dtype == nullptr) return Fail(absl::StrCat("has unknown dtype \"", Printable(value), "\""));
    tensor_.dtype = dtype->name;
    bits_ = dtype->bits;
    field_ = Field::kNone;
    return true;
  }

  bool start_object(size_t) override {
    if (state_ == State::kStart) {
      state_ = State::kTop;
      return true;
    }
    if (state_ != State::kTop) return Unexpected("an object");
    if (tensor_.name == "__metadata__") {
      state_ = State::kMetadata;
      return true;
    }
    state_ = State::kTensor;
    seen_dtype_ = seen_shape_ = seen_offsets_ = false;
    num_offsets_ = 0;
    field_ = Field::kNone;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ != State::kTensor || field_ == Field::kDType || field_ == Field::kNone) {
      return Unexpected("an array");
    }
    state_ = field_ == Field::kShape ? State::kShape : State::kOffsets;
    return true;
  }

  bool end_array() override {
    if (state_ == State::kOffsets && num_offsets_ != 2) {
      return Fail("data_offsets must have exactly 2 numbers");
    }
    state_ = State::kTensor;
    field_ = Field::kNone;
    return true;
  }

  bool key(std::string& name) override {
    if (state_ == State::kTop) {
      tensor_ = TensorInfo();
      tensor_.name = std::move(name);
      if (tensor_.name != "__metadata__") return true;
      if (std::exchange(seen_metadata_, true)) return Fail("is there twice");
      return true;
    }
    if (state_ != State::kTensor) return true;
    bool* seen = nullptr;
    if (name == "dtype") {
      field_ = Field::kDType;
      seen = &seen_dtype_;
    } else if (name == "shape") {
      field_ = Field::kShape;
      seen = &seen_shape_;
    } else if (name == "data_offsets") {
      field_ = Field::kOffsets;
      seen = &seen_offsets_;
    } else {
      return Fail(absl::StrCat("has unknown field \"", Printable(name), "\""));
    }
    if (std::exchange(*seen, true)) return Fail(absl::StrCat("has field \"", name, "\" twice"));
    return true;
  }

  bool end_object() override {
    if (state_ == State::kTop) {
      state_ = State::kEnd;
      return true;
    }
    if (state_ == State::kTensor) {
      if (!seen_dtype_ || !seen_shape_ || !seen_offsets_) {
        return Fail("lacks one of dtype, shape and data_offsets");
      }
      if (!CheckSize()) return false;
      header_->tensors.push_back(std::move(tensor_));
    }
    state_ = State::kTop;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(file_, ": the header is not valid JSON: error at byte ", position, " of it"));
    return false;
  }

  const absl::Status& status() const { return status_; }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };
  enum class Field { kNone, kDType, kShape, kOffsets };

  bool Fail(absl::string_view what) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(file_, ": tensor \"", Printable(tensor_.name), "\" ", what));
    return false;
  }

  bool Unexpected(absl::string_view found) {
    if (state_ == State::kStart) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(file_, ": the header is ", found, ", expected an object {...}"));
      return false;
    }
    absl::string_view expected = "an object {...}";
    if (state_ == State::kMetadata) expected = "a string in __metadata__";
    if (state_ == State::kShape || state_ == State::kOffsets) expected = "an integer in [0, 2^63)";
    if (state_ == State::kTensor) {
      expected = field_ == Field::kDType ? "the name of a dtype" : "an array of integers";
    }
    return Fail(absl::StrCat("has ", found, " where ", expected, " is expected"));
  }

  // The shape times the dtype must be exactly the bytes that the offsets enclose.
  bool CheckSize() {
    if (tensor_.begin > tensor_.end) {
      return Fail(absl::StrCat("has data_offsets [", tensor_.begin, ", ", tensor_.end,
                               "]: the end lies before the begin"));
    }
    int64_t bits = bits_;
    for (const int64_t dim : tensor_.shape) {
      if (__builtin_mul_overflow(bits, dim, &bits)) {
        return Fail(absl::StrCat("has shape ", ShapeString(tensor_.shape), " of dtype ",
                                 tensor_.dtype, ": its size overflows 64 bits"));
      }
    }
    if (bits % 8 != 0 || bits / 8 != tensor_.end - tensor_.begin) {
      return Fail(absl::StrCat("has shape ", ShapeString(tensor_.shape), " of dtype ",
                               tensor_.dtype, ", which takes ", (bits + 7) / 8,
                               " bytes, but data_offsets [", tensor_.begin, ", ", tensor_.end,
                               "] enclose ", tensor_.end - tensor_.begin));
    }
    return true;
  }

  absl::string_view file_;
  SafetensorsHeader* header_;
  absl::Status status_;
  State state_ = State::kStart;
  Field field_ = Field::kNone;
  TensorInfo tensor_;
  int bits_ = 0;
  int num_offsets_ = 0;
  bool seen_metadata_ = false;
  bool seen_dtype_ = false;
  bool seen_shape_ = false;
  bool seen_offsets_ = false;
};

uint64_t LittleEndian64(absl::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

// Names unique; the tensors, sorted by offset, tile [0, data_size) exactly.
absl::Status CheckCoverage(const SafetensorsHeader& header, int64_t data_size,
                           absl::string_view file) {
  absl::flat_hash_set<absl::string_view> names;
  names.reserve(header.tensors.size());
  int64_t covered = 0;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& tensor : header.tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor \"", Printable(tensor.name), "\" is there twice"));
    }
  }
  for (const TensorInfo& tensor : header.tensors) {
    if (tensor.end > data_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor \"", Printable(tensor.name), "\" ends at byte ", tensor.end,
                       " of the data, but the file has only ", data_size,
                       " bytes of data; the file is truncated, fetch it again"));
    }
    if (tensor.begin < covered) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensors \"", Printable(previous->name), "\" and \"",
                       Printable(tensor.name), "\" overlap: data_offsets [", previous->begin, ", ",
                       previous->end, "] and [", tensor.begin, ", ", tensor.end, "]"));
    }
    if (tensor.begin > covered) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": bytes ", covered, " to ", tensor.begin,
                       " of the data belong to no tensor (before \"", Printable(tensor.name),
                       "\"); the format allows no holes"));
    }
    covered = tensor.end;
    previous = &tensor;
  }
  if (covered != data_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the tensors end at byte ", covered, " of the data, but the file has ",
                     data_size, " bytes of data; the format allows nothing after the last tensor"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeString(const Shape& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view prefix,
                                                         int64_t file_size,
                                                         absl::string_view file) {
  if (absl::StartsWith(prefix, "version https://git-lfs.github.com/")) {
    return absl::InvalidArgumentError(absl::StrCat(
        file,
        ": is a pointer of Git LFS, which stands for the file; fetch the file with git lfs pull"));
  }
  if (file_size < 8 || prefix.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", file_size,
                     " bytes, but a safetensors file starts with 8 bytes of header length; the "
                     "file is truncated or not safetensors"));
  }
  const uint64_t length = LittleEndian64(prefix);
  if (length > static_cast<uint64_t>(file_size - 8)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": header length ", length, " exceeds the file's ", file_size,
                     " bytes; the file is truncated or not safetensors"));
  }
  if (length > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": header length ", length, " exceeds the format's limit of ", kMaxHeaderBytes));
  }
  if (length > prefix.size() - 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": only ", prefix.size() - 8, " of the header's ", length, " bytes"));
  }
  const absl::string_view text = prefix.substr(8, length);
  if (text.empty() || text[0] != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the header does not start with \"{\"; this is not safetensors"));
  }
  // The JSON library takes a zero byte for the end of its input.
  if (text.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the header is not valid JSON: byte ", text.find('\0'), " is zero"));
  }
  SafetensorsHeader header;
  header.data_offset = static_cast<int64_t>(8 + length);
  HeaderHandler handler(file, &header);
  const bool parsed = json::sax_parse(text.begin(), text.end(), &handler);
  if (!handler.status().ok()) return handler.status();
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(file, ": the header is malformed"));
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  absl::Status covered = CheckCoverage(header, file_size - header.data_offset, file);
  if (!covered.ok()) return covered;
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be opened"));
  absl::Cleanup closer = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be read"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size < 8) return ParseSafetensorsHeader({}, info.st_size, path).status();
  void* map = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (map == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be mapped into memory"));
  }
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile());
  file->path_ = path;
  file->map_ = static_cast<const uint8_t*>(map);
  file->size_ = info.st_size;
  file->identity_ = {static_cast<int64_t>(info.st_ino), info.st_size,
                     info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec};
  auto header = ParseSafetensorsHeader(
      {static_cast<const char*>(map), static_cast<size_t>(info.st_size)}, info.st_size, path);
  if (!header.ok()) return header.status();
  file->header_ = std::move(*header);
  file->by_name_.reserve(file->header_.tensors.size());
  for (const TensorInfo& tensor : file->header_.tensors) file->by_name_[tensor.name] = &tensor;
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) munmap(const_cast<uint8_t*>(map_), size_);
}

const TensorInfo* SafetensorsFile::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

void SafetensorsFile::ReleasePages() const { AdviseDone(map_, size_); }

void AdviseWillNeed(const void* data, int64_t bytes) {
  if (bytes <= 0) return;
  const int64_t page = sysconf(_SC_PAGESIZE);
  const auto before = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % page);
  auto* first = static_cast<char*>(const_cast<void*>(data)) - before;
  madvise(first, bytes + before, MADV_WILLNEED);
}

void AdviseDone(const void* data, int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  // Inwards: the pages at the edges belong to the neighbours too.
  const auto skip = (page - static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % page)) % page;
  const int64_t whole = (bytes - skip) / page * page;
  if (whole <= 0) return;
  madvise(static_cast<char*>(const_cast<void*>(data)) + skip, whole, MADV_DONTNEED);
}

}  // namespace phalanx::checkpoint
