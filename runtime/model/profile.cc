#include "runtime/model/profile.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace phalanx::model {

void Profile::ComputeOn(const kernels::DeviceOptions& options) {
  device = options.kind;
  // A CPU has one.
  numerics = options.kind == kernels::DeviceKind::kCuda ? options.cuda.numerics
                                                        : kernels::Numerics::kExact;
}

std::string Profile::ToString() const {
  const auto name = [](auto value) {
    const std::string_view text = kernels::Name(value);
    return absl::string_view(text.data(), text.size());
  };
  return absl::StrCat(name(device), "-", name(numerics), " weights=", name(weights),
                      " activations=", name(activations()), " kv=", name(kv()),
                      " leaves=", reduction_leaves, " stripes=", sequence_stripes,
                      " block=", block_tokens);
}

}  // namespace phalanx::model
