// The feature matrix: axes x families x features, every cell run through the whole engine and
// compared with one rank bit for bit. Writes the table; tests/layouts/MATRIX.md is a copy of it,
// and the test fails where it is an old one.
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/shape.h"
#include "tests/layouts/engine_cell.h"

namespace phalanx::testing {
namespace {

using parallel::Layout;

const std::vector<std::pair<std::string, std::string>>& Families() {
  static const auto* const families =
      new std::vector<std::pair<std::string, std::string>>{{"Llama", "llama-gqa-tied-bf16"},
                                                           {"Mistral (window)", "mistral-window"},
                                                           {"Qwen2", "qwen2"},
                                                           {"Qwen3", "qwen3-bf16"},
                                                           {"Mixtral", "mixtral"},
                                                           {"Qwen2-MoE", "qwen2-moe"},
                                                           {"Qwen3-MoE", "qwen3-moe"}};
  return *families;
}

const std::vector<Layout>& Layouts() {
  static const auto* const layouts = new std::vector<Layout>{{.tp = 2},
                                                             {.tp = 3},
                                                             {.pp = 2},
                                                             {.sp = 2},
                                                             {.dp = 2},
                                                             {.pp = 2, .tp = 2},
                                                             {.sp = 2, .tp = 2},
                                                             {.pp = 2, .sp = 2},
                                                             {.dp = 2, .pp = 2},
                                                             {.pp = 2, .sp = 2, .tp = 2},
                                                             {.tp = 2, .ep = 1},
                                                             {.tp = 2, .ep = 2},
                                                             {.sp = 2, .tp = 2, .ep = 4},
                                                             {.pp = 2, .sp = 2, .tp = 2, .ep = 2}};
  return *layouts;
}

struct Feature {
  const char* name;
  std::function<void(Cell&)> turn_on;
};

const std::vector<Feature>& Features() {
  static const auto* const features = new std::vector<Feature>{
      {"plain", [](Cell&) {}},
      {"chunked prefill", [](Cell& cell) { cell.chunk = 7; }},
      {"preemption", [](Cell& cell) { cell.tight = true, cell.long_prompt = cell.layout.sp > 1; }},
      {"prefix hit", [](Cell& cell) { cell.prefix = true; }},
      {"cancellation", [](Cell& cell) { cell.cancelled = cell.crowd = true; }},
      {"n = 4", [](Cell& cell) { cell.n = 4, cell.sampling = Sampling::kSeeded; }},
      {"prompt logprobs", [](Cell& cell) { cell.prompt_logprobs = true; }}};
  return *features;
}

std::string Text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(FeatureMatrix, EveryCellGivesTheBitsOfOneRankAndTheTableIsTheCommittedOne) {
  EngineCells cells;
  int run = 0;
  std::string table;
  for (const auto& [family, directory] : Families()) {
    const std::string model = absl::StrCat("tests/goldens/models/", directory);
    const auto config = checkpoint::LoadModelConfig(absl::StrCat(PHALANX_SOURCE_DIR, "/", model));
    ASSERT_TRUE(config.ok()) << config.status();
    absl::StrAppend(&table, "\n## ", family, "\n\n| layout |");
    for (const Feature& feature : Features()) absl::StrAppend(&table, " ", feature.name, " |");
    absl::StrAppend(&table, "\n|---|");
    for (size_t i = 0; i < Features().size(); ++i) absl::StrAppend(&table, "---|");
    absl::StrAppend(&table, "\n");
    for (const Layout& layout : Layouts()) {
      if (!parallel::DecoderShards::Check(model::ShapeOf(*config), layout, 8, 8).ok()) continue;
      // Where there are no experts, ep is no axis.
      if (config->num_experts == 0 && layout.ep > 0) continue;
      absl::StrAppend(&table, "| ", layout.ToString(), layout.ep == 1 ? ",ep=1" : "", " |");
      for (const Feature& feature : Features()) {
        Cell cell;
        cell.model = model;
        cell.layout = layout;
        feature.turn_on(cell);
        const std::string wrong = cells.Check(cell);
        EXPECT_EQ(wrong, "") << cell.Name();
        absl::StrAppend(&table, wrong.empty() ? " equal |" : " DIFFERENT |");
        ++run;
      }
      absl::StrAppend(&table, "\n");
      std::printf("  %s %s\n", family.c_str(), layout.ToString().c_str());
      std::fflush(stdout);
    }
  }
  const std::string text = absl::StrCat(
      "# The feature matrix\n\nWritten by matrix_test, which runs every cell: the whole engine "
      "(coordinator, scheduler, ranks as\nthreads) on a small checkpoint of the family, the answer "
      "compared with that of one rank, one thread,\nalone. \"equal\": token ids, logprobs of the "
      "chosen and the top five, text and end are the same bits, and\nwhat the column names "
      "(a preemption, a prefix hit, a neighbour cancelled in mid-stream) has happened.\n",
      run, " cells.\n", table);
  const std::string generated = absl::StrCat(PHALANX_BINARY_DIR, "/MATRIX.md");
  std::ofstream(generated) << text;
  const std::string committed = absl::StrCat(PHALANX_SOURCE_DIR, "/tests/layouts/MATRIX.md");
  EXPECT_TRUE(Text(committed) == text) << "an old table: cp " << generated << " " << committed;
}

}  // namespace
}  // namespace phalanx::testing
