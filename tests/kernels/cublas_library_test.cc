// Finding cuBLASLt at run time, and what is said where it can't be used.
#include "kernels/cuda/cublas_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace phalanx::kernels::cuda::cublas {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Refusal(const std::string& name) {
  const auto library = LoadLibrary(name);
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition) << name;
  return std::string(library.status().message());
}

TEST(CublasLibrary, IsLoadedWithItsFunctions) {
  const auto library = LoadLibrary(FAKE_LIBCUBLASLT);
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ((*library)->version, 130100);
  EXPECT_EQ((*library)->path, FAKE_LIBCUBLASLT);
  EXPECT_EQ(std::string((*library)->GetStatusString(kNotSupported)), "a text of the library");
  EXPECT_NE((*library)->Matmul, nullptr);
}

TEST(CublasLibrary, ThatIsNotThereIsNamed) {
  EXPECT_THAT(Refusal("libcublasLt-of-nowhere.so.13"),
              AllOf(HasSubstr("--numerics fast: cannot load libcublasLt-of-nowhere.so.13"),
                    HasSubstr("expected cuBLAS 13.0.0 or newer"), HasSubstr("install cuBLAS"),
                    HasSubstr("or use --numerics exact")));
}

TEST(CublasLibrary, ThatIsTooOldIsNamedWithItsVersion) {
  EXPECT_THAT(Refusal(FAKE_LIBCUBLASLT_OLD),
              AllOf(HasSubstr(FAKE_LIBCUBLASLT_OLD), HasSubstr("is version 12.8.5"),
                    HasSubstr("expected cuBLAS 13.0.0 or newer")));
}

TEST(CublasLibrary, WithoutAFunctionIsRefusedByTheFunctionsName) {
  EXPECT_THAT(Refusal(FAKE_LIBCUBLASLT_NO_MATMUL),
              AllOf(HasSubstr("version 13.1.0"), HasSubstr("has no function cublasLtMatmul,")));
}

TEST(CublasLibrary, ThatIsNoCublasIsRefused) {
  // The C library, which is loaded anyway.
  EXPECT_THAT(Refusal("libc.so.6"), HasSubstr("does not tell its version"));
}

TEST(CublasLibrary, VersionsReadAsTheyAreWritten) {
  EXPECT_EQ(VersionText(130100), "13.1.0");
  EXPECT_EQ(VersionText(kOldestVersion), "13.0.0");
}

}  // namespace
}  // namespace phalanx::kernels::cuda::cublas
