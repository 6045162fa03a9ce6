#include "launcher/fp8_matrices.h"

#include <string>

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

TEST(LeftOutModules, AreAnyRunOfWholePartsOrARegularExpression) {
  const std::string weight = "model.layers.1.mlp.down_proj.weight";
  for (const char* module : {"model.layers.1.mlp.down_proj", "model.layers.1", "mlp", "down_proj",
                             "re:.*down_proj$", "re:model\\.layers\\.[12]\\."}) {
    EXPECT_TRUE(LeftOutModules({"lm_head", module}).Has(weight)) << module;
  }
  for (const char* module : {"", "model.layers.11", "layers.1.m", "down_proj.weight",
                             "re:down_proj", "re:.*up_proj", "re:(", "re:.*weight$"}) {
    EXPECT_FALSE(LeftOutModules({"lm_head", module}).Has(weight)) << module;
  }
  EXPECT_FALSE(LeftOutModules({}).Has(weight));
}

// A configuration is a stranger's text.
TEST(LeftOutModules, GiveUpOnWhatWouldTakeForEver) {
  const std::string weight = "model.layers.1.mlp.down_proj.weight";
  for (const std::string& pattern :
       {std::string("(.+)+x"), std::string("(.*)*(.*)*(.*)*x$"), std::string(40000, '(')}) {
    EXPECT_FALSE(LeftOutModules({"re:" + pattern}).Has(weight)) << pattern.substr(0, 40);
  }
}

}  // namespace
}  // namespace phalanx::launcher
