#include "runtime/tokenizer/json_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr size_t kMaxPlace = 2000;

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(Concat(path.string(), ": no such file"));
  }
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.good() && !in.eof()) {
    const char* const why = errno != 0 ? std::strerror(errno) : "reading failed";
    return absl::InvalidArgumentError(Concat(path.string(), ": can't be read: ", why));
  }
  return content;
}

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view file) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    return absl::InvalidArgumentError(Concat(file, ": not valid JSON at byte ", e.byte, " of ",
                                             text.size(), "; the file is truncated or damaged"));
  } catch (const Json::exception& e) {
    return absl::InvalidArgumentError(Concat(file, ": not valid JSON (", e.what(), ")"));
  }
}

ObjectReader::ObjectReader(const Json& json, std::string where)
    : json_(json), where_(std::move(where)) {
  // Components nest by recursion; every level lengthens the place.
  if (where_.size() > kMaxPlace) Fail("nested too deep");
  if (!json_.is_object()) Fail(Concat("expected an object, found ", json_.type_name()));
}

void ObjectReader::Fail(std::string_view what) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(Concat(where_, ": ", what));
}

void ObjectReader::FailType(std::string_view type) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(Concat(where_, " type \"", type, "\" is not supported"));
}

const Json* ObjectReader::Find(const char* key, bool required) {
  seen_.emplace_back(key);
  if (!json_.is_object()) return nullptr;
  const auto it = json_.find(key);
  if (it == json_.end() || it->is_null()) {
    if (required) Fail(Concat("\"", key, "\" is missing"));
    return nullptr;
  }
  return &*it;
}

bool ObjectReader::Has(const char* key) const {
  if (!json_.is_object()) return false;
  const auto it = json_.find(key);
  return it != json_.end() && !it->is_null();
}

std::string ObjectReader::String(const char* key) {
  const Json* value = Find(key, true);
  if (value == nullptr) return "";
  if (!value->is_string()) {
    Fail(Concat("\"", key, "\" is ", value->type_name(), "; expected a string"));
    return "";
  }
  return value->get<std::string>();
}

bool ObjectReader::Bool(const char* key) {
  const Json* value = Find(key, true);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    Fail(Concat("\"", key, "\" is ", value->type_name(), "; expected true or false"));
    return false;
  }
  return value->get<bool>();
}

int64_t ObjectReader::Int(const char* key) {
  const Json* value = Find(key, true);
  if (value == nullptr) return 0;
  if (!value->is_number_unsigned() || value->get<uint64_t>() > INT32_MAX) {
    Fail(Concat("\"", key, "\" is ",
                value->dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40),
                "; expected a whole number from 0 to 2147483647"));
    return 0;
  }
  return static_cast<int64_t>(value->get<uint64_t>());
}

const Json* ObjectReader::Array(const char* key) {
  const Json* value = Find(key, true);
  if (value != nullptr && !value->is_array()) {
    Fail(Concat("\"", key, "\" is ", value->type_name(), "; expected an array"));
    return nullptr;
  }
  return value;
}

const Json* ObjectReader::Object(const char* key) {
  const Json* value = Find(key, true);
  if (value != nullptr && !value->is_object()) {
    Fail(Concat("\"", key, "\" is ", value->type_name(), "; expected an object"));
    return nullptr;
  }
  return value;
}

std::string ObjectReader::String(const char* key, std::string otherwise) {
  if (Has(key)) return String(key);
  seen_.emplace_back(key);
  return otherwise;
}

bool ObjectReader::Bool(const char* key, bool otherwise) {
  if (Has(key)) return Bool(key);
  seen_.emplace_back(key);
  return otherwise;
}

uint32_t ObjectReader::Character(const char* key) {
  const std::string value = String(key);
  if (!status_.ok()) return ' ';
  size_t position = 0;
  const uint32_t c = value.empty() ? 0 : NextCodePoint(value, &position);
  if (value.empty() || position != value.size()) {
    Fail(Concat("\"", key, "\" is \"", value, "\"; expected one character"));
    return ' ';
  }
  return c;
}

absl::Status ObjectReader::Finish(std::initializer_list<std::string_view> harmless) {
  if (!status_.ok()) return status_;
  for (const auto& item : json_.items()) {
    if (std::find(seen_.begin(), seen_.end(), item.key()) != seen_.end()) continue;
    if (std::find(harmless.begin(), harmless.end(), item.key()) != harmless.end()) continue;
    return absl::InvalidArgumentError(
        Concat(where_, ": the setting \"", item.key(), "\" is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::tokenizer
