#include "runtime/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/text_pattern.h"
#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

using PreTokenizerPtr = std::unique_ptr<const PreTokenizer>;

// https://github.com/openai/gpt-2/blob/master/src/encoder.py
constexpr std::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// A stretch of a piece: a match of the delimiter, or what lies between two.
struct Cut {
  size_t begin;
  size_t end;
  bool is_match;
};

// Covers [0, size) with the matches and what is between them.
void CutAt(const std::vector<Match>& matches, size_t size, std::vector<Cut>* cuts) {
  cuts->clear();
  size_t from = 0;
  for (const Match& match : matches) {
    if (from != match.begin) cuts->push_back({from, match.begin, false});
    cuts->push_back({match.begin, match.end, true});
    from = match.end;
  }
  if (from != size) cuts->push_back({from, size, false});
}

// Merges or drops cuts as the behavior says; what is left goes to the model.
void ApplyBehavior(Behavior behavior, std::vector<Cut>* cuts) {
  std::vector<Cut>& c = *cuts;
  size_t kept = 0;
  bool previous_match = false;
  switch (behavior) {
    case Behavior::kIsolated:
      return;
    case Behavior::kRemoved:
      c.erase(std::remove_if(c.begin(), c.end(), [](const Cut& cut) { return cut.is_match; }),
              c.end());
      return;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (size_t i = 0; i < c.size(); ++i) {
        const bool is_match = c[i].is_match;
        const bool merge = behavior == Behavior::kContiguous ? is_match == previous_match
                                                             : is_match && !previous_match;
        if (merge && kept > 0) {
          c[kept - 1].end = c[i].end;
        } else {
          c[kept++] = c[i];
        }
        previous_match = is_match;
      }
      c.resize(kept);
      return;
    case Behavior::kMergedWithNext: {
      size_t out = c.size();  // the merged cuts are [out, size)
      for (size_t i = c.size(); i-- > 0;) {
        const bool is_match = c[i].is_match;
        if (is_match && !previous_match && out < c.size()) {
          c[out].begin = c[i].begin;
        } else {
          c[--out] = c[i];
        }
        previous_match = is_match;
      }
      c.erase(c.begin(), c.begin() + static_cast<std::ptrdiff_t>(out));
      return;
    }
  }
}

void AppendPieces(const Piece& parent, const std::vector<Cut>& cuts, std::vector<Piece>* out) {
  for (const Cut& cut : cuts) {
    if (cut.begin >= cut.end) continue;
    const auto begin = static_cast<uint32_t>(cut.begin);
    const uint32_t first = parent.first_bytes - std::min(parent.first_bytes, begin);
    out->push_back({parent.begin + begin, parent.begin + static_cast<uint32_t>(cut.end),
                    std::min(first, static_cast<uint32_t>(cut.end) - begin)});
  }
}

absl::Status TooLong() {
  return absl::ResourceExhaustedError("the text takes more than 4 GiB while it is tokenized");
}

// Splits every piece at the matches that `find(text, &matches)` gives.
template <typename Find>
absl::Status SplitPieces(PreTokenizedText* text, Behavior behavior, bool invert, Find find) {
  std::vector<Piece> out;
  out.reserve(text->pieces.size());
  std::vector<Match> matches;
  std::vector<Cut> cuts;
  for (const Piece& piece : text->pieces) {
    const std::string_view content = text->TextOf(piece);
    if (absl::Status s = find(content, &matches); !s.ok()) return s;
    CutAt(matches, content.size(), &cuts);
    if (invert) {
      for (Cut& cut : cuts) cut.is_match = !cut.is_match;
    }
    ApplyBehavior(behavior, &cuts);
    AppendPieces(piece, cuts, &out);
  }
  text->pieces = std::move(out);
  return absl::OkStatus();
}

template <typename Predicate>
absl::Status SplitAtCharacters(PreTokenizedText* text, Behavior behavior, Predicate predicate) {
  return SplitPieces(text, behavior, false,
                     [&](std::string_view content, std::vector<Match>* matches) {
                       matches->clear();
                       for (size_t i = 0; i < content.size();) {
                         const size_t begin = i;
                         if (predicate(NextCodePoint(content, &i))) matches->push_back({begin, i});
                       }
                       return absl::OkStatus();
                     });
}

// Rewrites every piece: `rewrite(piece, content, &text)` appends its new content and returns the
// new first_bytes.
template <typename Rewrite>
absl::Status RewritePieces(PreTokenizedText* text, size_t reserve, Rewrite rewrite) {
  std::string out;
  out.reserve(reserve);
  for (Piece& piece : text->pieces) {
    const size_t begin = out.size();
    const size_t first = rewrite(piece, text->TextOf(piece), &out);
    if (out.size() > UINT32_MAX) return TooLong();
    piece = {static_cast<uint32_t>(begin), static_cast<uint32_t>(out.size()),
             static_cast<uint32_t>(first)};
  }
  text->text = std::move(out);
  return absl::OkStatus();
}

class SequencePreTokenizer : public PreTokenizer {
 public:
  explicit SequencePreTokenizer(std::vector<PreTokenizerPtr> parts) : parts_(std::move(parts)) {}
  absl::Status Apply(PreTokenizedText* text, RegexScratch* scratch) const override {
    for (const PreTokenizerPtr& part : parts_) {
      if (absl::Status s = part->Apply(text, scratch); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  std::vector<PreTokenizerPtr> parts_;
};

class SplitPreTokenizer : public PreTokenizer {
 public:
  SplitPreTokenizer(TextPattern pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  absl::Status Apply(PreTokenizedText* text, RegexScratch* scratch) const override {
    return SplitPieces(text, behavior_, invert_,
                       [&](std::string_view content, std::vector<Match>* matches) {
                         return pattern_.FindAll(content, scratch, matches);
                       });
  }

 private:
  TextPattern pattern_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevelPreTokenizer : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, std::shared_ptr<const Regex> regex)
      : add_prefix_space_(add_prefix_space), regex_(std::move(regex)) {}
  absl::Status Apply(PreTokenizedText* text, RegexScratch* scratch) const override {
    if (add_prefix_space_) {
      absl::Status s = RewritePieces(
          text, text->text.size() + text->pieces.size(),
          [](const Piece& piece, std::string_view content, std::string* out) -> size_t {
            const bool add = content[0] != ' ';
            if (add) out->push_back(' ');
            out->append(content);
            return piece.first_bytes + (add && piece.first_bytes > 0 ? 1 : 0);
          });
      if (!s.ok()) return s;
    }
    if (regex_ != nullptr) {
      absl::Status s = SplitPieces(text, Behavior::kIsolated, false,
                                   [&](std::string_view content, std::vector<Match>* matches) {
                                     return regex_->FindAll(content, scratch, matches);
                                   });
      if (!s.ok()) return s;
    }
    return RewritePieces(
        text, text->text.size() + text->text.size() / 4,
        [](const Piece& piece, std::string_view content, std::string* out) -> size_t {
          const size_t begin = out->size();
          AppendByteLevel(content.substr(0, piece.first_bytes), out);
          const size_t first = out->size() - begin;
          AppendByteLevel(content.substr(piece.first_bytes), out);
          return first;
        });
  }

 private:
  bool add_prefix_space_;
  std::shared_ptr<const Regex> regex_;  // or nullptr
};

class MetaspacePreTokenizer : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  MetaspacePreTokenizer(uint32_t replacement, Prepend prepend, bool split)
      : replacement_(replacement), prepend_(prepend), split_(split) {
    AppendUtf8(replacement, &utf8_);
  }
  absl::Status Apply(PreTokenizedText* text, RegexScratch*) const override {
    absl::Status s = RewritePieces(
        text, text->text.size() + text->text.size() / 2,
        [&](const Piece& piece, std::string_view content, std::string* out) -> size_t {
          const size_t begin = out->size();
          const bool starts_with_it = content[0] == ' ' || content.substr(0, utf8_.size()) == utf8_;
          if (!starts_with_it && (prepend_ == Prepend::kAlways ||
                                  (prepend_ == Prepend::kFirst && piece.first_bytes > 0))) {
            out->append(utf8_);
          }
          size_t first = 0;
          for (size_t i = 0; i < content.size(); ++i) {
            if (i == piece.first_bytes) first = out->size() - begin;
            if (content[i] == ' ') {
              out->append(utf8_);
            } else {
              out->push_back(content[i]);
            }
          }
          if (piece.first_bytes == 0) return 0;
          return piece.first_bytes == content.size() ? out->size() - begin : first;
        });
    if (!s.ok() || !split_) return s;
    return SplitAtCharacters(text, Behavior::kMergedWithNext,
                             [this](uint32_t c) { return c == replacement_; });
  }

 private:
  uint32_t replacement_;
  std::string utf8_;
  Prepend prepend_;
  bool split_;
};

// A pre-tokenizer that splits at the characters of a predicate.
class CharacterPreTokenizer : public PreTokenizer {
 public:
  CharacterPreTokenizer(bool (*predicate)(uint32_t), Behavior behavior)
      : predicate_(predicate), behavior_(behavior) {}
  absl::Status Apply(PreTokenizedText* text, RegexScratch*) const override {
    return SplitAtCharacters(text, behavior_, predicate_);
  }

 private:
  bool (*predicate_)(uint32_t);
  Behavior behavior_;
};

// `Whitespace`: keeps \w+ and [^\w\s]+.
class WhitespacePreTokenizer : public PreTokenizer {
 public:
  absl::Status Apply(PreTokenizedText* text, RegexScratch*) const override {
    const auto kind = [](uint32_t c) { return IsRustWord(c) ? 2 : IsWhitespace(c) ? 0 : 1; };
    return SplitPieces(text, Behavior::kRemoved, true,
                       [&](std::string_view content, std::vector<Match>* matches) {
                         matches->clear();
                         for (size_t i = 0; i < content.size();) {
                           const size_t begin = i;
                           const int run = kind(NextCodePoint(content, &i));
                           for (size_t next = i; i < content.size(); i = next) {
                             if (kind(NextCodePoint(content, &next)) != run) break;
                           }
                           if (run != 0) matches->push_back({begin, i});
                         }
                         return absl::OkStatus();
                       });
  }
};

Behavior ReadBehavior(ObjectReader* reader, const std::string& value) {
  static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  for (const auto& [name, behavior] : kBehaviors) {
    if (value == name) return behavior;
  }
  reader->Fail(Concat("behavior \"", value, "\" is not supported"));
  return Behavior::kIsolated;
}

absl::StatusOr<PreTokenizerPtr> ByteLevel(ObjectReader* reader) {
  const bool add_prefix_space = reader->Bool("add_prefix_space");
  reader->Bool("trim_offsets", true);  // offsets are not reported
  const bool use_regex = reader->Bool("use_regex", true);
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  std::shared_ptr<const Regex> regex;
  if (use_regex) {
    auto compiled = Regex::Compile(kGpt2Regex);
    if (!compiled.ok()) return compiled.status();
    regex = *std::move(compiled);
  }
  return std::make_unique<ByteLevelPreTokenizer>(add_prefix_space, std::move(regex));
}

absl::StatusOr<PreTokenizerPtr> Metaspace(ObjectReader* reader) {
  using Prepend = MetaspacePreTokenizer::Prepend;
  const uint32_t replacement = reader->Character("replacement");
  const bool add_prefix_space = reader->Bool("add_prefix_space", true);
  const std::string scheme =
      reader->String("prepend_scheme", add_prefix_space ? "always" : "never");
  const bool split = reader->Bool("split", true);
  Prepend prepend = Prepend::kAlways;
  if (scheme == "first") {
    prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    prepend = Prepend::kNever;
  } else if (scheme != "always") {
    reader->Fail(Concat("prepend_scheme \"", scheme, "\" is not supported"));
  }
  if (!add_prefix_space && prepend != Prepend::kNever) {
    reader->Fail("add_prefix_space is false, but prepend_scheme is not \"never\"");
  }
  if (absl::Status s = reader->Finish({"str_rep"}); !s.ok()) return s;
  return std::make_unique<MetaspacePreTokenizer>(replacement, prepend, split);
}

absl::StatusOr<PreTokenizerPtr> Split(ObjectReader* reader) {
  const Json* pattern = reader->Object("pattern");
  const Behavior behavior = ReadBehavior(reader, reader->String("behavior"));
  const bool invert = reader->Bool("invert");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  auto parsed = TextPattern::FromJson(*pattern, reader->where());
  if (!parsed.ok()) return parsed.status();
  return std::make_unique<SplitPreTokenizer>(*std::move(parsed), behavior, invert);
}

absl::StatusOr<PreTokenizerPtr> ReadSequencePreTokenizer(ObjectReader* reader) {
  const Json* array = reader->Array("pretokenizers");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  std::vector<PreTokenizerPtr> parts;
  for (size_t i = 0; i < array->size(); ++i) {
    auto part =
        PreTokenizer::FromJson((*array)[i], Concat(reader->where(), ".pretokenizers[", i, "]"));
    if (!part.ok()) return part.status();
    parts.push_back(*std::move(part));
  }
  return std::make_unique<SequencePreTokenizer>(std::move(parts));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const PreTokenizer>> PreTokenizer::FromJson(
    const Json& json, const std::string& where) {
  ObjectReader reader(json, where);
  const std::string type = reader.String("type");
  if (type == "Sequence") return ReadSequencePreTokenizer(&reader);
  if (type == "ByteLevel") return ByteLevel(&reader);
  if (type == "Metaspace") return Metaspace(&reader);
  if (type == "Split") return Split(&reader);
  PreTokenizerPtr out;
  if (type == "Digits") {
    const bool individual = reader.Bool("individual_digits");
    out = std::make_unique<CharacterPreTokenizer>(
        &IsNumeric, individual ? Behavior::kIsolated : Behavior::kContiguous);
  } else if (type == "Punctuation") {
    out = std::make_unique<CharacterPreTokenizer>(
        &IsPunctuation, ReadBehavior(&reader, reader.String("behavior", "Isolated")));
  } else if (type == "WhitespaceSplit") {
    out = std::make_unique<CharacterPreTokenizer>(&IsWhitespace, Behavior::kRemoved);
  } else if (type == "Whitespace") {
    out = std::make_unique<WhitespacePreTokenizer>();
  } else if (type == "BertPreTokenizer") {
    std::vector<PreTokenizerPtr> parts;
    parts.push_back(std::make_unique<CharacterPreTokenizer>(&IsWhitespace, Behavior::kRemoved));
    parts.push_back(std::make_unique<CharacterPreTokenizer>(&IsPunctuation, Behavior::kIsolated));
    out = std::make_unique<SequencePreTokenizer>(std::move(parts));
  } else {
    reader.FailType(type);
  }
  if (absl::Status s = reader.Finish(); !s.ok()) return s;
  return out;
}

absl::StatusOr<std::unique_ptr<const PreTokenizer>> PreTokenizer::ByteLevelSplit(
    std::string_view regex) {
  auto compiled = Regex::Compile(regex);
  if (!compiled.ok()) return compiled.status();
  return std::make_unique<ByteLevelPreTokenizer>(false, *std::move(compiled));
}

}  // namespace phalanx::tokenizer
