// Which keys of a configuration may be left unread. Anything else is refused: a key that nobody
// here knows may change the arithmetic.
#ifndef PHALANX_RUNTIME_CHECKPOINT_KNOWN_KEYS_H_
#define PHALANX_RUNTIME_CHECKPOINT_KNOWN_KEYS_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/checkpoint/config_reader.h"
#include "runtime/checkpoint/families.h"

namespace phalanx::checkpoint {

// Whether a value says "not set" in any convention that configurations use: null, false, 0, empty.
bool IsUnset(const nlohmann::json& value);

// Fails `reader` with UNIMPLEMENTED, naming the first key of config.json that has not been read, is
// not known to be harmless and does not have a value that changes nothing.
void RefuseUnknownKeys(ConfigReader& reader, const FamilySpec& family);

// Keys of generation_config.json that have not been read and would change what is generated,
// sorted.
std::vector<std::string> IgnoredGenerationKeys(const ConfigReader& reader);

}  // namespace phalanx::checkpoint

#endif  // PHALANX_RUNTIME_CHECKPOINT_KNOWN_KEYS_H_
