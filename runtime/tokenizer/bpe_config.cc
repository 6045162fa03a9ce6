// Reads the "model" object of tokenizer.json.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/tokenizer/bpe_model.h"
#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {
namespace {

constexpr uint64_t kIdLimit = uint64_t{1} << 24;  // ids index tables

absl::Status ReadVocab(const Json& json, const std::string& where, BpeConfig* config) {
  config->vocab.reserve(json.size());
  for (const auto& item : json.items()) {
    const Json& id = item.value();
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kIdLimit) {
      return absl::InvalidArgumentError(
          Concat(where, ".vocab: the id of \"", item.key(), "\" is ",
                 id.is_number() ? id.dump() : std::string(id.type_name()),
                 "; expected a whole number from 0 to ", kIdLimit - 1));
    }
    config->vocab.emplace_back(item.key(), static_cast<int32_t>(id.get<uint64_t>()));
  }
  return absl::OkStatus();
}

// "left right". Where a token itself contains a space, the one reading whose tokens all exist.
absl::Status SplitMerge(const std::string& text, const StringViewSet& vocab,
                        const std::string& where, BpeConfig* config) {
  size_t found = text.find(' ');
  int readings = found == std::string::npos ? 0 : 1;
  if (readings == 1 && text.find(' ', found + 1) != std::string::npos) {
    readings = 0;
    for (size_t at = text.find(' '); at != std::string::npos; at = text.find(' ', at + 1)) {
      const std::string left = text.substr(0, at);
      const std::string right = text.substr(at + 1);
      if (!vocab.contains(left) || !vocab.contains(right) || !vocab.contains(left + right)) {
        continue;
      }
      found = at;
      ++readings;
    }
  }
  if (readings != 1) {
    return absl::InvalidArgumentError(Concat(
        where, ": \"", text, "\" is not two tokens of the vocabulary with a space between them"));
  }
  config->merges.emplace_back(text.substr(0, found), text.substr(found + 1));
  return absl::OkStatus();
}

absl::Status ReadMerges(const Json& json, const std::string& where, BpeConfig* config) {
  StringViewSet vocab;
  vocab.reserve(config->vocab.size());
  for (const auto& entry : config->vocab) vocab.insert(entry.first);
  config->merges.reserve(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    const Json& merge = json[i];
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.substr(0, 8) == "#version") continue;
      absl::Status s = SplitMerge(text, vocab, Concat(where, ".merges[", i, "]"), config);
      if (!s.ok()) return s;
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      config->merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      return absl::InvalidArgumentError(
          Concat(where, ".merges[", i,
                 "]: expected \"left right\" or [\"left\", \"right\"], found ", merge.type_name()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const BpeModel>> BpeModel::FromJson(const Json& json,
                                                                   const std::string& where) {
  ObjectReader reader(json, where);
  const std::string type = reader.String("type", "BPE");  // the oldest files don't say it
  if (type != "BPE") {
    reader.FailType(type);
    return reader.Finish();
  }
  BpeConfig config;
  if (reader.Has("unk_token")) config.unk_token = reader.String("unk_token");
  config.continuing_subword_prefix = reader.String("continuing_subword_prefix", "");
  config.end_of_word_suffix = reader.String("end_of_word_suffix", "");
  config.fuse_unk = reader.Bool("fuse_unk", false);
  config.byte_fallback = reader.Bool("byte_fallback", false);
  config.ignore_merges = reader.Bool("ignore_merges", false);
  const Json* vocab = reader.Object("vocab");
  const Json* merges = reader.Array("merges");
  if (absl::Status s = reader.Finish({"unk_token", "dropout"}); !s.ok()) return s;
  if (reader.Has("dropout")) {
    const Json& dropout = json["dropout"];
    if (!dropout.is_number() || dropout.get<double>() != 0) {
      return absl::InvalidArgumentError(
          Concat(where, ": \"dropout\" is ", dropout.is_number() ? dropout.dump() : "not a number",
                 "; only 0 or null is supported, since ids must not be random"));
    }
  }
  if (absl::Status s = ReadVocab(*vocab, where, &config); !s.ok()) return s;
  if (absl::Status s = ReadMerges(*merges, where, &config); !s.ok()) return s;
  return Create(std::move(config), where);
}

}  // namespace phalanx::tokenizer
