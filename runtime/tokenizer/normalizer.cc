#include "runtime/tokenizer/normalizer.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/normalization_form.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/text_pattern.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

using NormalizerPtr = std::unique_ptr<const Normalizer>;

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<NormalizerPtr> parts) : parts_(std::move(parts)) {}
  absl::Status Apply(Segment* segment, RegexScratch* scratch) const override {
    for (const NormalizerPtr& part : parts_) {
      if (absl::Status s = part->Apply(segment, scratch); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<NormalizerPtr> parts_;
};

class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(std::shared_ptr<const NormalizationForm> form) : form_(std::move(form)) {}
  absl::Status Apply(Segment* segment, RegexScratch*) const override {
    std::string out = form_->Apply(segment->text);
    if (segment->first_bytes > 0 && !out.empty()) {
      const std::string_view first =
          std::string_view(segment->text).substr(0, segment->first_bytes);
      segment->first_bytes =
          std::min(out.size(), std::max(Utf8Length(out[0]), form_->Apply(first).size()));
    }
    segment->text = std::move(out);
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<const NormalizationForm> form_;
};

// A normalizer that maps every character by itself to a string, possibly an empty one.
template <typename AppendMapped>
class CharacterNormalizer : public Normalizer {
 public:
  explicit CharacterNormalizer(AppendMapped append) : append_(append) {}
  absl::Status Apply(Segment* segment, RegexScratch*) const override {
    std::string out;
    out.reserve(segment->text.size());
    size_t first_bytes = 0;
    for (size_t i = 0; i < segment->text.size();) {
      const bool first = i < segment->first_bytes;
      append_(NextCodePoint(segment->text, &i), &out);
      if (first) first_bytes = out.size();
    }
    segment->text = std::move(out);
    segment->first_bytes = first_bytes;
    return absl::OkStatus();
  }

 private:
  AppendMapped append_;
};

template <typename AppendMapped>
NormalizerPtr PerCharacter(AppendMapped append) {
  return std::make_unique<CharacterNormalizer<AppendMapped>>(append);
}

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::Status Apply(Segment* segment, RegexScratch*) const override {
    if (segment->text.empty()) return absl::OkStatus();
    segment->text.insert(0, prefix_);
    if (segment->first_bytes > 0) segment->first_bytes += prefix_.size();
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  absl::Status Apply(Segment* segment, RegexScratch* scratch) const override {
    const std::string& text = segment->text;
    if (text.empty()) return absl::OkStatus();
    std::vector<Match> matches;
    if (absl::Status s = pattern_.FindAll(text, scratch, &matches); !s.ok()) return s;
    if (matches.empty()) return absl::OkStatus();
    std::string out;
    out.reserve(text.size());
    size_t from = 0;
    size_t first_bytes = 0;
    // What replaces a match counts as coming from the match's last character.
    for (const Match& match : matches) {
      out.append(text, from, match.begin - from);
      if (from < segment->first_bytes) {
        first_bytes = out.size() - (match.begin - std::min(match.begin, segment->first_bytes));
      }
      out.append(content_);
      if (segment->first_bytes > 0 && match.end <= segment->first_bytes) first_bytes = out.size();
      from = match.end;
    }
    if (from < segment->first_bytes) first_bytes = out.size() + segment->first_bytes - from;
    out.append(text, from, std::string::npos);
    segment->text = std::move(out);
    segment->first_bytes = first_bytes;
    return absl::OkStatus();
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Apply(Segment* segment, RegexScratch*) const override {
    const std::string& text = segment->text;
    size_t begin = 0;
    size_t end = text.size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!IsWhitespace(NextCodePoint(text, &next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      size_t previous = 0;
      if (!IsWhitespace(PreviousCodePoint(text, end, &previous))) break;
      end = previous;
    }
    segment->first_bytes =
        std::min(segment->first_bytes - std::min(segment->first_bytes, begin), end - begin);
    segment->text = text.substr(begin, end - begin);
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

absl::StatusOr<NormalizerPtr> ReadSequenceNormalizer(ObjectReader* reader) {
  const Json* array = reader->Array("normalizers");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  std::vector<NormalizerPtr> parts;
  for (size_t i = 0; i < array->size(); ++i) {
    auto part = Normalizer::FromJson((*array)[i], Concat(reader->where(), ".normalizers[", i, "]"));
    if (!part.ok()) return part.status();
    parts.push_back(*std::move(part));
  }
  return std::make_unique<SequenceNormalizer>(std::move(parts));
}

absl::StatusOr<NormalizerPtr> Replace(ObjectReader* reader) {
  const Json* pattern = reader->Object("pattern");
  const std::string content = reader->String("content");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  auto parsed = TextPattern::FromJson(*pattern, reader->where());
  if (!parsed.ok()) return parsed.status();
  return std::make_unique<ReplaceNormalizer>(*std::move(parsed), content);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Normalizer>> Normalizer::FromJson(const Json& json,
                                                                       const std::string& where) {
  ObjectReader reader(json, where);
  const std::string type = reader.String("type");
  if (type == "Sequence") return ReadSequenceNormalizer(&reader);
  if (type == "Replace") return Replace(&reader);
  static constexpr std::pair<std::string_view, NormalizationKind> kForms[] = {
      {"NFC", NormalizationKind::kNfc},
      {"NFD", NormalizationKind::kNfd},
      {"NFKC", NormalizationKind::kNfkc},
      {"NFKD", NormalizationKind::kNfkd}};
  for (const auto& [name, kind] : kForms) {
    if (type != name) continue;
    if (absl::Status s = reader.Finish(); !s.ok()) return s;
    auto form = NormalizationForm::Get(kind);
    if (!form.ok()) return form.status();
    return std::make_unique<FormNormalizer>(*std::move(form));
  }
  NormalizerPtr out;
  if (type == "Lowercase") {
    out = PerCharacter([](uint32_t c, std::string* to) { AppendLowercase(c, to); });
  } else if (type == "StripAccents") {
    out = PerCharacter([](uint32_t c, std::string* to) {
      if (!IsCombiningMark(c)) AppendUtf8(c, to);
    });
  } else if (type == "ByteLevel") {
    out = PerCharacter([](uint32_t c, std::string* to) {
      std::string bytes;
      AppendUtf8(c, &bytes);
      AppendByteLevel(bytes, to);
    });
  } else if (type == "Prepend") {
    out = std::make_unique<PrependNormalizer>(reader.String("prepend"));
  } else if (type == "Strip") {
    const bool left = reader.Bool("strip_left");
    out = std::make_unique<StripNormalizer>(left, reader.Bool("strip_right"));
  } else {
    reader.FailType(type);
  }
  if (absl::Status s = reader.Finish(); !s.ok()) return s;
  return out;
}

}  // namespace phalanx::tokenizer
