#include <gtest/gtest.h>

#include <thread>

#include "tests/runtime/tokenizer/test_tokenizers.h"

namespace phalanx::tokenizer {
namespace {

using nlohmann::json;
using testing::TempDir;
using Strings = std::vector<std::string>;

TEST(TokenizerEncodeTest, InvalidUtf8IsRefusedWithItsOffset) {
  const auto tokenizer = FromJson(ReadGoldenJson("byte_level"));
  for (const auto& [text, offset] : std::vector<std::pair<std::string, int>>{
           {"ab\xFFz", 2}, {"\xC0\x80", 0}, {"abcdefghij\xED\xA0\x80", 10}, {"x\xF0\x9F\x98", 1}}) {
    const auto ids = tokenizer->Encode(text, {});
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(ids.status().message()).find("at byte " + std::to_string(offset)),
              std::string::npos)
        << ids.status();
  }
}

TEST(TokenizerEncodeTest, SpecialTokensInTheTextArePlainTextUnlessAskedFor) {
  const auto tokenizer = FromJson(ReadGoldenJson("qwen2"));
  const int32_t start = *tokenizer->TokenToId("<|im_start|>");
  EXPECT_TRUE(tokenizer->IsSpecial(start));
  EXPECT_EQ(*tokenizer->Encode("<|im_start|>", {true, true}), std::vector<int32_t>{start});
  const auto plain = *tokenizer->Encode("<|im_start|>", {});
  EXPECT_GT(plain.size(), 1u);
  EXPECT_EQ(*tokenizer->Decode(plain, true), "<|im_start|>");
  const int32_t tool = *tokenizer->TokenToId("<tool_call>");
  EXPECT_FALSE(tokenizer->IsSpecial(tool));
  EXPECT_EQ(*tokenizer->Encode("<tool_call>", {}), std::vector<int32_t>{tool});
}

TEST(TokenizerEncodeTest, AddedTokensTakeTheSpacesAndWordsTheyAskFor) {
  const auto tokenizer = FromJson(ReadGoldenJson("qwen2"));
  const int32_t mask = *tokenizer->TokenToId("<mask>");
  EXPECT_EQ(*tokenizer->Encode(" \n<mask> \t", {}), std::vector<int32_t>{mask});
  json file = {{"model", CharacterModel({"x", "y", " "})},
               {"added_tokens",
                {{{"id", 3},
                  {"content", "xy"},
                  {"single_word", true},
                  {"lstrip", false},
                  {"rstrip", false},
                  {"normalized", false},
                  {"special", false}}}}};
  EXPECT_EQ(Tokens(*FromJson(file), "xy xyx xy"), (Strings{"xy", " ", "x", "y", "x", " ", "xy"}));
}

TEST(TokenizerEncodeTest, LongWordsAreCutOnlyWhereNoMergeCanCross) {
  // The same text as one word and, through a pre-tokenizer that isolates nothing, in any length.
  const auto tokenizer = FromJson(ReadGoldenJson("metaspace"));
  const std::string sentence = "Ada saw a bird by the sea. ";
  std::string text;
  for (int i = 0; i < 40; ++i) text += sentence;
  const auto all = *tokenizer->Encode(text, {false, false});
  const auto once = *tokenizer->Encode(sentence + "Ada", {false, false});
  for (size_t i = 0; i + 3 < once.size(); ++i) EXPECT_EQ(all[i], once[i]);
  EXPECT_EQ(*tokenizer->Decode(all, true), text);
}

TEST(TokenizerEncodeTest, HostileTextsAreEncodedAndDecodeBack) {
  constexpr size_t kSize = 200'000;
  for (const char* name : {"byte_level", "metaspace", "qwen2"}) {
    const auto tokenizer = FromJson(ReadGoldenJson(name));
    for (const std::string unit :
         {"a", " ", "\n", " \n", "1", "中", "!", "A", "<mask", "\xF0\x9F\x98\x80"}) {
      std::string text;
      while (text.size() < kSize) text += unit;
      const auto ids = tokenizer->Encode(text, {});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*tokenizer->Decode(*ids, true), text) << name << " " << unit;
    }
  }
}

TEST(TokenizerEncodeTest, ManyThreadsGetTheSameIds) {
  const auto tokenizer = FromJson(ReadGoldenJson("qwen2"));
  std::vector<std::string> texts;
  for (int i = 0; i < 200; ++i)
    texts.push_back("It's word" + std::to_string(i) + " né\u0301e, ok?");
  std::vector<std::vector<int32_t>> expected;
  for (const auto& text : texts) expected.push_back(*tokenizer->Encode(text, {}));
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) {
        const size_t at = (i * 7 + static_cast<size_t>(t) * 31) % texts.size();
        wrong[t] += *tokenizer->Encode(texts[at], {}) != expected[at];
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(TokenizerEncodeTest, MetaspaceFirstPrependsOnlyAtTheStartOfTheText) {
  json file = {
      {"model", CharacterModel({"▁", "a", "b"})},
      {"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}}},
      {"added_tokens",
       {{{"id", 3},
         {"content", "X"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", false}}}}};
  EXPECT_EQ(Tokens(*FromJson(file), "aXb a"), (Strings{"▁", "a", "X", "b", "▁", "a"}));
  file["pre_tokenizer"]["prepend_scheme"] = "always";
  EXPECT_EQ(Tokens(*FromJson(file), "aXb a"), (Strings{"▁", "a", "X", "▁", "b", "▁", "a"}));
  file["pre_tokenizer"]["prepend_scheme"] = "never";
  EXPECT_EQ(Tokens(*FromJson(file), "aXb a"), (Strings{"a", "X", "b", "▁", "a"}));
}

TEST(TokenizerEncodeTest, SplitBehaviorsFollowTheLibrary) {
  // With ignore_merges and every piece in the vocabulary, the tokens are the pieces.
  json model = CharacterModel({"a", "b", "-", "--", "a-", "-b", "a--", "--b", "a-b", "-a"});
  model["ignore_merges"] = true;
  const auto tokens = [&](const char* behavior, bool invert) {
    return Tokens(*FromJson({{"model", model},
                             {"pre_tokenizer",
                              {{"type", "Split"},
                               {"pattern", {{"String", "-"}}},
                               {"behavior", behavior},
                               {"invert", invert}}}}),
                  "a--b");
  };
  EXPECT_EQ(tokens("Removed", false), (Strings{"a", "b"}));
  EXPECT_EQ(tokens("Removed", true), (Strings{"-", "-"}));
  EXPECT_EQ(tokens("Isolated", false), (Strings{"a", "-", "-", "b"}));
  EXPECT_EQ(tokens("MergedWithPrevious", false), (Strings{"a-", "-", "b"}));
  EXPECT_EQ(tokens("MergedWithNext", false), (Strings{"a", "-", "-b"}));
  EXPECT_EQ(tokens("Contiguous", false), (Strings{"a", "--", "b"}));
}

TEST(TokenizerDecodeTest, OneBadByteSpoilsAByteFallbackRun) {
  const auto tokenizer = FromJson(ReadGoldenJson("metaspace"));
  const auto byte = [&](const char* name) { return *tokenizer->TokenToId(name); };
  const std::vector<int32_t> good = {byte("<0xE4>"), byte("<0xB8>"), byte("<0xAD>")};
  EXPECT_EQ(*tokenizer->Decode(good, true), "中");
  std::vector<int32_t> bad = good;
  bad.push_back(byte("<0xFF>"));
  EXPECT_EQ(*tokenizer->Decode(bad, true), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Streamed(*tokenizer, bad, true), "\uFFFD\uFFFD\uFFFD\uFFFD");
}

TEST(TokenizerDecodeTest, HalfACharacterWaitsForItsOtherHalf) {
  const auto tokenizer = FromJson(ReadGoldenJson("byte_level"));
  const auto stream = tokenizer->NewStreamDecoder(true);
  EXPECT_EQ(stream->Next(*tokenizer->TokenToId("Ã")), "");   // byte C3
  EXPECT_EQ(stream->Next(*tokenizer->TokenToId("©")), "é");  // byte A9
  EXPECT_EQ(stream->Next(*tokenizer->TokenToId("Ã")), "");
  EXPECT_EQ(stream->Flush(), "\uFFFD");
}

TEST(TokenizerDecodeTest, IdsOutsideTheVocabularyAreRefusedAndNoTextInAStream) {
  const auto tokenizer = FromJson(ReadGoldenJson("byte_level"));
  const int32_t size = tokenizer->vocab_size();
  for (int32_t id : {-1, size, INT32_MAX}) {
    const auto text = tokenizer->Decode({0, id}, true);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(text.status().message()).find("position 1"), std::string::npos);
    EXPECT_FALSE(tokenizer->IdToToken(id).ok());
    EXPECT_FALSE(tokenizer->IsSpecial(id));
    EXPECT_EQ(Streamed(*tokenizer, {id}, true), "");
  }
}

TEST(TokenizerLoadTest, UnknownTypesAndSettingsAreRefusedByName) {
  const json good = ReadGoldenJson("qwen2");
  for (const char* part : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    json bad = good;
    bad[part] = {{"type", "Foo"}};
    EXPECT_EQ(LoadError(bad),
              std::string("tokenizer.json: ") + part + " type \"Foo\" is not supported");
  }
  json bad = good;
  bad["model"]["type"] = "Unigram";
  EXPECT_EQ(LoadError(bad), "tokenizer.json: model type \"Unigram\" is not supported");
  bad = good;
  bad["model"]["frobnicate"] = 1;
  EXPECT_EQ(LoadError(bad), "tokenizer.json: model: the setting \"frobnicate\" is not supported");
  bad = good;
  bad["model"]["dropout"] = 0.1;
  EXPECT_NE(LoadError(bad).find("\"dropout\" is 0.1"), std::string::npos);
  bad = good;
  bad["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(a)\\1"}};
  EXPECT_NE(LoadError(bad).find("\\1, which is not supported"), std::string::npos);
  bad["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(a"}};
  EXPECT_NE(LoadError(bad).find("unfinished group"), std::string::npos);
}

TEST(TokenizerLoadTest, MalformedModelsGetOneClearMessage) {
  const json good = ReadGoldenJson("byte_level");
  const auto with = [&](const std::function<void(json*)>& change) {
    json bad = good;
    change(&bad);
    return LoadError(bad);
  };
  const std::string m = "tokenizer.json: model";
  EXPECT_EQ(with([](json* j) { j->erase("model"); }), "tokenizer.json: \"model\" is missing");
  EXPECT_EQ(with([](json* j) { (*j)["model"].erase("vocab"); }), m + ": \"vocab\" is missing");
  EXPECT_EQ(with([](json* j) { (*j)["model"]["vocab"] = 3; }),
            m + ": \"vocab\" is number; expected an object");
  EXPECT_EQ(with([](json* j) { (*j)["model"]["vocab"]["zz"] = -1; }),
            m + ".vocab: the id of \"zz\" is -1; expected a whole number from 0 to 16777215");
  EXPECT_NE(with([](json* j) { (*j)["model"]["vocab"]["zz"] = 1ull << 62; }).find("\"zz\""),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["model"]["vocab"]["zz"] = "7"; }).find("is string"),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["model"]["vocab"]["zz"] = 5; }).find("two tokens"),
            std::string::npos);
  EXPECT_EQ(with([](json* j) {
              (*j)["model"]["merges"] = json::array({json::array({"a", "nope"})});
            }),
            m + ".merges[0]: the token \"nope\" is not in the vocabulary");
  EXPECT_NE(with([](json* j) { (*j)["model"]["merges"] = json::array({"a"}); }).find("merges[0]"),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["model"]["merges"] = json::array({7}); }).find("found number"),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["added_tokens"][0]["id"] = 99999; }).find("99999"),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["added_tokens"] = 1; }).find("expected an array"),
            std::string::npos);
  EXPECT_NE(with([](json* j) { (*j)["version"] = "9"; }).find("\"version\" is \"9\""),
            std::string::npos);
}

TEST(TokenizerLoadTest, TruncatedAndDamagedFilesNeverCrash) {
  const std::string text = ReadGoldenJson("qwen2").dump();
  EXPECT_FALSE(LoadTokenizerJson("").ok());
  EXPECT_FALSE(LoadTokenizerJson("[]").ok());
  EXPECT_FALSE(LoadTokenizerJson(text.substr(0, text.size() / 2)).ok());
  std::string nested = "{\"model\":{},\"normalizer\":";
  for (int i = 0; i < 5000; ++i) nested += "{\"type\":\"Sequence\",\"normalizers\":[";
  EXPECT_FALSE(LoadTokenizerJson(nested).ok());
  for (int i = 0; i < 5000; ++i) nested += "]}";
  EXPECT_FALSE(LoadTokenizerJson(nested + "}").ok());
  std::string regex_json = R"({"model":{"vocab":{"a":0},"merges":[]},"pre_tokenizer":)"
                           R"({"type":"Split","behavior":"Isolated","invert":false,"pattern":)";
  const std::string deep = std::string(100000, '(');
  EXPECT_FALSE(LoadTokenizerJson(regex_json + "{\"Regex\":\"" + deep + "\"}}}").ok());
  // Every value in turn replaced by one of another type: an error or a tokenizer, never a crash.
  const json good = json::parse(text);
  int refused = 0;
  const json flat = good.flatten();
  for (const auto& [path, value] : flat.items()) {
    if (path.find("/vocab/") != std::string::npos || path.find("/merges/") != std::string::npos) {
      continue;
    }
    for (const json& other : {json(nullptr), json(1e300), json(-1), json("x"), json::array()}) {
      json bad = good;
      bad[json::json_pointer(path)] = other;
      const auto tokenizer = LoadTokenizerJson(bad.dump());
      refused += tokenizer.ok() ? 0 : 1;
      if (tokenizer.ok()) {
        EXPECT_TRUE((*tokenizer)->Encode("a b", {}).ok());
      }
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(TokenizerLoadTest, DirectoriesWithoutATokenizerAreNotFound) {
  EXPECT_EQ(Tokenizer::Load("/no/such/dir").status().code(), absl::StatusCode::kNotFound);
  const std::filesystem::path dir = std::filesystem::path(TempDir()) / "phalanx_no_tokenizer";
  std::filesystem::create_directories(dir);
  std::filesystem::remove(dir / "tokenizer.model");
  EXPECT_EQ(Tokenizer::Load(dir).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(dir / "tokenizer.model") << "garbage";
  EXPECT_EQ(Tokenizer::Load(dir).status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(dir / "tokenizer.model") << "IQ== 0\nIg== 1\n";
  const auto ranks = Tokenizer::Load(dir);
  EXPECT_EQ(ranks.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(ranks.status().message()).find("tiktoken ranks for 2 tokens"),
            std::string::npos);
}

TEST(TokenizerLoadTest, MergesWithSpacesAreReadWhereOneReadingExists) {
  json model = CharacterModel({" ", "  ", "a"});
  model["merges"] = {"   "};  // " " + " "
  EXPECT_EQ(Tokens(*FromJson({{"model", model}}), "a  a"), (Strings{"a", "  ", "a"}));
  model["merges"] = {"a  "};  // "a" + " ", but there is no "a "
  EXPECT_NE(LoadError({{"model", model}}).find("merges[0]"), std::string::npos);
}

}  // namespace
}  // namespace phalanx::tokenizer
