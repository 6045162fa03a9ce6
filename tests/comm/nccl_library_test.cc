// Finding NCCL at run time, and what is said where it can't be used.
#include "comm/nccl/nccl_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace phalanx::comm::nccl {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Refusal(const std::string& name) {
  const auto library = LoadLibrary(name);
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition) << name;
  return std::string(library.status().message());
}

TEST(NcclLibrary, IsLoadedWithItsFunctions) {
  const auto library = LoadLibrary(FAKE_LIBNCCL);
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ((*library)->version, 22809);
  EXPECT_EQ((*library)->path, FAKE_LIBNCCL);
  EXPECT_EQ(std::string((*library)->GetErrorString(kSystemError)), "a text of the library");
  EXPECT_NE((*library)->Send, nullptr);
}

TEST(NcclLibrary, ThatIsNotThereIsNamed) {
  EXPECT_THAT(Refusal("libnccl-of-nowhere.so.2"),
              AllOf(HasSubstr("cannot load libnccl-of-nowhere.so.2"),
                    HasSubstr("expected NCCL 2.22.0 or newer"), HasSubstr("install NCCL"),
                    HasSubstr("--device-comm staged")));
}

TEST(NcclLibrary, ThatIsTooOldIsNamedWithItsVersion) {
  EXPECT_THAT(Refusal(FAKE_LIBNCCL_OLD),
              AllOf(HasSubstr(FAKE_LIBNCCL_OLD), HasSubstr("is version 2.21.5"),
                    HasSubstr("expected 2.22.0 or newer")));
  EXPECT_THAT(Refusal(FAKE_LIBNCCL_ANCIENT), HasSubstr("is version 2.8.4"));
}

TEST(NcclLibrary, WithoutAFunctionIsRefusedByTheFunctionsName) {
  EXPECT_THAT(Refusal(FAKE_LIBNCCL_NO_SEND),
              AllOf(HasSubstr("version 2.28.9"), HasSubstr("has no function ncclSend")));
}

TEST(NcclLibrary, ThatIsNoNcclIsRefused) {
  // The C library, which is loaded anyway.
  EXPECT_THAT(Refusal("libc.so.6"), HasSubstr("does not tell its version"));
}

TEST(NcclLibrary, VersionsReadAsTheyAreWritten) {
  EXPECT_EQ(VersionText(22809), "2.28.9");
  EXPECT_EQ(VersionText(kOldestVersion), "2.22.0");
}

TEST(NcclLibrary, ConfigHasTheLayoutOfNccl) {
  // ncclConfig_t of NCCL 2.28 up to splitShare, on 64 bits.
  EXPECT_EQ(offsetof(Config, magic), 8);
  EXPECT_EQ(offsetof(Config, blocking), 16);
  EXPECT_EQ(offsetof(Config, net_name), 32);
  EXPECT_EQ(offsetof(Config, split_share), 40);
  EXPECT_EQ(sizeof(Config), 48);
}

}  // namespace
}  // namespace phalanx::comm::nccl
