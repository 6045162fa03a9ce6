#include "runtime/checkpoint/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

// Builds a value, refusing what the library's own parser lets pass: depth and duplicate keys.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  StrictBuilder(absl::string_view text, absl::string_view file) : text_(text), file_(file) {}

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(int64_t value) override { return Add(value); }
  bool number_unsigned(uint64_t value) override { return Add(value); }
  bool number_float(double value, const std::string&) override { return Add(value); }
  bool string(std::string& value) override { return Add(std::move(value)); }
  bool binary(json::binary_t&) override { return false; }
  bool start_object(size_t) override { return Open(json::object()); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(std::string& name) override {
    if (stack_.back()->contains(name)) {
      status_ = absl::InvalidArgumentError(absl::StrCat(file_, ": key \"", Printable(name),
                                                        "\" is there twice in one object; remove "
                                                        "one of them"));
      return false;
    }
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    const absl::string_view read = text_.substr(0, std::min(position, text_.size()));
    const size_t line = std::count(read.begin(), read.end(), '\n') + 1;
    const size_t last = read.rfind('\n');
    const size_t column = last == absl::string_view::npos ? read.size() : read.size() - last - 1;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(file_, ": not valid JSON: error at line ", line, ", column ", column));
    return false;
  }

  absl::Status status() const { return status_; }
  json Take() { return std::move(root_); }

 private:
  bool Add(json value) {
    Place(std::move(value));
    return true;
  }

  json* Place(json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }

  bool Open(json container) {
    if (stack_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(file_, ": nested deeper than ", kMaxJsonDepth, " levels"));
      return false;
    }
    // A parent does not grow while a child is open, so the pointers stay good.
    stack_.push_back(Place(std::move(container)));
    return true;
  }

  bool Close() {
    stack_.pop_back();
    return true;
  }

  absl::string_view text_;
  absl::string_view file_;
  absl::Status status_;
  json root_;
  std::vector<json*> stack_;
  std::string key_;
};

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  // O_NONBLOCK: a FIFO of that name must not hang us.
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
  if (info.st_size > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", info.st_size,
                                                   " bytes, expected at most ", max_bytes,
                                                   "; this is not a file of that kind"));
  }
  std::string text(info.st_size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = read(fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be read"));
    if (got == 0) break;
    done += got;
  }
  text.resize(done);
  return text;
}

absl::StatusOr<json> ParseJsonObject(absl::string_view text, absl::string_view file) {
  // The JSON library takes a zero byte for the end of its input.
  if (text.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": not valid JSON: byte ", text.find('\0'), " is zero"));
  }
  StrictBuilder builder(text, file);
  const bool parsed = json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status().ok()) return builder.status();
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON"));
  json value = builder.Take();
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": found a JSON ", value.type_name(), ", expected an object {...}"));
  }
  return value;
}

std::string Printable(absl::string_view text, size_t max_chars) {
  const bool cut = text.size() > max_chars;
  return absl::StrCat(absl::CHexEscape(text.substr(0, max_chars)), cut ? "..." : "");
}

std::string PrintableJson(const json& value, size_t max_chars) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() <= max_chars) return text;
  return absl::StrCat(absl::string_view(text).substr(0, max_chars), "...");
}

}  // namespace phalanx::checkpoint
