#include "launcher/yaml_reader.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "launcher/machine.h"
#include "proto/phalanx/v1/cluster.pb.h"
#include "yaml-cpp/yaml.h"

namespace phalanx::launcher {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string Quoted(const std::string& text) {
  constexpr size_t kShown = 60;
  const bool cut = text.size() > kShown;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text.substr(0, kShown)), cut ? "…" : "", "\"");
}

std::string YamlName(const EnumValueDescriptor& value) {
  if (value.number() == 0) return "";
  const std::string& zero = value.type()->FindValueByNumber(0)->name();
  const auto prefix = absl::StripSuffix(zero, "UNSPECIFIED");
  return absl::AsciiStrToLower(absl::StripPrefix(value.name(), prefix));
}

namespace {

// More than any configuration needs; keeps a mistyped path from being read for minutes.
constexpr size_t kMaxFileBytes = size_t{1} << 20;

// A scalar without quotes or an explicit tag: what YAML lets be a number or a truth value.
bool IsPlain(const YAML::Node& node) { return node.IsScalar() && node.Tag() == "?"; }

std::string Describe(const YAML::Node& node) {
  if (node.IsMap()) return "a mapping";
  if (node.IsSequence()) return "a list";
  if (node.IsScalar()) return absl::StrCat(IsPlain(node) ? "" : "the text ", Quoted(node.Scalar()));
  return "nothing";
}

std::string FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  names.reserve(type.field_count());
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return absl::StrJoin(names, ", ");
}

// Reads a whole number in the unit of `field`: by its own or the file's unit. Returns what is
// wrong, or an empty text.
std::string ParseInteger(const YAML::Node& node, const FieldDescriptor& field, int64_t* out) {
  const bool bytes = absl::EndsWith(field.name(), "_bytes");
  const bool milliseconds = absl::EndsWith(field.name(), "_ms");
  const std::string expected = bytes          ? "a size such as 512MiB, 8GiB or a number of bytes"
                               : milliseconds ? "a duration such as 30s, 500ms or a number of "
                                                "milliseconds"
                                              : "a whole number";
  std::string wrong = absl::StrCat("expected ", expected, ", found ", Describe(node));
  if (!node.IsScalar()) return wrong;
  const std::string& text = node.Scalar();
  const size_t sign = absl::StartsWith(text, "-") || absl::StartsWith(text, "+") ? 1 : 0;
  const bool digits =
      text.size() > sign && std::all_of(text.begin() + static_cast<std::ptrdiff_t>(sign),
                                        text.end(), absl::ascii_isdigit);
  bool fits = true;
  if (digits && IsPlain(node)) {
    fits = absl::SimpleAtoi(text, out);
  } else if (bytes) {
    const absl::StatusOr<int64_t> parsed = ParseBytes(text);
    if (!parsed.ok()) return wrong;
    *out = *parsed;
  } else if (milliseconds) {
    absl::Duration duration;
    if (!absl::ParseDuration(text, &duration) || duration == absl::InfiniteDuration() ||
        duration == -absl::InfiniteDuration()) {
      return wrong;
    }
    *out = absl::ToInt64Milliseconds(duration);
    if (absl::Milliseconds(*out) != duration) {
      return absl::StrCat(Quoted(text), " is not a whole number of milliseconds");
    }
  } else {
    return wrong;
  }
  const v1::Limits& limits = field.options().GetExtension(v1::limits);
  const bool small = field.cpp_type() == FieldDescriptor::CPPTYPE_INT32;
  const int64_t min = limits.has_min() ? limits.min() : small ? INT32_MIN : INT64_MIN;
  const int64_t max = limits.has_max() ? limits.max() : small ? INT32_MAX : INT64_MAX;
  if (!fits || *out < min || *out > max) {
    const std::string unit = bytes ? " bytes" : milliseconds ? " ms" : "";
    return absl::StrCat(Quoted(text), " is out of range; expected ", min, " to ", max, unit);
  }
  return "";
}

}  // namespace

// Walks YAML and schema together.
class YamlReader {
 public:
  explicit YamlReader(YamlFaults& faults) : faults_(faults) {}

  void ReadMessage(const YAML::Node& node, const YAML::Mark& mark, const std::string& path,
                   Message& message) {
    const Descriptor& type = *message.GetDescriptor();
    if (node.IsNull()) return;  // a section whose lines are all commented out
    if (!node.IsMap()) {
      Fault(mark, path, absl::StrCat("expected a mapping, found ", Describe(node)));
      return;
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      const YAML::Node& key = entry.first;
      const FieldDescriptor* field = key.IsScalar() ? type.FindFieldByName(key.Scalar()) : nullptr;
      if (field == nullptr) {
        const std::string name = key.IsScalar() ? Quoted(key.Scalar()) : Describe(key);
        Fault(key.Mark(), path,
              absl::StrCat("unknown key ", name, "; the keys here are ", FieldNames(type)));
        continue;
      }
      const std::string inner = path.empty() ? field->name() : path + "." + field->name();
      if (!seen.insert(field->name()).second) {
        Fault(key.Mark(), inner, "the key is given twice");
        continue;
      }
      // Nothing has no place of its own.
      const YAML::Mark value_mark = entry.second.IsNull() ? key.Mark() : entry.second.Mark();
      ReadField(entry.second, value_mark, inner, *field, message);
    }
  }

 private:
  static YamlFaults::Mark MarkOf(const YAML::Mark& mark) { return {mark.line, mark.column}; }
  void Fault(const YAML::Mark& mark, const std::string& path, const std::string& what) {
    faults_.Fault(MarkOf(mark), path, what);
  }
  void Note(const YAML::Mark& mark, const std::string& path) { faults_.Note(MarkOf(mark), path); }

  void ReadField(const YAML::Node& node, const YAML::Mark& mark, const std::string& path,
                 const FieldDescriptor& field, Message& message) {
    Note(mark, path);
    if (!field.is_repeated()) {
      ReadValue(node, mark, path, field, message);
      return;
    }
    if (!node.IsSequence()) {
      Fault(mark, path, absl::StrCat("expected a list, found ", Describe(node)));
      return;
    }
    for (size_t i = 0; i < node.size(); ++i) {
      const YAML::Node item = node[i];
      const YAML::Mark item_mark = item.IsNull() && item.Mark().is_null() ? mark : item.Mark();
      const std::string item_path = absl::StrCat(path, "[", i, "]");
      Note(item_mark, item_path);
      ReadValue(item, item_mark, item_path, field, message);
    }
  }

  // One value; added where the field is repeated.
  void ReadValue(const YAML::Node& node, const YAML::Mark& mark, const std::string& path,
                 const FieldDescriptor& field, Message& message) {
    const Reflection& reflection = *message.GetReflection();
    const auto expected = [&](const std::string& what) {
      Fault(mark, path, absl::StrCat("expected ", what, ", found ", Describe(node)));
    };
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_MESSAGE:
        ReadMessage(node, mark, path,
                    field.is_repeated() ? *reflection.AddMessage(&message, &field)
                                        : *reflection.MutableMessage(&message, &field));
        return;
      case FieldDescriptor::CPPTYPE_STRING:
        // A number or a truth value is as good a text as any: a host may be called 7.
        if (!node.IsScalar() || node.Scalar().empty()) return expected("a text");
        if (field.is_repeated()) {
          reflection.AddString(&message, &field, node.Scalar());
        } else {
          reflection.SetString(&message, &field, node.Scalar());
        }
        return;
      case FieldDescriptor::CPPTYPE_BOOL:
        assert(!field.is_repeated());
        if (!IsPlain(node) || (node.Scalar() != "true" && node.Scalar() != "false")) {
          return expected("true or false");
        }
        reflection.SetBool(&message, &field, node.Scalar() == "true");
        return;
      case FieldDescriptor::CPPTYPE_ENUM: {
        assert(!field.is_repeated());
        const EnumDescriptor& type = *field.enum_type();
        std::vector<std::string> names;
        for (int i = 0; i < type.value_count(); ++i) {
          const std::string name = YamlName(*type.value(i));
          if (name.empty()) continue;
          if (node.IsScalar() && node.Scalar() == name) {
            reflection.SetEnum(&message, &field, type.value(i));
            return;
          }
          names.push_back(name);
        }
        return expected(absl::StrJoin(names, " or "));
      }
      case FieldDescriptor::CPPTYPE_INT32:
      case FieldDescriptor::CPPTYPE_INT64: {
        assert(!field.is_repeated());
        int64_t value = 0;
        std::string wrong = ParseInteger(node, field, &value);
        if (!wrong.empty()) {
          Fault(mark, path, wrong);
        } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
          reflection.SetInt32(&message, &field, static_cast<int32_t>(value));
        } else {
          reflection.SetInt64(&message, &field, value);
        }
        return;
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        assert(!field.is_repeated());
        const v1::Limits& limits = field.options().GetExtension(v1::limits);
        double value = 0;
        if (!IsPlain(node) || !absl::SimpleAtod(node.Scalar(), &value) || !std::isfinite(value)) {
          return expected("a number");
        }
        if (limits.positive() && value <= 0) return expected("a number above 0");
        if (limits.has_min() && value < static_cast<double>(limits.min())) {
          return expected(absl::StrCat("a number of at least ", limits.min()));
        }
        if (limits.has_max() && value > static_cast<double>(limits.max())) {
          return expected(absl::StrCat("a number of at most ", limits.max()));
        }
        reflection.SetDouble(&message, &field, value);
        return;
      }
      default:
        assert(false && "the schema has a type that no YAML is read for");
    }
  }

  YamlFaults& faults_;
};

void YamlFaults::FaultAt(const std::string& path, const std::string& what) {
  const Mark mark = marks_.at(path);
  for (const FaultLine& fault : faults_) {
    if (fault.mark.line == mark.line && fault.mark.column == mark.column) return;
  }
  Fault(mark, path, what);
}

absl::Status YamlFaults::status() {
  if (faults_.empty()) return absl::OkStatus();
  std::stable_sort(faults_.begin(), faults_.end(), [](const FaultLine& a, const FaultLine& b) {
    return std::tie(a.mark.line, a.mark.column) < std::tie(b.mark.line, b.mark.column);
  });
  std::vector<std::string> lines;
  for (const FaultLine& fault : faults_) lines.push_back(fault.text);
  if (lines.size() > 1) {
    lines.insert(lines.begin(),
                 absl::StrCat(path_, ": ", faults_.size(), " faults in the configuration"));
  }
  return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
}

std::string YamlFaults::Place(Mark mark) const {
  return absl::StrCat(path_, ":", mark.line + 1, ":", mark.column + 1);
}

void YamlFaults::Fault(Mark mark, const std::string& path, const std::string& what) {
  faults_.push_back({mark, absl::StrCat(Place(mark), ": ", path, path.empty() ? "" : ": ", what)});
}

void YamlFaults::Note(Mark mark, const std::string& path) {
  marks_[path] = mark;
  positions_[path] = Place(mark);
}

absl::Status ReadYaml(const std::string& text, const std::string& path, Message& message,
                      YamlFaults& faults) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", documents[1].Mark().line + 1, ":", documents[1].Mark().column + 1,
                       ": a second document; a configuration is one"));
    }
    if (!documents.empty()) {
      YamlReader(faults).ReadMessage(documents[0], documents[0].Mark(), "", message);
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, const std::string& name) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat(name, ": there is no such file"));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (!in.is_open() || in.bad() || std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": can't be read"));
  }
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": larger than ", FormatBytes(kMaxFileBytes), "; that is no configuration file"));
  }
  return text;
}

}  // namespace phalanx::launcher
