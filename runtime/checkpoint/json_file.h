// Reading small JSON files from an untrusted directory: bounded in size and depth, duplicate keys
// refused.
#ifndef PHALANX_RUNTIME_CHECKPOINT_JSON_FILE_H_
#define PHALANX_RUNTIME_CHECKPOINT_JSON_FILE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace phalanx::checkpoint {

inline constexpr int kMaxJsonDepth = 32;
inline constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
inline constexpr int64_t kMaxIndexBytes = int64_t{256} << 20;

// A regular file's text. NOT_FOUND: no such file. INVALID_ARGUMENT: not a regular file, or longer
// than `max_bytes`. PERMISSION_DENIED and the like name the system's reason.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes);

// Parses an object. `file` names it in errors. INVALID_ARGUMENT: not JSON (line and column), not an
// object, a key twice in one object, nested deeper than kMaxJsonDepth.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, absl::string_view file);

// Text from a file, fit for an error message: escaped, cut to `max_chars`.
std::string Printable(absl::string_view text, size_t max_chars = 120);
// A JSON value, likewise.
std::string PrintableJson(const nlohmann::json& value, size_t max_chars = 80);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_JSON_FILE_H_
