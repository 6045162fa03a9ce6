#include "runtime/checkpoint/config_reader.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/checkpoint/json_file.h"

namespace phalanx::checkpoint {

using nlohmann::json;

const json* ConfigReader::Get(absl::string_view key) {
  std::string name(key);
  const auto it = object_.find(name);
  read_.insert(std::move(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool ConfigReader::Has(absl::string_view key) { return Get(key) != nullptr; }

bool ConfigReader::HasOrNull(absl::string_view key) {
  Get(key);
  return object_.contains(std::string(key));
}

int64_t ConfigReader::RequiredInt(absl::string_view key, int64_t min, int64_t max) {
  if (!Has(key)) {
    Fail(absl::InvalidArgumentError(absl::StrCat(
        where_, ": key \"", key, "\" is missing, expected an integer in [", min, ", ", max, "]")));
    return min;
  }
  return Int(key, min, max).value_or(min);
}

std::optional<int64_t> ConfigReader::Int(absl::string_view key, int64_t min, int64_t max) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() &&
        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fail(key, *value, absl::StrCat("an integer in [", min, ", ", max, "]"));
    return std::nullopt;
  }
  return value->get<int64_t>();
}

std::optional<double> ConfigReader::Number(absl::string_view key, double min, double max) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() < min ||
      value->get<double>() > max) {
    Fail(key, *value, absl::StrCat("a number in [", min, ", ", max, "]"));
    return std::nullopt;
  }
  return value->get<double>();
}

std::optional<double> ConfigReader::Positive(absl::string_view key, double max) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !(value->get<double>() > 0) || value->get<double>() > max) {
    Fail(key, *value, absl::StrCat("a number above 0 and at most ", max));
    return std::nullopt;
  }
  return value->get<double>();
}

std::optional<bool> ConfigReader::Bool(absl::string_view key) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(key, *value, "true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> ConfigReader::String(absl::string_view key) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(key, *value, "a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::optional<std::vector<std::string>> ConfigReader::Strings(absl::string_view key) {
  const json* value = Get(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> strings;
  if (value->is_array()) {
    for (const json& element : *value) {
      if (element.is_string()) strings.push_back(element.get<std::string>());
    }
  }
  if (!value->is_array() || strings.size() != value->size()) {
    Fail(key, *value, "a list of strings");
    return std::nullopt;
  }
  return strings;
}

void ConfigReader::Fail(absl::string_view key, const json& found, absl::string_view expected) {
  Fail(absl::InvalidArgumentError(absl::StrCat(where_, ": key \"", key, "\" is ",
                                               PrintableJson(found), ", expected ", expected)));
}

void ConfigReader::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

}  // namespace phalanx::checkpoint
