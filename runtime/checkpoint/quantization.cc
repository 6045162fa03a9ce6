#include "runtime/checkpoint/quantization.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/checkpoint/elements.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/known_keys.h"

namespace phalanx::checkpoint {
namespace {

using nlohmann::json;

constexpr absl::string_view kKey = "quantization_config";
constexpr int64_t kMaxBlock = int64_t{1} << 20;

void Refuse(ConfigReader& reader, absl::string_view key, const std::string& what) {
  reader.Fail(absl::UnimplementedError(absl::StrCat(
      reader.where(), ": key \"", key, "\" (", what,
      ") is there; of quantised checkpoints those in FP8 (quant_method fp8 or fbgemm_fp8, "
      "or compressed-tensors of format float-quantized) are supported; use one of them, "
      "or the checkpoint in BF16, F16 or F32")));
}

std::string MethodOf(const json& value) {
  if (value.is_object()) {
    for (const char* name : {"quant_method", "quant_type"}) {
      const auto it = value.find(name);
      if (it != value.end()) return absl::StrCat(name, " ", PrintableJson(*it));
    }
  }
  return PrintableJson(value);
}

// [rows, columns] of a block, or "128x64".
void ReadBlock(ConfigReader& reader, absl::string_view key, Fp8Scheme* scheme) {
  const json* value = reader.Get(key);
  if (value == nullptr) return;
  int64_t rows = 0;
  int64_t columns = 0;
  const std::vector<std::string> sizes =
      absl::StrSplit(value->is_string() ? value->get<std::string>() : "", 'x');
  if (sizes.size() == 2 && absl::SimpleAtoi(sizes[0], &rows) && rows > 0 && rows <= kMaxBlock &&
      absl::SimpleAtoi(sizes[1], &columns) && columns > 0 && columns <= kMaxBlock) {
    *scheme = {rows, columns};
    return;
  }
  const auto size = [&](size_t i) {
    const json& v = (*value)[i];
    return v.is_number_integer() ? v.get<int64_t>() : 0;
  };
  if (!value->is_array() || value->size() != 2 || std::min(size(0), size(1)) < 1 ||
      std::max(size(0), size(1)) > kMaxBlock) {
    reader.Fail(key, *value, "two positive integers, rows and columns of a block");
    return;
  }
  *scheme = {size(0), size(1)};
}

void RefuseOthers(ConfigReader& outer, const ConfigReader& inner,
                  const std::set<std::string>& harmless) {
  for (const auto& [key, value] : inner.object().items()) {
    if (IsUnset(value) || inner.WasRead(key) || harmless.contains(key)) continue;
    Refuse(outer, kKey, absl::StrCat("key ", Printable(key), " ", PrintableJson(value)));
    return;
  }
}

// A list of names of modules; what else may be there decides nothing.
void ReadLeftOut(const json& config, const char* key, std::vector<std::string>& out) {
  const auto list = config.find(key);
  if (list == config.end() || !list->is_array()) return;
  for (const json& name : *list) {
    if (name.is_string()) out.push_back(name.get<std::string>());
  }
}

Quantization ReadFineGrained(ConfigReader& outer, const json& config) {
  Quantization out;
  ReadLeftOut(config, "modules_to_not_convert", out.left_out);
  ReadLeftOut(config, "ignored_layers", out.left_out);
  ConfigReader reader(config, absl::StrCat(outer.where(), ": ", kKey));
  const std::string format = reader.String("fmt").value_or("e4m3");
  if (format != "e4m3" && format != "float8_e4m3fn") {
    Refuse(outer, kKey, absl::StrCat("fmt ", Printable(format)));
  }
  ReadBlock(reader, "weight_block_size", &out.scheme);
  if (!reader.ok()) outer.Fail(reader.status());
  RefuseOthers(
      outer, reader,
      {"quant_method", "activation_scheme", "activation_scale_ub", "modules_to_not_convert",
       "ignored_layers", "dequantize", "scale_fmt", "kv_cache_scheme"});
  return out;
}

// A group of compressed-tensors' `config_groups`.
void ReadGroup(ConfigReader& outer, const std::string& where, const json& group,
               Fp8Scheme* scheme) {
  const auto weights = group.is_object() ? group.find("weights") : group.end();
  if (!group.is_object() || weights == group.end() || !weights->is_object()) {
    Refuse(outer, kKey, absl::StrCat(where, " without weights"));
    return;
  }
  ConfigReader reader(*weights, absl::StrCat(outer.where(), ": ", where, ".weights"));
  const int64_t bits = reader.Int("num_bits", 1, 64).value_or(8);
  const std::string type = reader.String("type").value_or("int");
  const bool symmetric = reader.Bool("symmetric").value_or(true);
  const std::string strategy = reader.String("strategy").value_or("tensor");
  if (!reader.ok()) {
    outer.Fail(reader.status());
    return;
  }
  const bool known = strategy == "tensor" || strategy == "channel" || strategy == "block";
  if (bits != 8 || type != "float" || !symmetric || !known) {
    Refuse(outer, kKey,
           absl::StrCat(where, ".weights of ", bits, " bits, type ", Printable(type),
                        symmetric ? "" : ", not symmetric", ", strategy ", Printable(strategy)));
    return;
  }
  if (strategy == "block") ReadBlock(reader, "block_structure", scheme);
  if (!reader.ok()) outer.Fail(reader.status());
}

Quantization ReadCompressedTensors(ConfigReader& outer, const json& config) {
  Quantization out;
  ReadLeftOut(config, "ignore", out.left_out);
  ConfigReader reader(config, absl::StrCat(outer.where(), ": ", kKey));
  const std::string format = reader.String("format").value_or("");
  if (format != "float-quantized" && format != "naive-quantized") {
    Refuse(outer, kKey, absl::StrCat("compressed-tensors of format ", Printable(format)));
    return out;
  }
  const json* groups = reader.Get("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    Refuse(outer, kKey, "compressed-tensors without config_groups");
    return out;
  }
  for (const auto& [name, group] : groups->items()) {
    ReadGroup(outer, absl::StrCat(kKey, ".config_groups.", Printable(name)), group, &out.scheme);
  }
  const json* sparsity = reader.Get("sparsity_config");
  const auto dense = [](const json& value) {
    const auto format = value.is_object() ? value.find("format") : value.end();
    return format != value.end() && *format == "dense";
  };
  if (sparsity != nullptr && !IsUnset(*sparsity) && !dense(*sparsity)) {
    Refuse(outer, kKey, absl::StrCat("sparsity_config ", PrintableJson(*sparsity)));
  }
  if (!reader.ok()) outer.Fail(reader.status());
  RefuseOthers(outer, reader,
               {"quant_method", "ignore", "kv_cache_scheme", "quantization_status",
                "global_compression_ratio", "version"});
  return out;
}

}  // namespace

std::optional<Quantization> ReadQuantization(ConfigReader& reader) {
  const json* older = reader.Get("compression_config");
  if (older != nullptr) {
    Refuse(reader, "compression_config",
           absl::StrCat(MethodOf(*older), ", a name that quantization_config had once"));
  }
  const json* config = reader.Get(kKey);
  if (config == nullptr) return std::nullopt;
  const std::string method = config->is_object() && config->contains("quant_method") &&
                                     (*config)["quant_method"].is_string()
                                 ? (*config)["quant_method"].get<std::string>()
                                 : "";
  if (method == "fp8" || method == "fbgemm_fp8") return ReadFineGrained(reader, *config);
  if (method == "compressed-tensors") return ReadCompressedTensors(reader, *config);
  Refuse(reader, kKey, MethodOf(*config));
  return std::nullopt;
}

std::optional<Fp8Scheme> ScaleBlock(const Fp8Scheme& scheme, int64_t rows, int64_t columns,
                                    const Shape& scales) {
  const auto covers = [](int64_t size, int64_t block, int64_t blocks) {
    return block > 0 && (size + block - 1) / block == blocks;
  };
  if (scales.size() == 2 && covers(rows, scheme.block_rows, scales[0]) &&
      covers(columns, scheme.block_columns, scales[1])) {
    return scheme;
  }
  if (NumElements(scales) == 1 && scales.size() <= 2) return Fp8Scheme{rows, columns};
  const bool by_row = scales.size() == 1 || (scales.size() == 2 && scales[1] == 1);
  if (by_row && scales[0] == rows) return Fp8Scheme{1, columns};
  return std::nullopt;
}

bool IsActivationScale(absl::string_view name) {
  constexpr absl::string_view kSuffixes[] = {
      ".input_scale", ".input_scale_ub", ".activation_scale", ".output_scale",
      ".q_scale",     ".k_scale",        ".v_scale",          ".kv_scale"};
  return std::any_of(std::begin(kSuffixes), std::end(kSuffixes),
                     [&](absl::string_view suffix) { return absl::EndsWith(name, suffix); });
}

}  // namespace phalanx::checkpoint
