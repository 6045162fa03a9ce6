#include "tests/faults/injector.h"

#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::faults {
namespace {

using scheduler::SequenceStep;
using scheduler::StepPlan;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kPromptLength = 3;

StepPlan Plan(int32_t start, std::vector<int32_t> tokens, bool samples) {
  SequenceStep step;
  step.start = start;
  step.token_ids = std::move(tokens);
  step.prompt_length = kPromptLength;
  if (samples) step.samples = {{1, 0}};
  StepPlan plan;
  plan.number = 7;
  plan.sequences = {step};
  return plan;
}
StepPlan Prefill() { return Plan(0, {11, 12, 13}, true); }
StepPlan Decode() { return Plan(3, {14}, true); }

// Rank 1 of replica 0 in epoch 2.
class Injection : public testing::Test {
 protected:
  void Use(const std::string& source, int rank = 1, uint64_t epoch = 2) {
    injector_.emplace(source, [this](Action action) { done_.push_back(action); });
    injector_->Accepted(0, rank, epoch);
  }
  void Step(const StepPlan& plan, int collectives = 0) {
    injector_->StepBegin(plan);
    for (int i = 0; i < collectives; ++i) injector_->Collective("AllReduce");
    injector_->StepEnd();
  }

  std::vector<Action> done_;
  std::optional<Injector> injector_;
};

TEST(ParseFaultTest, NamesThePairThatIsWrong) {
  const std::vector<std::string> wrong = {"rank=x", "at=lunch", "do=nothing",
                                          "step=0", "nothing",  "in=idle"};
  for (const std::string& line : wrong) {
    const auto fault = ParseFault("at=decode," + line);
    ASSERT_FALSE(fault.ok()) << line;
    EXPECT_THAT(std::string(fault.status().message()), HasSubstr("\"" + line + "\""));
  }
}

TEST_F(Injection, FailsAtTheNamedStepOfItsKindOnce) {
  Use("rank=1,epoch=2,at=decode,step=2,do=abort");
  Step(Prefill());
  Step(Decode());
  EXPECT_THAT(done_, ElementsAre());
  Step(Decode());
  EXPECT_THAT(done_, ElementsAre(Action::kAbort));
  Step(Decode());
  EXPECT_EQ(done_.size(), 1U);
}

TEST_F(Injection, LeavesOtherRanksAndEpochsAlone) {
  Use("rank=1,epoch=2,at=prefill", 0, 2);
  Step(Prefill());
  Use("rank=1,epoch=2,at=prefill", 1, 3);
  Step(Prefill());
  EXPECT_THAT(done_, ElementsAre());
  Use("rank=*,epoch=*,at=prefill", 5, 9);
  Step(Prefill());
  EXPECT_THAT(done_, ElementsAre(Action::kKill));
}

TEST_F(Injection, FailsInsideAStepAtTheNamedCollective) {
  Use("at=collective,step=2,nth=3,do=sigstop");
  injector_->Collective("BroadcastMessage");  // outside steps
  Step(Decode(), 8);
  Step(Decode(), 2);
  Step(Prefill(), 8);
  EXPECT_THAT(done_, ElementsAre());
  Step(Decode(), 3);
  EXPECT_THAT(done_, ElementsAre(Action::kStop));
}

TEST_F(Injection, FailsPartOfTheWayThroughLoadingOrAtItsEnd) {
  Use("at=loading,part=0.5,do=exit");
  injector_->Loading(4, 10);
  EXPECT_THAT(done_, ElementsAre());
  injector_->Loading(5, 10);
  EXPECT_THAT(done_, ElementsAre(Action::kExit));
  injector_->Loaded();
  EXPECT_EQ(done_.size(), 1U);
  Use("at=loading,do=exit");
  injector_->Loaded();
  EXPECT_EQ(done_.size(), 2U);
}

TEST_F(Injection, PoisonIsAPromptTokenAndNoAnswer) {
  Use("at=poison,token=14,do=abort");
  Step(Decode());
  Step(Prefill());
  EXPECT_THAT(done_, ElementsAre());
  Step(Plan(1, {14, 15}, true));
  EXPECT_THAT(done_, ElementsAre(Action::kAbort));
}

TEST_F(Injection, ChunksOfPromptsArePrefillAndARequestTakenUpAgainIsDecoding) {
  EXPECT_TRUE(HasPrefill(Plan(0, {1, 2}, false)));
  EXPECT_FALSE(HasDecode(Plan(0, {1, 2}, false)));
  EXPECT_FALSE(HasPrefill(Decode()));
  EXPECT_TRUE(HasDecode(Decode()));
  // A prompt of one token.
  StepPlan one = Plan(0, {1}, true);
  one.sequences[0].prompt_length = 1;
  EXPECT_FALSE(HasDecode(one));
}

TEST_F(Injection, ReadsItsFileAgainAndSaysWhatItDoes) {
  const std::string path = testing::TempDir() + "/injector_test_faults";
  std::remove((path + ".fired").c_str());
  std::ofstream(path) << "";
  Use("@" + path);
  Step(Decode());
  EXPECT_THAT(done_, ElementsAre());
  std::ofstream(path) << "rank=0,at=decode\nrank=1,at=decode,do=abort\n";
  Step(Decode());
  EXPECT_THAT(done_, ElementsAre(Action::kAbort));
  std::ifstream fired(path + ".fired");
  std::string line;
  ASSERT_TRUE(std::getline(fired, line));
  EXPECT_THAT(line, HasSubstr("rank=1 epoch=2 pid="));
  EXPECT_THAT(line, HasSubstr(" step=7 "));
  EXPECT_FALSE(std::getline(fired, line));
}

}  // namespace
}  // namespace phalanx::faults
