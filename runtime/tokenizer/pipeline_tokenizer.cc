#include "runtime/tokenizer/pipeline_tokenizer.h"

#include <algorithm>
#include <utility>

#include "runtime/tokenizer/strings.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::tokenizer {
namespace {

constexpr char kFile[] = "tokenizer.json";

absl::StatusOr<PipelineTokenizer::Parts> ReadParts(const Json& json) {
  ObjectReader reader(json, kFile);
  PipelineTokenizer::Parts parts;
  const std::string version = reader.String("version", "1.0");
  if (version != "1.0") {
    reader.Fail(Concat("\"version\" is \"", version, "\"; expected \"1.0\""));
  }
  const Json* model = reader.Object("model");
  if (absl::Status s = reader.Finish({"truncation", "padding", "added_tokens", "normalizer",
                                      "pre_tokenizer", "post_processor", "decoder"});
      !s.ok()) {
    return s;
  }
  const auto place = [](std::string_view part) { return Concat(kFile, ": ", part); };
  auto bpe = BpeModel::FromJson(*model, place("model"));
  if (!bpe.ok()) return bpe.status();
  parts.model = *std::move(bpe);
  if (reader.Has("normalizer")) {
    auto part = Normalizer::FromJson(json["normalizer"], place("normalizer"));
    if (!part.ok()) return part.status();
    parts.normalizer = *std::move(part);
  }
  if (reader.Has("pre_tokenizer")) {
    auto part = PreTokenizer::FromJson(json["pre_tokenizer"], place("pre_tokenizer"));
    if (!part.ok()) return part.status();
    parts.pre_tokenizer = *std::move(part);
  }
  if (reader.Has("post_processor")) {
    auto part = PostProcessor::FromJson(json["post_processor"], place("post_processor"));
    if (!part.ok()) return part.status();
    parts.post_processor = *std::move(part);
  }
  if (reader.Has("decoder")) {
    auto part = Decoder::FromJson(json["decoder"], place("decoder"));
    if (!part.ok()) return part.status();
    parts.decoder = *std::move(part);
  }
  if (reader.Has("added_tokens")) {
    const BpeModel& m = *parts.model;
    auto part = AddedVocabulary::FromJson(
        json["added_tokens"], place("added_tokens"), m.size(),
        [&m](std::string_view token) { return m.TokenToId(token); }, parts.normalizer.get());
    if (!part.ok()) return part.status();
    parts.added = *std::move(part);
  }
  for (int32_t id : parts.post_processor.pieces) {
    if (id == PostProcessor::kSequence || parts.added.Find(id) != nullptr ||
        parts.model->IdToToken(id) != nullptr) {
      continue;
    }
    return absl::InvalidArgumentError(
        Concat(place("post_processor"), ": adds the id ", id, ", which is not in the vocabulary"));
  }
  return parts;
}

}  // namespace

absl::Status CheckText(std::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return absl::InvalidArgumentError(
        Concat("the text has ", text.size(), " bytes; at most ", max_bytes, " can be tokenized"));
  }
  const size_t bad = FindInvalidUtf8(text);
  if (bad != std::string_view::npos) {
    return absl::InvalidArgumentError(
        Concat("the text is not valid UTF-8 at byte ", bad, " of ", text.size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(std::string_view text) {
  const absl::StatusOr<Json> json = ParseJson(text, kFile);
  if (!json.ok()) return json.status();
  try {
    absl::StatusOr<PipelineTokenizer::Parts> parts = ReadParts(*json);
    if (!parts.ok()) return parts.status();
    return std::make_unique<PipelineTokenizer>(*std::move(parts));
  } catch (const Json::exception& e) {
    return absl::InvalidArgumentError(Concat(kFile, ": malformed (", e.what(), ")"));
  }
}

PipelineTokenizer::PipelineTokenizer(Parts parts) : parts_(std::move(parts)) {
  vocab_size_ = parts_.model->id_limit();
  for (const AddedToken& token : parts_.added.tokens()) {
    vocab_size_ = std::max(vocab_size_, token.id + 1);
  }
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(std::string_view text,
                                                               const EncodeOptions& options) const {
  if (absl::Status s = CheckText(text, kMaxTextBytes); !s.ok()) return s;
  std::vector<int32_t> ids;
  for (int32_t piece : parts_.post_processor.pieces) {
    if (piece == PostProcessor::kSequence) {
      if (absl::Status s = EncodeText(text, options.parse_special, &ids); !s.ok()) return s;
    } else if (options.add_special_tokens) {
      ids.push_back(piece);
    }
  }
  return ids;
}

absl::Status PipelineTokenizer::EncodeText(std::string_view text, bool parse_special,
                                           std::vector<int32_t>* ids) const {
  RegexScratch scratch;
  for (const AddedSplit& split : parts_.added.SplitRaw(text, parse_special)) {
    if (split.id >= 0) {
      ids->push_back(split.id);
      continue;
    }
    Segment segment{std::string(text.substr(split.begin, split.end - split.begin)), 0};
    if (split.begin == 0) segment.first_bytes = Utf8Length(text[0]);
    if (parts_.normalizer != nullptr) {
      if (absl::Status s = parts_.normalizer->Apply(&segment, &scratch); !s.ok()) return s;
    }
    absl::Status s = EncodeSegment(std::move(segment), parse_special, &scratch, ids);
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

// `segment` is normalized.
absl::Status PipelineTokenizer::EncodeSegment(Segment segment, bool parse_special,
                                              RegexScratch* scratch,
                                              std::vector<int32_t>* ids) const {
  if (segment.text.size() > UINT32_MAX) {
    return absl::ResourceExhaustedError("the normalized text takes more than 4 GiB");
  }
  const std::vector<AddedSplit> splits = parts_.added.SplitNormalized(segment.text, parse_special);
  for (const AddedSplit& split : splits) {
    if (split.id >= 0) {
      ids->push_back(split.id);
      continue;
    }
    PreTokenizedText text;
    const size_t size = split.end - split.begin;
    text.text =
        splits.size() == 1 ? std::move(segment.text) : segment.text.substr(split.begin, size);
    const size_t first = segment.first_bytes - std::min(segment.first_bytes, split.begin);
    text.pieces.push_back(
        {0, static_cast<uint32_t>(size), static_cast<uint32_t>(std::min(first, size))});
    if (parts_.pre_tokenizer != nullptr) {
      if (absl::Status s = parts_.pre_tokenizer->Apply(&text, scratch); !s.ok()) return s;
    }
    for (const Piece& piece : text.pieces) {
      if (absl::Status s = parts_.model->Encode(text.TextOf(piece), ids); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

std::optional<int32_t> PipelineTokenizer::TokenToId(std::string_view token) const {
  const std::optional<int32_t> added = parts_.added.TokenToId(token);
  return added ? added : parts_.model->TokenToId(token);
}

absl::StatusOr<std::string> PipelineTokenizer::IdToToken(int32_t id) const {
  if (const AddedToken* added = parts_.added.Find(id)) return added->content;
  if (const std::string* token = parts_.model->IdToToken(id)) return *token;
  return absl::InvalidArgumentError(
      Concat("token id ", id, " is not in the vocabulary of ", vocab_size_, " ids"));
}

bool PipelineTokenizer::IsSpecial(int32_t id) const {
  const AddedToken* added = parts_.added.Find(id);
  return added != nullptr && added->special;
}

class PipelineTokenizer::Stream : public StreamDecoder {
 public:
  Stream(const PipelineTokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer),
        skip_special_tokens_(skip_special_tokens),
        stages_(tokenizer.parts_.decoder.NewStages(&out_)) {}

  std::string Next(int32_t id) override {
    // An added token is decoded in the form that the normalizer gave it: the decoder undoes that.
    if (const AddedToken* added = tokenizer_.parts_.added.Find(id)) {
      if (added->special && skip_special_tokens_) return "";
      stages_->Fragment(added->normalized_content, true);
    } else if (const std::string* token = tokenizer_.parts_.model->IdToToken(id)) {
      stages_->Fragment(*token, true);
    }
    return Take();
  }

  std::string Flush() override {
    stages_->Finish();
    return Take();
  }

 private:
  std::string Take() {
    std::string text;
    text.swap(out_);
    return text;
  }

  const PipelineTokenizer& tokenizer_;
  bool skip_special_tokens_;
  std::string out_;
  std::unique_ptr<DecodeStage> stages_;
};

std::unique_ptr<StreamDecoder> PipelineTokenizer::NewStreamDecoder(bool skip_special_tokens) const {
  return std::make_unique<Stream>(*this, skip_special_tokens);
}

}  // namespace phalanx::tokenizer
