#include "runtime/tokenizer/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/text_pattern.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

using StagePtr = std::unique_ptr<DecodeStage>;

class OutputStage : public DecodeStage {
 public:
  explicit OutputStage(std::string* out) : out_(out) {}
  void Fragment(std::string_view text, bool) override { out_->append(text); }
  void Finish() override {}

 private:
  std::string* out_;
};

class ChainedStage : public DecodeStage {
 public:
  explicit ChainedStage(StagePtr next) : next_(std::move(next)) {}

 protected:
  StagePtr next_;
};

// A stage that needs a token whole.
class WholeTokenStage : public ChainedStage {
 public:
  using ChainedStage::ChainedStage;
  void Fragment(std::string_view text, bool ends_token) final {
    if (!ends_token) {
      token_.append(text);
      return;
    }
    if (token_.empty()) {
      Token(text);
    } else {
      token_.append(text);
      std::string token;
      token.swap(token_);
      Token(token);
    }
  }

 protected:
  virtual void Token(std::string_view token) = 0;

 private:
  std::string token_;
};

// No decoder: a space between tokens.
class JoinStage : public ChainedStage {
 public:
  using ChainedStage::ChainedStage;
  void Fragment(std::string_view text, bool ends_token) override {
    if (starts_token_ && !first_) next_->Fragment(" ", false);
    first_ = false;
    starts_token_ = ends_token;
    next_->Fragment(text, ends_token);
  }
  void Finish() override { next_->Finish(); }

 private:
  bool first_ = true;
  bool starts_token_ = true;
};

class FuseStage : public ChainedStage {
 public:
  using ChainedStage::ChainedStage;
  void Fragment(std::string_view text, bool) override { next_->Fragment(text, false); }
  void Finish() override {
    next_->Fragment("", true);
    next_->Finish();
  }
};

class ByteLevelStage : public WholeTokenStage {
 public:
  using WholeTokenStage::WholeTokenStage;
  void Token(std::string_view token) override {
    bytes_.clear();
    if (!AppendBytesOfByteLevel(token, &bytes_)) bytes_.assign(token);
    std::string text;
    utf8_.Append(bytes_, &text);
    next_->Fragment(text, false);
  }
  void Finish() override {
    std::string text;
    utf8_.Finish(&text);
    next_->Fragment(text, true);
    next_->Finish();
  }

 private:
  std::string bytes_;
  LossyUtf8Decoder utf8_;
};

// A run of tokens <0xHH> is the text of its bytes, or U+FFFD for each of them where the whole run
// is not valid UTF-8. So no part of it is certain before the run ends.
class ByteFallbackStage : public WholeTokenStage {
 public:
  using WholeTokenStage::WholeTokenStage;
  void Token(std::string_view token) override {
    const int byte = ByteOf(token);
    if (byte >= 0) {
      run_.push_back(static_cast<char>(byte));
      return;
    }
    EndRun();
    next_->Fragment(token, true);
  }
  void Finish() override {
    EndRun();
    next_->Finish();
  }

 private:
  // Two hexadecimal digits; the library's number parser also takes a sign before one digit.
  static int ByteOf(std::string_view token) {
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
    const int low = Digit(token[4]);
    if (low < 0) return -1;
    if (token[3] == '+') return low;
    const int high = Digit(token[3]);
    return high < 0 ? -1 : high << 4 | low;
  }
  static int Digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
  }

  void EndRun() {
    if (run_.empty()) return;
    std::string run;
    run.swap(run_);
    if (FindInvalidUtf8(run) == std::string_view::npos) {
      next_->Fragment(run, true);
    } else {
      for (size_t i = 0; i < run.size(); ++i) next_->Fragment(kReplacementCharacter, true);
    }
  }

  std::string run_;
};

class MetaspaceStage : public ChainedStage {
 public:
  MetaspaceStage(StagePtr next, std::string replacement, bool strip_first)
      : ChainedStage(std::move(next)),
        replacement_(std::move(replacement)),
        in_stripped_token_(strip_first) {}
  void Fragment(std::string_view text, bool ends_token) override {
    std::string out;
    for (size_t i = 0; i < text.size();) {
      if (text.substr(i, replacement_.size()) == replacement_) {
        if (!in_stripped_token_) out.push_back(' ');
        i += replacement_.size();
      } else {
        out.push_back(text[i++]);
      }
    }
    if (ends_token) in_stripped_token_ = false;
    next_->Fragment(out, ends_token);
  }
  void Finish() override { next_->Finish(); }

 private:
  std::string replacement_;
  bool in_stripped_token_;  // the first token loses the character instead of a space taking it
};

// Removes up to `start` of the character at every token's start and up to `stop` at its end.
class StripStage : public ChainedStage {
 public:
  StripStage(StagePtr next, std::string content, int64_t start, int64_t stop)
      : ChainedStage(std::move(next)),
        content_(std::move(content)),
        start_(start),
        stop_(stop),
        left_(start) {}
  void Fragment(std::string_view text, bool ends_token) override {
    while (left_ > 0 && !text.empty()) {
      if (text.substr(0, content_.size()) != content_) {
        left_ = 0;
        break;
      }
      text.remove_prefix(content_.size());
      --left_;
    }
    std::string out;
    for (size_t i = 0; stop_ > 0 && i < text.size();) {
      if (text.substr(i, content_.size()) == content_) {
        if (held_ == stop_) {
          out += content_;
        } else {
          ++held_;
        }
        i += content_.size();
      } else {
        for (; held_ > 0; --held_) out += content_;
        const size_t length = Utf8Length(text[i]);
        out += text.substr(i, length);
        i += length;
      }
    }
    if (stop_ == 0) out = text;
    if (ends_token) {
      left_ = start_;
      held_ = 0;
    }
    next_->Fragment(out, ends_token);
  }
  void Finish() override { next_->Finish(); }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
  int64_t left_;      // still to strip at the start of this token
  int64_t held_ = 0;  // of the characters that may turn out to be the token's last, at most stop_
};

class ReplaceLiteralStage : public ChainedStage {
 public:
  ReplaceLiteralStage(StagePtr next, std::string pattern, std::string content)
      : ChainedStage(std::move(next)), pattern_(std::move(pattern)), content_(std::move(content)) {}
  void Fragment(std::string_view fragment, bool ends_token) override {
    held_.append(fragment);
    const std::string_view text = held_;
    std::string out;
    size_t from = 0;
    for (size_t at = text.find(pattern_); at != std::string_view::npos;
         at = text.find(pattern_, from)) {
      out += text.substr(from, at - from);
      out += content_;
      from = at + pattern_.size();
    }
    size_t end = text.size();
    if (!ends_token) {  // hold back what may be the beginning of the pattern
      size_t n = std::min(pattern_.size() - 1, text.size() - from);
      while (n > 0 && text.substr(end - n) != std::string_view(pattern_).substr(0, n)) --n;
      end -= n;
    }
    out += text.substr(from, end - from);
    held_ = std::string(text.substr(end));
    next_->Fragment(out, ends_token);
  }
  void Finish() override { next_->Finish(); }

 private:
  std::string pattern_;
  std::string content_;
  std::string held_;
};

class ReplaceRegexStage : public WholeTokenStage {
 public:
  ReplaceRegexStage(StagePtr next, TextPattern pattern, std::string content)
      : WholeTokenStage(std::move(next)),
        pattern_(std::move(pattern)),
        content_(std::move(content)) {}
  void Token(std::string_view token) override {
    std::vector<Match> matches;
    // Decoding has no error of its own; a token on which the engine gives up stays as it is.
    if (!pattern_.FindAll(token, &scratch_, &matches).ok()) matches.clear();
    std::string out;
    size_t from = 0;
    for (const Match& match : matches) {
      out += token.substr(from, match.begin - from);
      out += content_;
      from = match.end;
    }
    out += token.substr(from);
    next_->Fragment(out, true);
  }
  void Finish() override { next_->Finish(); }

 private:
  TextPattern pattern_;
  std::string content_;
  RegexScratch scratch_;
};

// A word's suffix becomes a space, that of the last token nothing.
class BpeSuffixStage : public WholeTokenStage {
 public:
  BpeSuffixStage(StagePtr next, std::string suffix)
      : WholeTokenStage(std::move(next)), suffix_(std::move(suffix)) {}
  void Token(std::string_view token) override {
    if (has_last_) next_->Fragment(Replaced(" "), true);
    has_last_ = true;
    last_ = std::string(token);
  }
  void Finish() override {
    if (has_last_) next_->Fragment(Replaced(""), true);
    next_->Finish();
  }

 private:
  std::string Replaced(std::string_view with) const {
    std::string out;
    size_t from = 0;
    for (size_t at = last_.find(suffix_); at != std::string::npos; at = last_.find(suffix_, from)) {
      out.append(last_, from, at - from);
      out += with;
      from = at + suffix_.size();
    }
    return out.append(last_, from, std::string::npos);
  }

  std::string suffix_;
  bool has_last_ = false;
  std::string last_;
};

template <typename Stage, typename... Args>
auto MakeFactory(Args... args) {
  return [args...](StagePtr next) -> StagePtr {
    return std::make_unique<Stage>(std::move(next), args...);
  };
}

}  // namespace

Decoder::Decoder() { factories_.push_back(MakeFactory<JoinStage>()); }

absl::StatusOr<Decoder> Decoder::FromJson(const Json& json, const std::string& where) {
  Decoder decoder;
  decoder.factories_.clear();
  if (absl::Status s = Parse(json, where, &decoder.factories_); !s.ok()) return s;
  return decoder;
}

std::unique_ptr<DecodeStage> Decoder::NewStages(std::string* out) const {
  StagePtr stage = std::make_unique<OutputStage>(out);
  for (size_t i = factories_.size(); i-- > 0;) stage = factories_[i](std::move(stage));
  return stage;
}

absl::Status Decoder::Parse(const Json& json, const std::string& where,
                            std::vector<Factory>* factories) {
  ObjectReader reader(json, where);
  const std::string type = reader.String("type");
  if (type == "Sequence") {
    const Json* array = reader.Array("decoders");
    if (absl::Status s = reader.Finish(); !s.ok()) return s;
    for (size_t i = 0; i < array->size(); ++i) {
      absl::Status s = Parse((*array)[i], Concat(where, ".decoders[", i, "]"), factories);
      if (!s.ok()) return s;
    }
    return absl::OkStatus();
  }
  if (type == "Replace") {
    const Json* pattern_json = reader.Object("pattern");
    const std::string content = reader.String("content");
    if (absl::Status s = reader.Finish(); !s.ok()) return s;
    auto pattern = TextPattern::FromJson(*pattern_json, where);
    if (!pattern.ok()) return pattern.status();
    if (pattern->is_literal()) {
      factories->push_back(MakeFactory<ReplaceLiteralStage>(pattern->literal(), content));
    } else {
      factories->push_back(MakeFactory<ReplaceRegexStage>(*pattern, content));
    }
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    reader.Bool("add_prefix_space", true);  // all three concern encoding only
    reader.Bool("trim_offsets", true);
    reader.Bool("use_regex", true);
    factories->push_back(MakeFactory<ByteLevelStage>());
  } else if (type == "ByteFallback") {
    factories->push_back(MakeFactory<ByteFallbackStage>());
  } else if (type == "Fuse") {
    factories->push_back(MakeFactory<FuseStage>());
  } else if (type == "Metaspace") {
    std::string replacement;
    AppendUtf8(reader.Character("replacement"), &replacement);
    const bool add_prefix_space = reader.Bool("add_prefix_space", true);
    const std::string scheme =
        reader.String("prepend_scheme", add_prefix_space ? "always" : "never");
    reader.Bool("split", true);
    reader.String("str_rep", "");
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      reader.Fail(Concat("prepend_scheme \"", scheme, "\" is not supported"));
    }
    if (!add_prefix_space && scheme != "never") {
      reader.Fail("add_prefix_space is false, but prepend_scheme is not \"never\"");
    }
    factories->push_back(MakeFactory<MetaspaceStage>(replacement, scheme != "never"));
  } else if (type == "Strip") {
    std::string content;
    AppendUtf8(reader.Character("content"), &content);
    const int64_t start = reader.Int("start");
    factories->push_back(MakeFactory<StripStage>(content, start, reader.Int("stop")));
  } else if (type == "BPEDecoder") {
    const std::string suffix = reader.String("suffix");
    if (suffix.empty()) reader.Fail("\"suffix\" is empty; expected the end of a word, as \"</w>\"");
    factories->push_back(MakeFactory<BpeSuffixStage>(suffix));
  } else {
    reader.FailType(type);
  }
  return reader.Finish();
}

}  // namespace phalanx::tokenizer
