#ifndef PHALANX_RUNTIME_TOKENIZER_NORMALIZATION_FORM_H_
#define PHALANX_RUNTIME_TOKENIZER_NORMALIZATION_FORM_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace phalanx::tokenizer {

enum class NormalizationKind { kNfc, kNfd, kNfkc, kNfkd };

// A Unicode normalization form (UAX #15) as Hugging Face `tokenizers` computes it: with the data of
// Unicode 9.0, later characters left as they are. Properties come from ICU; the algorithm is ours,
// because ICU's reordering is quadratic in a long run of combining marks. O(n log n), thread-safe.
class NormalizationForm {
 public:
  // Made once a process.
  static absl::StatusOr<std::shared_ptr<const NormalizationForm>> Get(NormalizationKind kind);
  ~NormalizationForm();

  // `text` is valid UTF-8.
  std::string Apply(std::string_view text) const;

 private:
  struct Data;
  static absl::StatusOr<std::shared_ptr<const NormalizationForm>> Create(NormalizationKind kind);
  explicit NormalizationForm(std::unique_ptr<Data> data);
  std::unique_ptr<Data> data_;
};

}  // namespace phalanx::tokenizer

#endif  // PHALANX_RUNTIME_TOKENIZER_NORMALIZATION_FORM_H_
