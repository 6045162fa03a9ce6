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
  const auto view = [](std::string_view text) {
    return absl::string_view(text.data(), text.size());
  };
  const auto name = [&](auto value) { return view(kernels::Name(value)); };
  return absl::StrCat(name(device), "-", name(numerics), " weights=", name(weights),
                      " activations=", name(activations()), " kv=", view(kv_name()),
                      " leaves=", reduction_leaves, " stripes=", sequence_stripes,
                      " block=", block_tokens);
}

}  // namespace phalanx::model
