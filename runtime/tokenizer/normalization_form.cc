#include "runtime/tokenizer/normalization_form.h"

#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "runtime/tokenizer/code_point_set.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

bool InUnicode9(uint32_t c) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(c), age);
  return age[0] >= 1 && (age[0] < 9 || (age[0] == 9 && age[1] == 0));
}

struct Element {
  uint32_t code_point;
  uint8_t combining_class;
};

}  // namespace

struct NormalizationForm::Data {
  const icu::Normalizer2* icu = nullptr;
  const icu::Normalizer2* composer = nullptr;  // nullptr for the decomposed forms
  CodePointBitmap known{CodePointSet()};       // characters of Unicode 9.0
  CodePointBitmap inert{CodePointSet()};       // stay as they are among whatever neighbours
  CodePointBitmap boundary{CodePointSet()};    // never change with what is before them

  void Decompose(uint32_t c, std::vector<Element>* out) const {
    icu::UnicodeString mapped;
    if (!known.Contains(c)) {
      out->push_back({c, 0});
    } else if (!icu->getDecomposition(static_cast<UChar32>(c), mapped)) {
      out->push_back({c, u_getCombiningClass(static_cast<UChar32>(c))});
    } else {
      for (int32_t i = 0; i < mapped.length(); i = mapped.moveIndex32(i, 1)) {
        const UChar32 d = mapped.char32At(i);
        out->push_back({static_cast<uint32_t>(d), u_getCombiningClass(d)});
      }
    }
  }

  // Puts `*run`, which starts at a boundary, into order, composes it and appends it.
  void Flush(std::vector<Element>* run, std::string* out) const {
    for (size_t i = 0; i < run->size();) {
      if ((*run)[i].combining_class == 0) {
        ++i;
        continue;
      }
      size_t end = i;
      while (end < run->size() && (*run)[end].combining_class != 0) ++end;
      std::stable_sort(
          run->begin() + static_cast<std::ptrdiff_t>(i),
          run->begin() + static_cast<std::ptrdiff_t>(end),
          [](const Element& a, const Element& b) { return a.combining_class < b.combining_class; });
      i = end;
    }
    if (composer != nullptr) Compose(run);
    for (const Element& e : *run) AppendUtf8(e.code_point, out);
    run->clear();
  }

  void Compose(std::vector<Element>* run) const {
    size_t kept = 0;
    size_t starter = run->size();  // index of the last starter kept; size(): none yet
    int last_class = -1;           // of the last one kept behind the starter; -1: none is
    for (size_t i = 0; i < run->size(); ++i) {
      const Element e = (*run)[i];
      if (starter < run->size() && last_class < static_cast<int>(e.combining_class)) {
        const UChar32 composite = composer->composePair(
            static_cast<UChar32>((*run)[starter].code_point), static_cast<UChar32>(e.code_point));
        if (composite >= 0 && known.Contains(static_cast<uint32_t>(composite))) {
          (*run)[starter].code_point = static_cast<uint32_t>(composite);
          continue;
        }
      }
      if (e.combining_class == 0) {
        starter = kept;
        last_class = -1;
      } else {
        last_class = e.combining_class;
      }
      (*run)[kept++] = e;
    }
    run->resize(kept);
  }
};

NormalizationForm::NormalizationForm(std::unique_ptr<Data> data) : data_(std::move(data)) {}
NormalizationForm::~NormalizationForm() = default;

absl::StatusOr<std::shared_ptr<const NormalizationForm>> NormalizationForm::Get(
    NormalizationKind kind) {
  using Form = absl::StatusOr<std::shared_ptr<const NormalizationForm>>;
  switch (kind) {
    case NormalizationKind::kNfc: {
      static const auto* const form = new Form(Create(kind));
      return *form;
    }
    case NormalizationKind::kNfd: {
      static const auto* const form = new Form(Create(kind));
      return *form;
    }
    case NormalizationKind::kNfkc: {
      static const auto* const form = new Form(Create(kind));
      return *form;
    }
    case NormalizationKind::kNfkd:
      break;
  }
  static const auto* const form = new Form(Create(kind));
  return *form;
}

absl::StatusOr<std::shared_ptr<const NormalizationForm>> NormalizationForm::Create(
    NormalizationKind kind) {
  auto data = std::make_unique<Data>();
  UErrorCode error = U_ZERO_ERROR;
  switch (kind) {
    case NormalizationKind::kNfc:
      data->icu = data->composer = icu::Normalizer2::getNFCInstance(error);
      break;
    case NormalizationKind::kNfd:
      data->icu = icu::Normalizer2::getNFDInstance(error);
      break;
    case NormalizationKind::kNfkc:
      data->icu = icu::Normalizer2::getNFKCInstance(error);
      data->composer = icu::Normalizer2::getNFCInstance(error);
      break;
    case NormalizationKind::kNfkd:
      data->icu = icu::Normalizer2::getNFKDInstance(error);
      break;
  }
  if (U_FAILURE(error)) {
    return absl::InternalError(Concat("ICU has no normalization data (", u_errorName(error), ")"));
  }
  CodePointSet known;
  CodePointSet inert;
  CodePointSet boundary;
  for (uint32_t c = 0; c <= kMaxCodePoint; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const bool is_known = InUnicode9(c);
    if (is_known) known.Add(c, c);
    if (!is_known || data->icu->isInert(static_cast<UChar32>(c))) inert.Add(c, c);
    if (!is_known || data->icu->hasBoundaryBefore(static_cast<UChar32>(c))) boundary.Add(c, c);
  }
  data->known = CodePointBitmap(known);
  data->inert = CodePointBitmap(inert);
  data->boundary = CodePointBitmap(boundary);
  return std::shared_ptr<const NormalizationForm>(new NormalizationForm(std::move(data)));
}

std::string NormalizationForm::Apply(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  std::vector<Element> run;
  for (size_t i = 0; i < text.size();) {
    const size_t start = i;
    const uint32_t c = NextCodePoint(text, &i);
    if (data_->boundary.Contains(c)) data_->Flush(&run, &out);
    const bool plain_ascii = c < 0x80 && (i == text.size() || static_cast<uint8_t>(text[i]) < 0x80);
    if (plain_ascii || data_->inert.Contains(c)) {
      data_->Flush(&run, &out);
      out.append(text.substr(start, i - start));
    } else {
      data_->Decompose(c, &run);
    }
  }
  data_->Flush(&run, &out);
  return out;
}

}  // namespace phalanx::tokenizer
