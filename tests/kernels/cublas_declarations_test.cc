// Our declarations of cuBLASLt against its header: values, sizes, and parameters one by one.
#include <cublasLt.h>
#include <gtest/gtest.h>

#include <type_traits>

#include "kernels/cuda/cublas_library.h"

namespace phalanx::kernels::cuda::cublas {
namespace {

static_assert(kSuccess == static_cast<int>(CUBLAS_STATUS_SUCCESS));
static_assert(kNotInitialized == static_cast<int>(CUBLAS_STATUS_NOT_INITIALIZED));
static_assert(kInvalidValue == static_cast<int>(CUBLAS_STATUS_INVALID_VALUE));
static_assert(kNotSupported == static_cast<int>(CUBLAS_STATUS_NOT_SUPPORTED));
static_assert(kF32 == static_cast<int>(CUDA_R_32F));
static_assert(kF16 == static_cast<int>(CUDA_R_16F));
static_assert(kBF16 == static_cast<int>(CUDA_R_16BF));
static_assert(kCompute32F == static_cast<int>(CUBLAS_COMPUTE_32F));
static_assert(kNone == static_cast<int>(CUBLAS_OP_N));
static_assert(kTransposed == static_cast<int>(CUBLAS_OP_T));
static_assert(kTransA == static_cast<int>(CUBLASLT_MATMUL_DESC_TRANSA));
static_assert(kMaxWorkspaceBytes == static_cast<int>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES));
static_assert(kMinAlignmentA == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES));
static_assert(kMinAlignmentB == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES));
static_assert(kMinAlignmentC == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES));
static_assert(kMinAlignmentD == static_cast<int>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES));

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(HeuristicResult, waves_count) ==
              offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));

// Passed in the same way: pointers for pointers, and numbers and enumerations of one size.
template <typename Ours, typename Theirs>
constexpr bool kAlike = std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> &&
                        sizeof(Ours) == sizeof(Theirs) &&
                        std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs>;
template <typename Ours, typename Theirs>
struct Same : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
struct Same<R (*)(A...), S (*)(B...)> {
  static constexpr bool Compare() {
    if constexpr (sizeof...(A) == sizeof...(B)) return kAlike<R, S> && (kAlike<A, B> && ...);
    return false;
  }
  static constexpr bool value = Compare();
};

TEST(CublasDeclarations, AreThoseOfTheHeader) {
  EXPECT_TRUE((Same<decltype(Library::GetVersion), decltype(&cublasLtGetVersion)>::value));
  EXPECT_TRUE(
      (Same<decltype(Library::GetStatusString), decltype(&cublasLtGetStatusString)>::value));
  EXPECT_TRUE((Same<decltype(Library::Create), decltype(&cublasLtCreate)>::value));
  EXPECT_TRUE((Same<decltype(Library::Destroy), decltype(&cublasLtDestroy)>::value));
  EXPECT_TRUE(
      (Same<decltype(Library::MatmulDescCreate), decltype(&cublasLtMatmulDescCreate)>::value));
  EXPECT_TRUE(
      (Same<decltype(Library::MatmulDescDestroy), decltype(&cublasLtMatmulDescDestroy)>::value));
  EXPECT_TRUE((Same<decltype(Library::MatmulDescSetAttribute),
                    decltype(&cublasLtMatmulDescSetAttribute)>::value));
  EXPECT_TRUE(
      (Same<decltype(Library::MatrixLayoutCreate), decltype(&cublasLtMatrixLayoutCreate)>::value));
  EXPECT_TRUE((
      Same<decltype(Library::MatrixLayoutDestroy), decltype(&cublasLtMatrixLayoutDestroy)>::value));
  EXPECT_TRUE((Same<decltype(Library::MatmulPreferenceCreate),
                    decltype(&cublasLtMatmulPreferenceCreate)>::value));
  EXPECT_TRUE((Same<decltype(Library::MatmulPreferenceDestroy),
                    decltype(&cublasLtMatmulPreferenceDestroy)>::value));
  EXPECT_TRUE((Same<decltype(Library::MatmulPreferenceSetAttribute),
                    decltype(&cublasLtMatmulPreferenceSetAttribute)>::value));
  EXPECT_TRUE((Same<decltype(Library::MatmulAlgoGetHeuristic),
                    decltype(&cublasLtMatmulAlgoGetHeuristic)>::value));
  EXPECT_TRUE((Same<decltype(Library::Matmul), decltype(&cublasLtMatmul)>::value));
}

}  // namespace
}  // namespace phalanx::kernels::cuda::cublas
