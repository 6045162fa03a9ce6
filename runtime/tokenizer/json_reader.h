#ifndef PHALANX_RUNTIME_TOKENIZER_JSON_READER_H_
#define PHALANX_RUNTIME_TOKENIZER_JSON_READER_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace phalanx::tokenizer {

using Json = nlohmann::json;

// The largest token id that a file may name.
constexpr int32_t kMaxTokenId = (1 << 24) - 1;

// The whole file. NOT_FOUND where there is none.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path);
// INVALID_ARGUMENT naming `file` and the byte offset where `text` is not JSON.
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view file);

// Reads the fields of one JSON object and remembers the first fault, so that a caller asks once, at
// the end. Messages name the place: `tokenizer.json: decoder.decoders[1]: "stop" is missing`.
// Borrows the JSON value.
class ObjectReader {
 public:
  // `where` is the object's place, file included ("tokenizer.json: decoder").
  ObjectReader(const Json& json, std::string where);

  const std::string& where() const { return where_; }
  bool Has(const char* key) const;  // there and not null
  // Required fields; a default value once there has been a fault.
  std::string String(const char* key);
  bool Bool(const char* key);
  int64_t Int(const char* key);  // 0 to 2^31 - 1
  // nullptr after a fault.
  const Json* Array(const char* key);
  const Json* Object(const char* key);
  // Optional ones, null counting as absent.
  std::string String(const char* key, std::string otherwise);
  bool Bool(const char* key, bool otherwise);
  // Exactly one character.
  uint32_t Character(const char* key);

  void Fail(std::string_view what);      // e.g. "\"behavior\" is \"x\"; expected ..."
  void FailType(std::string_view type);  // `type "x" is not supported`
  // The first fault of the fields read so far.
  absl::Status Faults() const { return status_; }
  // The first fault; else INVALID_ARGUMENT for a key that was neither read nor is in `harmless`:
  // an unknown setting is refused, never ignored.
  absl::Status Finish(std::initializer_list<std::string_view> harmless = {});

 private:
  const Json* Find(const char* key, bool required);

  const Json& json_;
  std::string where_;
  std::vector<std::string> seen_;
  absl::Status status_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_JSON_READER_H_
