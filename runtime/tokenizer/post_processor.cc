#include "runtime/tokenizer/post_processor.h"

#include <utility>

#include "absl/status/status.h"
#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {
namespace {

absl::StatusOr<int32_t> ReadId(const Json& json, const std::string& where) {
  if (!json.is_number_unsigned() || json.get<uint64_t>() > kMaxTokenId) {
    return absl::InvalidArgumentError(
        Concat(where, ": expected a token id, found ",
               json.is_number() ? json.dump() : std::string(json.type_name())));
  }
  return static_cast<int32_t>(json.get<uint64_t>());
}

absl::StatusOr<std::vector<int32_t>> SpecialIds(const Json& tokens, const std::string& name,
                                                const std::string& where) {
  const auto it = tokens.find(name);
  if (it == tokens.end() || !it->is_object() || !it->contains("ids") || !(*it)["ids"].is_array()) {
    return absl::InvalidArgumentError(
        Concat(where, ": the template uses \"", name, "\", which special_tokens lacks"));
  }
  std::vector<int32_t> ids;
  for (const Json& id : (*it)["ids"]) {
    auto read = ReadId(id, Concat(where, ".special_tokens.", name, ".ids"));
    if (!read.ok()) return read.status();
    ids.push_back(*read);
  }
  return ids;
}

absl::StatusOr<PostProcessor> Template(ObjectReader* reader) {
  const Json* single = reader->Array("single");
  reader->Array("pair");  // one sequence at a time
  const Json* tokens = reader->Object("special_tokens");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  PostProcessor out;
  out.pieces.clear();
  for (size_t i = 0; i < single->size(); ++i) {
    const std::string where = Concat(reader->where(), ".single[", i, "]");
    ObjectReader piece((*single)[i], where);
    const bool is_sequence = piece.Has("Sequence");
    const Json* body = piece.Object(is_sequence ? "Sequence" : "SpecialToken");
    if (absl::Status s = piece.Finish(); !s.ok()) return s;
    ObjectReader fields(*body, where);
    const std::string id = fields.String("id");
    if (absl::Status s = fields.Finish({"type_id"}); !s.ok()) return s;
    if (is_sequence) {
      if (id != "A") {
        return absl::InvalidArgumentError(
            Concat(where, ": the sequence \"", id, "\" is not supported; expected \"A\""));
      }
      out.pieces.push_back(PostProcessor::kSequence);
    } else {
      auto ids = SpecialIds(*tokens, id, reader->where());
      if (!ids.ok()) return ids.status();
      out.pieces.insert(out.pieces.end(), ids->begin(), ids->end());
    }
  }
  return out;
}

// BERT's and RoBERTa's: cls, the sequence, sep; each a pair ["token", id].
absl::StatusOr<PostProcessor> Surround(ObjectReader* reader) {
  const Json* sep = reader->Array("sep");
  const Json* cls = reader->Array("cls");
  reader->Bool("trim_offsets", true);
  reader->Bool("add_prefix_space", true);
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  PostProcessor out;
  out.pieces.clear();
  for (const Json* pair : {cls, sep}) {
    if (pair->size() != 2) {
      return absl::InvalidArgumentError(
          Concat(reader->where(), ": expected [\"token\", id] for \"cls\" and \"sep\""));
    }
    auto id = ReadId((*pair)[1], reader->where());
    if (!id.ok()) return id.status();
    out.pieces.push_back(*id);
    if (pair == cls) out.pieces.push_back(PostProcessor::kSequence);
  }
  return out;
}

absl::StatusOr<PostProcessor> ReadSequencePostProcessor(ObjectReader* reader) {
  const Json* array = reader->Array("processors");
  if (absl::Status s = reader->Finish(); !s.ok()) return s;
  PostProcessor out;
  bool adds = false;
  for (size_t i = 0; i < array->size(); ++i) {
    const std::string where = Concat(reader->where(), ".processors[", i, "]");
    auto part = PostProcessor::FromJson((*array)[i], where);
    if (!part.ok()) return part.status();
    if (part->pieces == PostProcessor().pieces) continue;
    if (adds) {
      return absl::InvalidArgumentError(
          Concat(where, ": a second post-processor that adds tokens is not supported"));
    }
    adds = true;
    out = *std::move(part);
  }
  return out;
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::FromJson(const Json& json, const std::string& where) {
  ObjectReader reader(json, where);
  const std::string type = reader.String("type");
  if (type == "TemplateProcessing") return Template(&reader);
  if (type == "BertProcessing" || type == "RobertaProcessing") return Surround(&reader);
  if (type == "Sequence") return ReadSequencePostProcessor(&reader);
  if (type == "ByteLevel") {  // moves offsets only
    reader.Bool("add_prefix_space", true);
    reader.Bool("trim_offsets", true);
    reader.Bool("use_regex", true);
  } else {
    reader.FailType(type);
  }
  if (absl::Status s = reader.Finish(); !s.ok()) return s;
  return PostProcessor();
}

}  // namespace phalanx::tokenizer
