#ifndef PHALANX_TESTS_RUNTIME_TOKENIZER_TEST_TOKENIZERS_H_
#define PHALANX_TESTS_RUNTIME_TOKENIZER_TEST_TOKENIZERS_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/tokenizer/pipeline_tokenizer.h"
#include "runtime/tokenizer/tokenizer.h"

namespace phalanx::tokenizer {

inline std::filesystem::path GoldenDir(const std::string& name) {
  return std::filesystem::path(PHALANX_SOURCE_DIR) / "tests/goldens/tokenizer" / name;
}

inline nlohmann::json ReadGoldenJson(const std::string& name) {
  std::ifstream in(GoldenDir(name) / "tokenizer.json");
  return nlohmann::json::parse(in);
}

inline std::unique_ptr<Tokenizer> FromJson(const nlohmann::json& json) {
  auto tokenizer = LoadTokenizerJson(json.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline std::string LoadError(const nlohmann::json& json) {
  const auto tokenizer = LoadTokenizerJson(json.dump());
  if (tokenizer.ok()) return "loaded";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

// The tokens' spellings, without those around the text.
inline std::vector<std::string> Tokens(const Tokenizer& tokenizer, const std::string& text,
                                       bool parse_special = false) {
  const auto ids = tokenizer.Encode(text, {false, parse_special});
  EXPECT_TRUE(ids.ok()) << ids.status();
  std::vector<std::string> tokens;
  if (!ids.ok()) return tokens;
  for (int32_t id : *ids) tokens.push_back(tokenizer.IdToToken(id).value_or("?"));
  return tokens;
}

inline std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                            bool skip_special_tokens) {
  const auto stream = tokenizer.NewStreamDecoder(skip_special_tokens);
  std::string text;
  for (int32_t id : ids) text += stream->Next(id);
  return text + stream->Flush();
}

// A model whose tokens are the given characters and nothing merges.
inline nlohmann::json CharacterModel(const std::vector<std::string>& characters) {
  nlohmann::json vocab = nlohmann::json::object();
  for (size_t i = 0; i < characters.size(); ++i) vocab[characters[i]] = i;
  return {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}};
}

}  // namespace phalanx::tokenizer

#endif  // PHALANX_TESTS_RUNTIME_TOKENIZER_TEST_TOKENIZERS_H_
