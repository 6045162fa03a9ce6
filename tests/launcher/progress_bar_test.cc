#include "launcher/progress_bar.h"

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

TEST(LoadingProgress, AddsWhatReplicasHaveLoaded) {
  LoadingProgress progress(2);
  EXPECT_EQ(progress.Message(), "starting the ranks");
  progress.Update(1, 0, 3 << 20);
  EXPECT_EQ(progress.Message(), "0 bytes of 3.0 MiB loaded");
  progress.Update(0, 1 << 20, 2 << 20);
  progress.Update(1, 2 << 20, 3 << 20);
  EXPECT_EQ(progress.Message(), "3.0 MiB of 5.0 MiB loaded");
}

}  // namespace
}  // namespace phalanx::launcher
