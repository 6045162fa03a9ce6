#include "runtime/model/profile.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace phalanx::model {

std::string Profile::ToString() const {
  const auto name = [](kernels::DType type) {
    const std::string_view text = kernels::Name(type);
    return absl::string_view(text.data(), text.size());
  };
  return absl::StrCat("cpu-exact weights=", name(weights), " activations=", name(activations()),
                      " kv=", name(kv()), " leaves=", reduction_leaves,
                      " stripes=", sequence_stripes, " block=", block_tokens);
}

}  // namespace phalanx::model
