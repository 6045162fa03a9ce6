// Typed reads from a JSON object of an untrusted file. The first fault is kept and every later read
// returns its fallback, so that a parser reads as a list of fields and checks once.
#ifndef PHALANX_RUNTIME_CHECKPOINT_CONFIG_READER_H_
#define PHALANX_RUNTIME_CHECKPOINT_CONFIG_READER_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace phalanx::checkpoint {

class ConfigReader {
 public:
  // `object` must outlive the reader. `where` starts every error: the file, and the enclosing key
  // if the object is not the whole file.
  ConfigReader(const nlohmann::json& object, absl::string_view where)
      : object_(object), where_(where) {}

  // The key is there and is not null. Counts as read.
  bool Has(absl::string_view key);
  // Has, but a null counts as there.
  bool HasOrNull(absl::string_view key);
  // Null if absent. Counts as read.
  const nlohmann::json* Get(absl::string_view key);

  // A fault when the key is absent or null.
  int64_t RequiredInt(absl::string_view key, int64_t min, int64_t max);
  // Absent or null: nullopt (no fault). Bounds are inclusive.
  std::optional<int64_t> Int(absl::string_view key, int64_t min, int64_t max);
  // A finite number in [min, max].
  std::optional<double> Number(absl::string_view key, double min, double max);
  // Likewise, but above `min`.
  std::optional<double> Positive(absl::string_view key, double max);
  std::optional<bool> Bool(absl::string_view key);
  std::optional<std::string> String(absl::string_view key);
  // A list of strings.
  std::optional<std::vector<std::string>> Strings(absl::string_view key);

  void Fail(absl::string_view key, const nlohmann::json& found, absl::string_view expected);
  void Fail(absl::Status status);
  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  const std::string& where() const { return where_; }
  const nlohmann::json& object() const { return object_; }

  bool WasRead(const std::string& key) const { return read_.count(key) != 0; }

 private:
  const nlohmann::json& object_;
  std::string where_;
  absl::Status status_;
  std::set<std::string> read_;
};

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_CONFIG_READER_H_
