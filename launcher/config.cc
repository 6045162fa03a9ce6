#include "launcher/config.h"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "launcher/machine.h"
#include "parallel/mesh.h"
#include "yaml-cpp/yaml.h"

namespace phalanx::launcher {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// More than any configuration needs; keeps a mistyped path from being read for minutes.
constexpr size_t kMaxFileBytes = size_t{1} << 20;

std::string Quoted(const std::string& text) {
  constexpr size_t kShown = 60;
  const bool cut = text.size() > kShown;
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(text.substr(0, kShown)), cut ? "…" : "", "\"");
}

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
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return absl::StrJoin(names, ", ");
}

// "mpirun" for KIND_MPIRUN; empty for the value that stands for a field left out.
std::string YamlName(const EnumValueDescriptor& value) {
  if (value.number() == 0) return "";
  const std::string& zero = value.type()->FindValueByNumber(0)->name();
  const auto prefix = absl::StripSuffix(zero, "UNSPECIFIED");
  return absl::AsciiStrToLower(absl::StripPrefix(value.name(), prefix));
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

// Walks YAML and schema together.
class ConfigReader {
 public:
  explicit ConfigReader(ConfigFile& file) : file_(file) {}

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

  // At the place of `path`, which the file gives.
  // For checks of what was read; silent where the reading of that place has found a fault already.
  void FaultAt(const std::string& path, const std::string& what) {
    const YAML::Mark& mark = marks_.at(path);
    for (const FaultLine& fault : faults_) {
      if (fault.line == mark.line && fault.column == mark.column) return;
    }
    Fault(mark, path, what);
  }
  bool Given(const std::string& path) const { return marks_.count(path) > 0; }

  absl::Status status() {
    if (faults_.empty()) return absl::OkStatus();
    std::stable_sort(faults_.begin(), faults_.end(), [](const FaultLine& a, const FaultLine& b) {
      return std::tie(a.line, a.column) < std::tie(b.line, b.column);
    });
    std::vector<std::string> lines;
    for (const FaultLine& fault : faults_) lines.push_back(fault.text);
    if (lines.size() > 1) {
      lines.insert(lines.begin(),
                   absl::StrCat(file_.path, ": ", faults_.size(), " faults in the configuration"));
    }
    return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
  }

 private:
  struct FaultLine {
    int line = 0;
    int column = 0;
    std::string text;
  };

  std::string Place(const YAML::Mark& mark) const {
    return absl::StrCat(file_.path, ":", mark.line + 1, ":", mark.column + 1);
  }

  void Fault(const YAML::Mark& mark, const std::string& path, const std::string& what) {
    faults_.push_back({mark.line, mark.column,
                       absl::StrCat(Place(mark), ": ", path, path.empty() ? "" : ": ", what)});
  }

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

  void Note(const YAML::Mark& mark, const std::string& path) {
    marks_[path] = mark;
    file_.positions[path] = Place(mark);
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
      default:
        assert(false && "the schema has a type that no YAML is read for");
    }
  }

  ConfigFile& file_;
  std::map<std::string, YAML::Mark> marks_;
  std::vector<FaultLine> faults_;
};

bool IsHostName(const std::string& name) {
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
  });
}

bool IsVariableName(const std::string& name) {
  return !absl::ascii_isdigit(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return absl::ascii_isalnum(c) || c == '_'; });
}

// What the schema alone can't say.
void CheckTogether(const v1::Config& config, ConfigReader& reader) {
  const auto& hosts = config.cluster().hosts();
  std::set<std::string> names;
  for (int i = 0; i < hosts.size(); ++i) {
    const std::string path = absl::StrCat("cluster.hosts[", i, "]");
    const std::string name_path = path + ".name";
    if (!reader.Given(name_path)) {
      reader.FaultAt(path, "the host's name is missing");
    } else if (!IsHostName(hosts[i].name())) {
      reader.FaultAt(name_path, absl::StrCat(Quoted(hosts[i].name()),
                                             " is not a host's name: letters, digits, '.', '-' "
                                             "and '_'; ranks per host are written as slots"));
    } else if (hosts[i].has_name() && !names.insert(hosts[i].name()).second) {
      reader.FaultAt(name_path, absl::StrCat("the host ", hosts[i].name(),
                                             " is given twice; add up its slots"));
    }
  }
  if (reader.Given("cluster.hosts") && hosts.empty()) {
    reader.FaultAt("cluster.hosts", "name at least one host, or leave the key out");
  }
  const v1::LauncherConfig& launcher = config.cluster().launcher();
  for (int i = 0; i < launcher.pass_environment_size(); ++i) {
    const std::string& name = launcher.pass_environment(i);
    if (!IsVariableName(name)) {
      reader.FaultAt(absl::StrCat("cluster.launcher.pass_environment[", i, "]"),
                     absl::StrCat(Quoted(name), " is not the name of an environment variable"));
    }
  }
  std::vector<std::string> unused;
  if (launcher.kind() == v1::LauncherConfig::KIND_THREADS) {
    unused = {"control.listen", "control.start_timeout_ms", "control.step_timeout_ms"};
  }
  if (launcher.kind() == v1::LauncherConfig::KIND_THREADS ||
      launcher.kind() == v1::LauncherConfig::KIND_EXTERNAL) {
    unused.insert(unused.end(),
                  {"cluster.hosts", "cluster.launcher.mpirun_path", "cluster.launcher.extra_args",
                   "cluster.launcher.pass_environment"});
  }
  for (const std::string& path : unused) {
    if (!reader.Given(path)) continue;
    const std::string kind =
        YamlName(*v1::LauncherConfig::Kind_descriptor()->FindValueByNumber(launcher.kind()));
    reader.FaultAt(path, absl::StrCat("has no effect where cluster.launcher.kind is ", kind,
                                      "; remove one of the two"));
  }
}

// Whether the command line gives the flag; false where the command has no such flag.
bool Given(const CLI::App& flags, const std::string& name) {
  const CLI::Option* option = flags.get_option_no_throw(name);
  return option != nullptr && option->count() > 0;
}

std::string LayoutText(const v1::LayoutConfig& layout) {
  std::vector<std::string> axes;
  if (layout.has_tp()) axes.push_back(absl::StrCat("tp=", layout.tp()));
  if (layout.has_pp()) axes.push_back(absl::StrCat("pp=", layout.pp()));
  if (layout.has_sp()) axes.push_back(absl::StrCat("sp=", layout.sp()));
  if (layout.has_ep()) axes.push_back(absl::StrCat("ep=", layout.ep()));
  if (layout.has_dp()) axes.push_back(absl::StrCat("dp=", layout.dp()));
  return absl::StrJoin(axes, ",");
}

template <typename E>
std::string EnumText(const EnumDescriptor* type, E value) {
  return YamlName(*type->FindValueByNumber(static_cast<int>(value)));
}

double Seconds(int64_t milliseconds) { return static_cast<double>(milliseconds) / 1000; }

absl::Status ApplyHosts(const ConfigFile& file, ServiceOptions& options) {
  int64_t slots = 0;
  std::vector<std::string> hosts;
  for (const v1::HostConfig& host : file.config.cluster().hosts()) {
    const int here = host.has_slots() ? host.slots() : 1;
    slots += here;
    hosts.push_back(absl::StrCat(host.name(), ":", here));
  }
  // A layout that doesn't parse is reported where it is used.
  const absl::StatusOr<parallel::Layout> layout = parallel::ParseLayout(options.rank.layout);
  if (layout.ok() && layout->group_size() > slots) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.positions.at("cluster.hosts"), ": cluster.hosts: ", slots,
        slots == 1 ? " slot" : " slots", " for the ", layout->group_size(), " ranks of layout ",
        layout->ToString(), "; add hosts or slots, or take a smaller layout"));
  }
  options.hosts = absl::StrJoin(hosts, ",");
  // Named hosts are meant to be used even where the layout is a single rank.
  options.workers = "mpirun";
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ConfigFile> ParseConfig(const std::string& text, const std::string& path) {
  ConfigFile file;
  file.path = path;
  ConfigReader reader(file);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(text);
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", documents[1].Mark().line + 1, ":", documents[1].Mark().column + 1,
                       ": a second document; a configuration is one"));
    }
    if (!documents.empty()) {
      reader.ReadMessage(documents[0], documents[0].Mark(), "", file.config);
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg));
  }
  CheckTogether(file.config, reader);
  if (absl::Status status = reader.status(); !status.ok()) return status;
  return file;
}

absl::StatusOr<ConfigFile> ReadConfig(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("--cluster ", path, ": there is no such file"));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (!in.is_open() || in.bad() || std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat("--cluster ", path, ": can't be read"));
  }
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--cluster ", path, ": larger than ",
                                                   FormatBytes(kMaxFileBytes),
                                                   "; that is no configuration file"));
  }
  return ParseConfig(text, path);
}

absl::Status ApplyConfig(const ConfigFile& file, const CLI::App& flags, ServiceOptions& options,
                         ServingOptions* serving) {
  const v1::Config& config = file.config;
  // Sets what the file gives unless the command line gives `flag`.
  const auto apply = [&flags](bool in_file, const char* flag, auto& option, auto value) {
    if (in_file && !Given(flags, flag)) option = std::move(value);
  };
  RankOptions& rank = options.rank;
  // Absolute, since ranks on other hosts may start in another directory.
  apply(config.has_model(), "--model", rank.model,
        (std::filesystem::absolute(file.path).parent_path() / config.model()).string());
  const std::string layout = LayoutText(config.layout());
  apply(!layout.empty(), "--layout", rank.layout, layout);

  const v1::WorkerConfig& worker = config.worker();
  const std::string device = EnumText(v1::WorkerConfig::Device_descriptor(), worker.device());
  apply(!device.empty(), "--device", rank.device, device);
  const std::string cpu_path = EnumText(v1::WorkerConfig::CpuPath_descriptor(), worker.cpu_path());
  apply(!cpu_path.empty(), "--cpu-path", rank.cpu_path, cpu_path);
  apply(worker.has_threads(), "--threads", rank.threads, worker.threads());
  apply(worker.has_kv_cache_bytes(), "--kv-memory", rank.kv_memory,
        absl::StrCat(worker.kv_cache_bytes()));
  const v1::WorkerConfig::Profile& profile = worker.profile();
  apply(profile.has_reduction_leaves(), "--reduction-leaves", rank.reduction_leaves,
        profile.reduction_leaves());
  apply(profile.has_sequence_stripes(), "--sequence-stripes", rank.sequence_stripes,
        profile.sequence_stripes());

  const v1::SchedulerConfig& scheduler = config.scheduler();
  apply(scheduler.has_max_step_tokens(), "--max-step-tokens", rank.max_step_tokens,
        scheduler.max_step_tokens());
  apply(scheduler.has_max_running_sequences(), "--max-sequences", options.max_sequences,
        scheduler.max_running_sequences());
  apply(scheduler.has_max_waiting_requests(), "--max-queue", options.max_queue,
        scheduler.max_waiting_requests());
  apply(scheduler.has_prefill_chunk_tokens(), "--prefill-chunk", options.prefill_chunk,
        scheduler.prefill_chunk_tokens());
  apply(scheduler.has_max_context_length(), "--max-context", rank.max_context,
        scheduler.max_context_length());
  apply(scheduler.has_prefix_cache(), "--prefix-reuse", options.prefix_reuse,
        scheduler.prefix_cache());

  const v1::LauncherConfig& launcher = config.cluster().launcher();
  const std::string kind = EnumText(v1::LauncherConfig::Kind_descriptor(), launcher.kind());
  apply(!kind.empty(), "--workers", options.workers, kind);
  apply(launcher.has_mpirun_path(), "--mpirun", options.mpirun, launcher.mpirun_path());
  const std::vector<std::string> arguments(launcher.extra_args().begin(),
                                           launcher.extra_args().end());
  apply(!arguments.empty(), "--mpirun-arg", options.mpirun_args, arguments);
  for (const std::string& name : launcher.pass_environment()) {
    options.mpirun_args.insert(options.mpirun_args.end(), {"-x", name});
  }

  const v1::ControlConfig& control = config.control();
  apply(control.has_listen(), "--control-listen", options.control_listen, control.listen());
  apply(control.has_start_timeout_ms(), "--start-timeout", options.start_timeout,
        Seconds(control.start_timeout_ms()));
  apply(control.has_step_timeout_ms(), "--step-timeout", options.step_timeout,
        Seconds(control.step_timeout_ms()));

  if (serving != nullptr) {
    const v1::ServiceConfig& service = config.service();
    apply(config.has_model_name(), "--model-name", serving->model_name, config.model_name());
    apply(service.has_listen(), "--listen", serving->listen, service.listen());
    apply(service.has_max_request_bytes(), "--max-request-bytes", serving->max_request_bytes,
          service.max_request_bytes());
    apply(service.has_drain_timeout_ms(), "--grace", serving->grace,
          Seconds(service.drain_timeout_ms()));
  }

  const bool by_mpirun = options.workers == "auto" || options.workers == "mpirun";
  if (config.cluster().hosts().empty() || !by_mpirun || Given(flags, "--hosts") ||
      Given(flags, "--hostfile")) {
    return absl::OkStatus();
  }
  return ApplyHosts(file, options);
}

absl::Status ApplyClusterFile(const CLI::App& flags, ServiceOptions& options,
                              ServingOptions* serving) {
  if (!options.cluster_file.empty()) {
    const absl::StatusOr<ConfigFile> file = ReadConfig(options.cluster_file);
    if (!file.ok()) return file.status();
    const absl::Status applied = ApplyConfig(*file, flags, options, serving);
    if (!applied.ok()) return applied;
  }
  if (!options.rank.model.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      options.cluster_file.empty()
          ? "--model is missing; give it, or a --cluster file with a model"
          : absl::StrCat(options.cluster_file, ": model is missing; add it, or give --model"));
}

}  // namespace phalanx::launcher
