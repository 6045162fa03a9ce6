#include "runtime/tokenizer/tiktoken.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pipeline_tokenizer.h"
#include "runtime/tokenizer/strings.h"

namespace phalanx::tokenizer {
namespace {

constexpr char kFile[] = "tokenizer.model";
constexpr size_t kLlama3Ranks = 128000;
constexpr int kLlama3Special = 256;
constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Named[] = {"<|begin_of_text|>",
                                             "<|end_of_text|>",
                                             "<|reserved_special_token_0|>",
                                             "<|reserved_special_token_1|>",
                                             "<|finetune_right_pad_id|>",
                                             "<|step_id|>",
                                             "<|start_header_id|>",
                                             "<|end_header_id|>",
                                             "<|eom_id|>",
                                             "<|eot_id|>",
                                             "<|python_tag|>",
                                             "<|image|>"};

// One line's token bytes and rank.
bool ParseLine(std::string_view line, std::string* bytes, int32_t* rank) {
  const size_t space = line.find(' ');
  return space != std::string_view::npos && space > 0 &&
         absl::Base64Unescape(std::string(line.substr(0, space)), bytes) && !bytes->empty() &&
         absl::SimpleAtoi(std::string(line.substr(space + 1)), rank) && *rank >= 0;
}

}  // namespace

bool LooksLikeTiktoken(std::string_view content) {
  std::string bytes;
  int32_t rank = 0;
  return ParseLine(content.substr(0, std::min(content.find('\n'), size_t{1000})), &bytes, &rank);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadLlama3Ranks(std::string_view content) {
  std::vector<std::string> tokens;
  for (size_t line_number = 1; !content.empty(); ++line_number) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.empty()) continue;
    std::string bytes;
    int32_t rank = 0;
    if (!ParseLine(line, &bytes, &rank) || static_cast<size_t>(rank) != tokens.size()) {
      return absl::InvalidArgumentError(Concat(kFile, ": line ", line_number,
                                               " is not the base64 of a token and the rank ",
                                               tokens.size()));
    }
    std::string spelled;
    AppendByteLevel(bytes, &spelled);
    tokens.push_back(std::move(spelled));
  }
  if (tokens.size() != kLlama3Ranks) {
    return absl::InvalidArgumentError(Concat(kFile, ": tiktoken ranks for ", tokens.size(),
                                             " tokens are not supported, only Llama 3's ",
                                             kLlama3Ranks, "; add the model's tokenizer.json"));
  }
  PipelineTokenizer::Parts parts;
  auto model = BpeModel::FromRanks(std::move(tokens), kFile);
  if (!model.ok()) return model.status();
  parts.model = *std::move(model);
  auto split = PreTokenizer::ByteLevelSplit(kLlama3Regex);
  if (!split.ok()) return split.status();
  parts.pre_tokenizer = *std::move(split);
  std::vector<AddedToken> special;
  int reserved = 2;
  for (int i = 0; i < kLlama3Special; ++i) {
    AddedToken token;
    token.content = i < static_cast<int>(std::size(kLlama3Named))
                        ? std::string(kLlama3Named[i])
                        : Concat("<|reserved_special_token_", reserved++, "|>");
    token.normalized = false;
    token.special = true;
    token.id = static_cast<int32_t>(kLlama3Ranks) + i;
    special.push_back(std::move(token));
  }
  auto added = AddedVocabulary::Create(std::move(special), kFile, nullptr);
  if (!added.ok()) return added.status();
  parts.added = *std::move(added);
  parts.post_processor.pieces = {static_cast<int32_t>(kLlama3Ranks), PostProcessor::kSequence};
  auto decoder = Decoder::FromJson(Json{{"type", "ByteLevel"}}, kFile);
  if (!decoder.ok()) return decoder.status();
  parts.decoder = *std::move(decoder);
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace phalanx::tokenizer
