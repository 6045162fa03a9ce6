#include "runtime/tokenizer/regex.h"

#include <gtest/gtest.h>

namespace phalanx::tokenizer {
namespace {

using Strings = std::vector<std::string>;

Strings FindAll(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  Strings found;
  if (!regex.ok()) return found;
  RegexScratch scratch;
  std::vector<Match> matches;
  EXPECT_TRUE((*regex)->FindAll(text, &scratch, &matches).ok());
  for (const Match& m : matches) found.push_back(text.substr(m.begin, m.end - m.begin));
  return found;
}

TEST(RegexTest, CharacterSetsFollowOniguruma) {
  EXPECT_EQ(FindAll(R"(\p{Lu}\p{Ll}+)", "Élan vital Ωmega"), (Strings{"Élan", "Ωmega"}));
  EXPECT_EQ(FindAll(R"([^\s\p{L}\p{N}]+)", "a!?b 1–2"), (Strings{"!?", "–"}));
  EXPECT_EQ(FindAll(R"([\w&&[^\d]]+)", "ab12cd"), (Strings{"ab", "cd"}));
  EXPECT_EQ(FindAll(R"(\h+)", "xyzBEEFq"), (Strings{"BEEF"}));
  EXPECT_EQ(FindAll(R"(\p{Han}+)", "a漢字\U0002EBF0b"), (Strings{"漢字\U0002EBF0"}));
  EXPECT_EQ(FindAll(R"([[:alpha:]]+|[[:digit:]])", "ab٣"), (Strings{"ab", "٣"}));
  EXPECT_EQ(FindAll(R"(\w)", "²"), (Strings{"²"}));
  EXPECT_EQ(FindAll(R"([\w])", "²"), Strings());
}

TEST(RegexTest, CaseInsensitiveGroupsFoldBeyondAscii) {
  EXPECT_EQ(FindAll("(?i:'s|k)", "'S 'ſ K k"), (Strings{"'S", "'ſ", "K", "k"}));
  EXPECT_EQ(FindAll("a(?i)b|c", "aB C aC"), (Strings{"aB", "aC"}));
}

TEST(RegexTest, RubyQuantifiersAndAnchors) {
  EXPECT_EQ(FindAll("a{1,2}+", "aaaaa"), (Strings{"aaaaa"}));
  EXPECT_EQ(FindAll("ba{2}?", "baab"), (Strings{"baa", "b"}));
  EXPECT_EQ(FindAll("a{,2}b", "aaab"), (Strings{"aab"}));
  EXPECT_EQ(FindAll("^.", "ab\ncd"), (Strings{"a", "c"}));
  EXPECT_EQ(FindAll(R"([\n]+$)", "a\n\n"), (Strings{"\n\n"}));
  EXPECT_EQ(FindAll(R"(\s+(?!\S)|\s+)", "a   b  "), (Strings{"  ", " ", "  "}));
}

TEST(RegexTest, EmptyMatchesAdvanceByCharacters) {
  EXPECT_EQ(FindAll("x*", "éxx"), (Strings{"", "xx"}));
  EXPECT_EQ(FindAll("", "é"), (Strings{"", ""}));
}

TEST(RegexTest, WhatIsNotUnderstoodIsRefused) {
  for (const char* pattern :
       {R"((a)\1)", R"(\X)", R"(\K)", R"(\p{Nonsense})", R"((?i:ss))", "(?<n>a", "*a", "[a", "a)",
        R"(\g<n>)", "(?(1)a|b)", "[[:graph:]]", "\\"}) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(regex.status().message()).find(pattern), std::string::npos);
  }
}

TEST(RegexTest, CatastrophicPatternsGiveUpWithAnError) {
  const auto regex = Regex::Compile(R"((?:a|aa)+(?!a|\z))");
  ASSERT_TRUE(regex.ok()) << regex.status();
  RegexScratch scratch;
  std::vector<Match> matches;
  EXPECT_EQ((*regex)->FindAll(std::string(3000, 'a'), &scratch, &matches).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace phalanx::tokenizer
