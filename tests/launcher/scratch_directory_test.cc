#include "launcher/scratch_directory.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "gtest/gtest.h"
#include "launcher/exit_code.h"

namespace phalanx::launcher {
namespace {

// Makes a directory with a file in it.
void Fill(const ScratchDirectory& scratch) {
  std::filesystem::create_directories(scratch.path() + "/model");
  std::ofstream(scratch.path() + "/model/file") << "text";
}

TEST(ScratchDirectory, GoesWithTheObject) {
  std::optional<ScratchDirectory> scratch("test");
  const std::string path = scratch->path();
  EXPECT_FALSE(std::filesystem::exists(path));
  Fill(*scratch);
  EXPECT_TRUE(std::filesystem::exists(path + "/model/file"));
  scratch.reset();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(ScratchDirectory, GoesWithASignal) {
  const std::string parent = ::testing::TempDir() + "/scratch-" + std::to_string(getpid());
  std::filesystem::create_directory(parent);
  for (const int signal : {SIGINT, SIGTERM}) {
    EXPECT_EXIT(
        {
          setenv("TMPDIR", parent.c_str(), 1);
          const ScratchDirectory scratch("test");
          Fill(scratch);
          if (std::filesystem::is_empty(parent)) _exit(kExitFailed);
          kill(getpid(), signal);
          while (true) pause();
        },
        ::testing::ExitedWithCode(kExitAgain), "phalanx test: stopped by signal");
    EXPECT_TRUE(std::filesystem::is_empty(parent));
  }
  std::filesystem::remove(parent);
}

}  // namespace
}  // namespace phalanx::launcher
