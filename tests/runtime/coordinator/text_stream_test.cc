#include "runtime/coordinator/text_stream.h"

#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace phalanx::coordinator {
namespace {

// Token i is the i-th piece; Flush gives `rest`.
class Pieces : public TextDecoder {
 public:
  Pieces(std::vector<std::string> pieces, std::string rest)
      : pieces_(std::move(pieces)), rest_(std::move(rest)) {}
  std::string Push(int32_t id) override { return pieces_[id]; }
  std::string Flush() override { return rest_; }

 private:
  std::vector<std::string> pieces_;
  std::string rest_;
};

struct Seen {
  std::vector<std::string> deltas;
  std::string text;
  std::string stop;
};

Seen Feed(const std::vector<std::string>& pieces, const std::vector<std::string>& stops,
          const std::string& rest = "", size_t search_from = 0) {
  TextStream stream(std::make_unique<Pieces>(pieces, rest), stops);
  Seen seen;
  for (size_t i = 0; i < pieces.size() && seen.stop.empty(); ++i) {
    TextStream::Delta d = stream.Push(static_cast<int32_t>(i), i >= search_from);
    seen.deltas.push_back(d.text);
    seen.text += d.text;
    seen.stop = d.stop_string;
  }
  if (seen.stop.empty()) {
    TextStream::Delta d = stream.Finish(pieces.size() >= search_from);
    seen.text += d.text;
    seen.stop = d.stop_string;
  }
  return seen;
}

TEST(TextStream, FindsAStopStringAcrossTokens) {
  const Seen seen = Feed({"hello ", "#", "#", "# more"}, {"###"});
  EXPECT_EQ(seen.text, "hello ");
  EXPECT_EQ(seen.stop, "###");
}

TEST(TextStream, HoldsBackOnlyWhatMayBeginAStopString) {
  const Seen seen = Feed({"ab", "cab", "x"}, {"abd"});
  EXPECT_EQ(seen.deltas, (std::vector<std::string>{"", "abc", "abx"}));
  EXPECT_EQ(seen.stop, "");
}

TEST(TextStream, ReleasesWhatItHeldWhenTheSampleEnds) {
  EXPECT_EQ(Feed({"one", "\n"}, {"\n\n"}).text, "one\n");
  EXPECT_EQ(Feed({"one"}, {"X"}, "\xef\xbf\xbd").text, "one\xef\xbf\xbd");
}

TEST(TextStream, AStopStringMayBeCompletedByTheDecodersLastText) {
  const Seen seen = Feed({"ab"}, {"abc"}, "c");
  EXPECT_EQ(seen.text, "");
  EXPECT_EQ(seen.stop, "abc");
}

TEST(TextStream, TheStringThatIsCompleteFirstEndsTheText) {
  EXPECT_EQ(Feed({"xabcd"}, {"abcd", "c"}).text, "xab");
  EXPECT_EQ(Feed({"xabcd"}, {"cd", "abcd"}).text, "x");
}

TEST(TextStream, DoesNotSearchBeforeMinTokens) {
  const Seen seen = Feed({"END", "END", "END"}, {"END"}, "", 1);
  EXPECT_EQ(seen.text, "END");
  EXPECT_EQ(seen.stop, "END");
}

TEST(TextStream, FindsWhatBeganBeforeMinTokensAndIsCompleteAfter) {
  Seen seen = Feed({"a EN", "D b"}, {"END"}, "", 1);
  EXPECT_EQ(seen.text, "a ");
  EXPECT_EQ(seen.stop, "END");
  // What is complete before doesn't count, also where it lies in what begins another one.
  seen = Feed({"xab", "c"}, {"ab", "xabz"}, "", 1);
  EXPECT_EQ(seen.text, "xabc");
  EXPECT_EQ(seen.stop, "");
  seen = Feed({"xab", "zab"}, {"ab", "xabz"}, "", 1);
  EXPECT_EQ(seen.text, "");
  EXPECT_EQ(seen.stop, "xabz");
  seen = Feed({"aa", "a"}, {"aa"}, "", 1);
  EXPECT_EQ(seen.text, "a");
  EXPECT_EQ(seen.stop, "aa");
}

TEST(TextStream, GivesNoTextWithoutADecoder) {
  TextStream stream(nullptr, {});
  EXPECT_EQ(stream.Push(5, true).text, "");
  EXPECT_EQ(stream.Finish(true).text, "");
}

TEST(TextStream, TheCutIntoTokensDoesNotMatter) {
  std::mt19937 rng(7);
  for (int turn = 0; turn < 3000; ++turn) {
    std::string text;
    for (int i = 0; i < 24; ++i) text.push_back(static_cast<char>('a' + rng() % 2));
    std::vector<std::string> stops;
    for (int i = 0; i < 2; ++i) {
      stops.emplace_back();
      const size_t size = 1 + rng() % 7;
      while (stops.back().size() < size) stops.back().push_back(static_cast<char>('a' + rng() % 2));
    }
    std::vector<std::string> letters;
    std::vector<std::string> pieces;
    for (const char c : text) {
      letters.emplace_back(1, c);
      if (pieces.empty() || rng() % 3 == 0) pieces.emplace_back();
      pieces.back().push_back(c);
    }
    const Seen one = Feed(letters, stops);
    const Seen other = Feed(pieces, stops);
    ASSERT_EQ(one.text, other.text) << text << " stops " << stops[0] << " " << stops[1];
    ASSERT_EQ(one.stop, other.stop) << text << " stops " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace phalanx::coordinator
