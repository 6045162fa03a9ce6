#include "launcher/group_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace phalanx::launcher {
namespace {

namespace fs = std::filesystem;

TEST(GroupFiles, AreGoneWhenTheLastWhoHeldThemIs) {
  const std::string name = GroupFiles::NewName();
  EXPECT_NE(name, GroupFiles::NewName());
  std::string path;
  {
    const GroupFiles first(name);
    path = first.path();
    ASSERT_EQ(path, "/dev/shm/" + name);
    std::ofstream(path + "/segment") << "x";
    {
      const GroupFiles second(name);
      EXPECT_EQ(second.path(), path);
    }
    EXPECT_TRUE(fs::exists(path + "/segment"));
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(GroupFiles, OfAKilledGuardAreRemovedByTheNextOne) {
  const std::string left = "/dev/shm/" + GroupFiles::NewName();
  const std::string held = GroupFiles::NewName();
  const GroupFiles holder(held);
  ASSERT_EQ(mkdir(left.c_str(), 0700), 0);
  std::ofstream(left + "/segment") << "x";
  // Just made: whoever makes it may be about to lock it.
  { const GroupFiles next(GroupFiles::NewName()); }
  EXPECT_TRUE(fs::exists(left));
  for (const std::string& path : {left, holder.path()}) {
    const timespec long_ago[2] = {{1000, 0}, {1000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), long_ago, 0), 0);
  }
  { const GroupFiles next(GroupFiles::NewName()); }
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(holder.path()));
}

TEST(GroupFiles, AreNobodyElses) {
  const std::string name = GroupFiles::NewName();
  const std::string path = "/dev/shm/" + name;
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(chmod(path.c_str(), 0777), 0);
  EXPECT_EQ(GroupFiles(name).path(), "") << "others may write there";
  EXPECT_TRUE(fs::exists(path));
  fs::remove(path);
  fs::create_directory_symlink("/tmp", path);
  EXPECT_EQ(GroupFiles(name).path(), "");
  EXPECT_TRUE(fs::is_symlink(path));
  fs::remove(path);
  for (const char* bad : {"", "phalanx-group-/../x", "other"}) {
    EXPECT_EQ(GroupFiles(bad).path(), "") << bad;
  }
}

}  // namespace
}  // namespace phalanx::launcher
