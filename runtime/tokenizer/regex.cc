#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/tokenizer/regex_parser.h"
#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr size_t kMaxClasses = 256;  // one byte each
constexpr size_t kMaxSets = 1024;
constexpr size_t kJitStackStart = 64 << 10;
constexpr size_t kJitStackMax = 256 << 20;
constexpr uint32_t kHeapLimitKib = 512 << 10;
constexpr uint32_t kMinMatchLimit = 10'000'000;
constexpr size_t kMatchLimitPerByte = 64;

// Cuts Unicode at every border of a set; stretches that lie in the same sets form one class.
// `membership[class]` lists the sets that hold it.
absl::Status Partition(const ParsedRegex& parsed, std::vector<CodePointRange>* stretches,
                       std::vector<uint8_t>* stretch_class,
                       std::vector<std::vector<bool>>* membership) {
  if (parsed.sets.size() > kMaxSets) {
    return absl::InvalidArgumentError("has more character sets than are supported (1024)");
  }
  struct Edge {
    uint32_t at;
    size_t set;
  };
  std::vector<Edge> edges;
  for (size_t i = 0; i < parsed.sets.size(); ++i) {
    for (const CodePointRange& range : parsed.sets[i].ranges()) {
      edges.push_back({range.first, i});
      edges.push_back({range.last + 1, i});
    }
  }
  std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.at < b.at; });
  std::vector<bool> inside(parsed.sets.size(), false);
  std::map<std::vector<bool>, uint8_t> classes;
  uint32_t start = 0;
  for (size_t e = 0; start <= kMaxCodePoint;) {
    for (; e < edges.size() && edges[e].at == start; ++e) {
      inside[edges[e].set] = !inside[edges[e].set];
    }
    const uint32_t end = e < edges.size() ? edges[e].at : kMaxCodePoint + 1;
    auto it = classes.find(inside);
    if (it == classes.end()) {
      if (classes.size() == kMaxClasses) {
        return absl::InvalidArgumentError(
            "tells more kinds of characters apart than are supported (256)");
      }
      it = classes.emplace(inside, static_cast<uint8_t>(classes.size())).first;
      membership->push_back(inside);
    }
    stretches->push_back({start, end - 1});
    stretch_class->push_back(it->second);
    start = end;
  }
  return absl::OkStatus();
}

// PCRE2 syntax for "one byte, the number of a class that set `set` holds".
std::string ByteSet(int set, const std::vector<std::vector<bool>>& membership) {
  std::string out = "[";
  for (size_t c = 0; c < membership.size(); ++c) {
    if (membership[c][static_cast<size_t>(set)]) out += absl::StrFormat("\\x%02x", c);
  }
  if (out.size() == 1) return "(?!)";
  return out + "]";
}

std::string PcreMessage(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) return Concat("error ", code);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Program {
  ~Program() { pcre2_code_free(code); }
  pcre2_code* code = nullptr;
};

struct RegexScratch::Impl {
  ~Impl() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(jit_stack);
  }
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* jit_stack = nullptr;  // made when the default 32 KiB have not been enough
  std::string subject;                   // class numbers, one a character
};

RegexScratch::RegexScratch() : impl_(std::make_unique<Impl>()) {}
RegexScratch::~RegexScratch() = default;

Regex::Regex() = default;
Regex::~Regex() = default;

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Compile(std::string_view pattern) {
  absl::StatusOr<ParsedRegex> parsed = ParseRegex(pattern);
  if (!parsed.ok()) return parsed.status();
  std::vector<CodePointRange> stretches;
  std::vector<uint8_t> stretch_class;
  std::vector<std::vector<bool>> membership;
  if (absl::Status s = Partition(*parsed, &stretches, &stretch_class, &membership); !s.ok()) {
    return absl::InvalidArgumentError(Concat("regex \"", pattern, "\" ", s.message()));
  }

  auto regex = std::unique_ptr<Regex>(new Regex);
  regex->pattern_ = std::string(pattern);
  std::map<std::string, uint16_t> block_numbers;
  size_t stretch = 0;
  for (uint32_t block = 0; block <= kMaxCodePoint >> 8; ++block) {
    std::string content(256, '\0');
    for (uint32_t i = 0; i < 256; ++i) {
      const uint32_t c = block << 8 | i;
      while (stretches[stretch].last < c) ++stretch;
      content[i] = static_cast<char>(stretch_class[stretch]);
    }
    const auto next = static_cast<uint16_t>(block_numbers.size());
    const auto [it, inserted] = block_numbers.emplace(std::move(content), next);
    if (inserted) regex->classes_.insert(regex->classes_.end(), it->first.begin(), it->first.end());
    regex->blocks_.push_back(it->second);
  }

  std::string translated;
  for (const RegexItem& item : parsed->items) {
    translated += item.set >= 0 ? ByteSet(item.set, membership) : item.text;
  }
  regex->program_ = std::make_unique<Program>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  regex->program_->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_UTF, &error, &offset, nullptr);
  if (regex->program_->code == nullptr) {
    return absl::InvalidArgumentError(
        Concat("regex \"", pattern, "\" is not supported: ", PcreMessage(error)));
  }
  // Without JIT (an architecture that PCRE2 has none for) the interpreter gives the same matches.
  pcre2_jit_compile(regex->program_->code, PCRE2_JIT_COMPLETE);
  return std::unique_ptr<const Regex>(std::move(regex));
}

// Leaves the match in the scratch's match data; returns PCRE2's code, which is positive for a match
// or PCRE2_ERROR_NOMATCH.
absl::StatusOr<int> Regex::MatchAt(std::string_view subject, size_t start,
                                   RegexScratch* scratch) const {
  RegexScratch::Impl& s = *scratch->impl_;
  const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  int rc = pcre2_match(program_->code, text, subject.size(), start, 0, s.data, s.context);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT && s.jit_stack == nullptr) {
    s.jit_stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
    if (s.jit_stack != nullptr) {
      pcre2_jit_stack_assign(s.context, nullptr, s.jit_stack);
      rc = pcre2_match(program_->code, text, subject.size(), start, 0, s.data, s.context);
    }
  }
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(program_->code, text, subject.size(), start, PCRE2_NO_JIT, s.data, s.context);
  }
  if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH) return rc;
  return absl::ResourceExhaustedError(Concat("regex \"", pattern_, "\" gave up on a text of ",
                                             subject.size(), " characters (", PcreMessage(rc),
                                             "); send a shorter text"));
}

absl::Status Regex::FindAll(std::string_view text, RegexScratch* scratch,
                            std::vector<Match>* matches) const {
  matches->clear();
  RegexScratch::Impl& s = *scratch->impl_;
  if (s.data == nullptr || s.context == nullptr) {
    return absl::ResourceExhaustedError("out of memory for a regex match");
  }
  std::string& subject = s.subject;
  subject.clear();
  subject.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte < 0x80) {
      subject.push_back(static_cast<char>(ClassOf(byte)));
      ++i;
    } else {
      subject.push_back(static_cast<char>(ClassOf(NextCodePoint(text, &i))));
    }
  }
  const bool ascii = subject.size() == text.size();
  pcre2_set_match_limit(
      s.context, static_cast<uint32_t>(std::clamp<size_t>(kMatchLimitPerByte * subject.size(),
                                                          kMinMatchLimit, UINT32_MAX)));
  pcre2_set_heap_limit(s.context, kHeapLimitKib);

  size_t at = 0;  // a position in the subject, and the byte offset in the text that it stands for
  size_t at_byte = 0;
  const auto byte_offset = [&](size_t position) {
    if (ascii) return position;
    for (; at < position; ++at) at_byte += Utf8Length(text[at_byte]);
    return at_byte;
  };
  size_t start = 0;
  size_t last_end = std::string_view::npos;
  while (start <= subject.size()) {
    absl::StatusOr<int> rc = MatchAt(subject, start, scratch);
    if (!rc.ok()) return rc.status();
    if (*rc == PCRE2_ERROR_NOMATCH) break;
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(s.data);
    const size_t begin = ovector[0];
    const size_t end = ovector[1];
    if (begin == end && end == last_end) {
      ++start;
      continue;
    }
    start = end;
    last_end = end;
    const size_t begin_byte = byte_offset(begin);
    matches->push_back({begin_byte, byte_offset(end)});
  }
  return absl::OkStatus();
}

}  // namespace phalanx::tokenizer
