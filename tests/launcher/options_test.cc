#include "launcher/options.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

class PromptsFile : public ::testing::Test {
 protected:
  absl::StatusOr<std::vector<Prompt>> Read(const std::string& content) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = ::testing::TempDir() + "/prompts-" + test->name() + ".jsonl";
    std::ofstream(path_) << content;
    PromptOptions options;
    options.prompts_file = path_;
    return ReadPrompts(options);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_;
};

// What is wrong with `arguments`; empty: nothing.
std::string Fault(CLI::App& app, std::vector<std::string> arguments) {
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "";
}

// What the flags of a rank make of `arguments`; what is wrong with them in `fault`.
RankOptions Parsed(std::vector<std::string> arguments, std::string* fault = nullptr) {
  RankOptions out;
  CLI::App app;
  AddRankOptions(app, out);
  arguments.insert(arguments.begin(), {"--model", "m"});
  const std::string found = Fault(app, std::move(arguments));
  if (fault != nullptr) *fault = found;
  EXPECT_TRUE(fault != nullptr || found.empty()) << found;
  return out;
}

TEST(DeviceOptions, AreACpuOrNineTenthsOfGpusOverNccl) {
  const RankOptions none = Parsed({});
  EXPECT_EQ(none.device, "cpu");
  EXPECT_EQ(none.device_comm, "auto");
  EXPECT_EQ(none.gpu_memory_fraction, 0.9);
  EXPECT_EQ(none.numerics, "exact");
  EXPECT_EQ(none.weight_dtype, "auto");
  EXPECT_EQ(none.kv_dtype, "auto");
  const RankOptions all =
      Parsed({"--device", "cuda", "--device-comm", "staged", "--gpu-memory-fraction", "1",
              "--numerics", "fast", "--weight-dtype", "fp8_e4m3", "--kv-dtype", "fp8_e4m3"});
  EXPECT_EQ(all.device, "cuda");
  EXPECT_EQ(all.device_comm, "staged");
  EXPECT_EQ(all.gpu_memory_fraction, 1);
  EXPECT_EQ(all.numerics, "fast");
  EXPECT_EQ(all.weight_dtype, "fp8_e4m3");
  EXPECT_EQ(all.kv_dtype, "fp8_e4m3");
}

TEST(DeviceOptions, NameWhatIsNone) {
  for (const char* text : {"0", "-0.5", "1.01", "nan", "all", ""}) {
    std::string fault;
    Parsed({"--gpu-memory-fraction", text}, &fault);
    EXPECT_THAT(fault, HasSubstr("--gpu-memory-fraction")) << text;
    EXPECT_THAT(fault, HasSubstr("above 0 and at most 1")) << text;
  }
  std::string fault;
  Parsed({"--device-comm", "mpi"}, &fault);
  EXPECT_THAT(fault, HasSubstr("--device-comm"));
  Parsed({"--device", "gpu"}, &fault);
  EXPECT_THAT(fault, HasSubstr("--device"));
  Parsed({"--numerics", "quick"}, &fault);
  EXPECT_THAT(fault, HasSubstr("--numerics"));
  Parsed({"--kv-dtype", "fp8"}, &fault);
  EXPECT_THAT(fault, HasSubstr("--kv-dtype"));
  Parsed({"--weight-dtype", "fp8"}, &fault);
  EXPECT_THAT(fault, HasSubstr("--weight-dtype"));
}

TEST(DeviceOptions, HaveAGroupInHelp) {
  RankOptions options;
  CLI::App app;
  AddRankOptions(app, options);
  for (const char* flag : {"--device", "--device-comm", "--gpu-memory-fraction"}) {
    EXPECT_EQ(app.get_option(flag)->get_group(), "Device") << flag;
  }
  for (const char* flag : {"--numerics", "--weight-dtype", "--kv-dtype"}) {
    EXPECT_EQ(app.get_option(flag)->get_group(), app.get_option("--reduction-leaves")->get_group());
  }
}

TEST(DeviceOptions, OfGpusAreForGpus) {
  for (const char* flag : {"--device-comm=staged", "--gpu-memory-fraction=0.5"}) {
    for (const char* device : {"cpu", "cuda"}) {
      RankOptions options;
      CLI::App app;
      AddRankOptions(app, options);
      ASSERT_EQ(Fault(app, {"--model", "m", flag}), "");
      options.device = device;  // by a configuration, say
      const absl::Status status = CheckDeviceFlags(app, options);
      if (options.device == "cuda") {
        EXPECT_TRUE(status.ok()) << status;
        continue;
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      const std::string name(flag, std::string(flag).find('='));
      EXPECT_THAT(Text(status), HasSubstr(name + " is for --device cuda"));
    }
  }
}

TEST(ServiceFlags, RefuseWhatWouldHaveNoEffect) {
  const auto fault = [](std::vector<std::string> arguments) {
    ServiceOptions service;
    RequestOptions request;
    CLI::App app;
    AddServiceOptions(app, service);
    AddRequestOptions(app, request);
    return Fault(app, std::move(arguments));
  };
  EXPECT_EQ(fault({"--kv-blocks", "4"}), "");
  EXPECT_THAT(fault({"--kv-blocks", "4", "--kv-memory", "1GiB"}), HasSubstr("excludes"));
  EXPECT_EQ(fault({"--json", "--logprobs", "2", "--prompt-logprobs", "1"}), "");
  for (const char* flag : {"--logprobs", "--prompt-logprobs"}) {
    EXPECT_THAT(fault({flag, "2"}), HasSubstr("requires --json")) << flag;
  }
  for (const char* flag : {"--hosts", "--hostfile"}) {
    EXPECT_THAT(fault({flag, ""}), HasSubstr("an empty variable?")) << flag;
  }
}

TEST(ParseTokenIds, ReadsAList) {
  const auto ids = ParseTokenIds("1,22,-3");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(1, 22, -3));
}

TEST(ParseTokenIds, NamesTheItemThatIsNone) {
  for (const char* text : {"1,x,3", "1,,3", "", "1,4294967296"}) {
    const auto ids = ParseTokenIds(text);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Text(ids.status()), HasSubstr("--token-ids: \""));
  }
}

TEST(ParseLogitBias, ReadsIdAndValue) {
  const auto bias = ParseLogitBias({"42=-1.5", "7=100"});
  ASSERT_TRUE(bias.ok()) << bias.status();
  EXPECT_THAT(*bias, ElementsAre(Pair(42, -1.5f), Pair(7, 100.0f)));
}

TEST(ParseLogitBias, NamesTheEntryThatIsNone) {
  for (const char* text : {"42", "=1", "a=1", "1=b", "1=2=3"}) {
    const auto bias = ParseLogitBias({"1=1", text});
    EXPECT_EQ(bias.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Text(bias.status()), HasSubstr(text));
  }
}

TEST(ReadPrompts, RefusesNoPrompt) {
  const auto prompts = ReadPrompts({});
  EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(prompts.status()), HasSubstr("--prompts-file"));
}

TEST(ReadPrompts, NamesAFileThatIsNotThere) {
  PromptOptions options;
  options.prompts_file = "/nonexistent/prompts.jsonl";
  const auto prompts = ReadPrompts(options);
  EXPECT_EQ(prompts.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(prompts.status()), HasSubstr("/nonexistent/prompts.jsonl"));
}

TEST(ReadPrompts, KeepsTextsBeforeTokenIds) {
  PromptOptions options;
  options.prompts = {"a", "b"};
  options.token_ids = "5,6";
  const auto prompts = ReadPrompts(options);
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 3u);
  EXPECT_EQ((*prompts)[1].text, "b");
  EXPECT_FALSE((*prompts)[2].is_text);
  EXPECT_THAT((*prompts)[2].token_ids, ElementsAre(5, 6));
}

TEST_F(PromptsFile, HoldsStringsArraysAndObjects) {
  const auto prompts = Read(
      "\"a\\n\"\n\n[1,2]\n"
      "{\"prompt\":\"c\",\"id\":\"x\",\"seed\":18446744073709551615,\"max_tokens\":3}\n"
      "{\"token_ids\":[4]}\n");
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 4u);
  EXPECT_EQ((*prompts)[0].text, "a\n");
  EXPECT_THAT((*prompts)[1].token_ids, ElementsAre(1, 2));
  EXPECT_EQ((*prompts)[2].id, "x");
  EXPECT_EQ((*prompts)[2].seed, 18446744073709551615u);
  EXPECT_EQ((*prompts)[2].max_tokens, 3);
  EXPECT_FALSE((*prompts)[3].is_text);
}

TEST_F(PromptsFile, NamesTheLineOfAFault) {
  for (const char* bad :
       {"{", "3", "{}", "{\"prompt\":\"a\",\"token_ids\":[1]}", "{\"prompt\":3}", "[1.5]",
        "[4294967296]", "{\"prompt\":\"a\",\"seed\":-1}", "{\"prompt\":\"a\",\"colour\":1}"}) {
    const auto prompts = Read(std::string("\"fine\"\n\n") + bad + "\n");
    EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(Text(prompts.status()), HasSubstr(".jsonl:3: ")) << bad;
  }
}

}  // namespace
}  // namespace phalanx::launcher
