#include <gtest/gtest.h>

#include <random>

#include "runtime/tokenizer/utf8.h"
#include "tests/runtime/tokenizer/test_tokenizers.h"

namespace phalanx::tokenizer {
namespace {

class TokenizerGoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(GoldenDir(GetParam()));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGoldenTest, GivesTheReferenceIdsAndTexts) {
  std::ifstream in(GoldenDir(GetParam()) / "expected.jsonl");
  int encoded = 0;
  int decoded = 0;
  for (std::string line; std::getline(in, line);) {
    const auto expected = nlohmann::json::parse(line);
    if (expected.contains("text")) {
      const auto text = expected["text"].get<std::string>();
      ++encoded;
      EXPECT_EQ(*tokenizer_->Encode(text, {true, false}), expected["plain"]) << text;
      if (expected.contains("parsed")) {
        EXPECT_EQ(*tokenizer_->Encode(text, {true, true}), expected["parsed"]) << text;
      }
      EXPECT_EQ(*tokenizer_->Encode(text, {false, false}), expected["bare"]) << text;
    } else {
      const auto ids = expected["ids"].get<std::vector<int32_t>>();
      ++decoded;
      if (expected.contains("decoded")) {
        EXPECT_EQ(*tokenizer_->Decode(ids, false), expected["decoded"]) << expected["ids"];
      }
      EXPECT_EQ(*tokenizer_->Decode(ids, true), expected["skipped"]) << expected["ids"];
    }
  }
  EXPECT_GT(encoded, 200);
  EXPECT_GT(decoded, 100);
}

TEST_P(TokenizerGoldenTest, StreamedTextEqualsDecodedTextAndIsAlwaysValidUtf8) {
  std::mt19937 rng(5);
  std::uniform_int_distribution<int32_t> any(0, tokenizer_->vocab_size() - 1);
  for (int round = 0; round < 500; ++round) {
    std::vector<int32_t> ids(rng() % 30);
    for (int32_t& id : ids) id = any(rng) % (round % 2 == 0 ? 300 : tokenizer_->vocab_size());
    for (const bool skip : {false, true}) {
      const auto stream = tokenizer_->NewStreamDecoder(skip);
      std::string text;
      for (int32_t id : ids) {
        const std::string delta = stream->Next(id);
        ASSERT_EQ(FindInvalidUtf8(delta), std::string::npos);
        text += delta;
      }
      text += stream->Flush();
      ASSERT_EQ(text, *tokenizer_->Decode(ids, skip));
    }
  }
}

TEST_P(TokenizerGoldenTest, IdsDecodeBackToTheText) {
  for (const char* text : {"Hello, world!", "a  b\n\n\tc", "Chloé saw 本 😀 1234.", "x", " lead"}) {
    EXPECT_EQ(*tokenizer_->Decode(*tokenizer_->Encode(text, {}), true), text);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerGoldenTest,
                         testing::Values("byte_level", "metaspace", "qwen2", "sentencepiece"));

TEST(TokenizerSharedTest, SharedTokenizersDecodeWhatTheyEncode) {
  const std::filesystem::path shared(PHALANX_SHARED_DIR);
  if (!std::filesystem::exists(shared / "tokenizers")) {
    GTEST_SKIP() << "../shared/tokenizers is not there";
  }
  std::ifstream in(shared / "text/frankenstein.txt");
  const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  ASSERT_FALSE(text.empty());
  for (const char* name :
       {"tokenizers/gpt2", "tokenizers/llama-2", "tokenizers/phi-3-mini", "tokenizers/llama-3"}) {
    const auto tokenizer = Tokenizer::Load(shared / name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto ids = (*tokenizer)->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_TRUE(*(*tokenizer)->Decode(*ids, true) == text) << name;
  }
}

TEST(TokenizerSharedTest, SentencePieceModelAndItsTokenizerJsonAgree) {
  const std::filesystem::path shared(PHALANX_SHARED_DIR);
  const auto model = shared / "tokenizers/llama-2/tokenizer.model";
  if (!std::filesystem::exists(model)) GTEST_SKIP() << "../shared/tokenizers is not there";
  const std::filesystem::path dir =
      std::filesystem::path(testing::TempDir()) / "phalanx_sentencepiece";
  std::filesystem::create_directories(dir);
  std::filesystem::copy_file(model, dir / "tokenizer.model",
                             std::filesystem::copy_options::overwrite_existing);
  const auto piece = Tokenizer::Load(dir);
  ASSERT_TRUE(piece.ok()) << piece.status();
  const auto json = Tokenizer::Load(shared / "tokenizers/llama-2");
  ASSERT_TRUE(json.ok()) << json.status();
  for (const char* text : {"Hello world", "  two  spaces ", "naïve 😀\n\nx", "<s> is text </s>",
                           "tabs\tand\nmore", "中文"}) {
    const auto ids = (*piece)->Encode(text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, *(*json)->Encode(text, {})) << text;
    EXPECT_EQ(*(*piece)->Decode(*ids, true), text);
    EXPECT_EQ(Streamed(**piece, *ids, true), text);
  }
  EXPECT_EQ((*(*piece)->Encode("</s>", {false, true})), std::vector<int32_t>{2});
  EXPECT_TRUE((*piece)->IsSpecial(1));
  EXPECT_EQ((*piece)->vocab_size(), 32000);
}

}  // namespace
}  // namespace phalanx::tokenizer
