#ifndef PHALANX_RUNTIME_TOKENIZER_STRINGS_H_
#define PHALANX_RUNTIME_TOKENIZER_STRINGS_H_

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"

namespace phalanx::tokenizer {

// Distributions build Abseil with a string_view of its own, which neither StrCat nor the string
// containers convert from std::string_view. These stand in for them.

// Integers, and whatever has data() and size() or converts to std::string_view, joined.
template <typename... Args>
std::string Concat(const Args&... args) {
  std::string out;
  const auto append = [&out](const auto& arg) {
    using Arg = std::decay_t<decltype(arg)>;
    if constexpr (std::is_integral_v<Arg>) {
      static_assert(!std::is_same_v<Arg, char> && !std::is_same_v<Arg, bool>);
      out += std::to_string(arg);
    } else if constexpr (std::is_convertible_v<const Arg&, std::string_view>) {
      out += std::string_view(arg);
    } else {
      out.append(arg.data(), arg.size());
    }
  };
  (append(args), ...);
  return out;
}

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
struct StringEqual {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return a == b; }
};

template <typename Value>
using StringMap = absl::flat_hash_map<std::string, Value, StringHash, StringEqual>;
using StringViewSet = absl::flat_hash_set<std::string_view, StringHash, StringEqual>;

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_STRINGS_H_
