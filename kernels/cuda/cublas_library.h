// The part of cuBLASLt's C API that phalanx calls, as a table of functions that is found at run
// time by profile `fast` alone: nothing is linked to it, and tests put another table in its place.
//
// Declared as in cublasLt.h of CUDA 13 (NVIDIA, "cuBLAS", "Using the cuBLASLt API",
// https://docs.nvidia.com/cuda/cublas/): same values, same layouts, which cublas_declarations_test
// checks against that header. A cudaStream_t is a void*.
#ifndef PHALANX_KERNELS_CUDA_CUBLAS_LIBRARY_H_
#define PHALANX_KERNELS_CUDA_CUBLAS_LIBRARY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace phalanx::kernels::cuda::cublas {

// Opaque.
struct Context;
struct MatmulDesc;
struct MatrixLayout;
struct Preference;

enum Status : int { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kNotSupported = 15 };
enum DataType : int { kF32 = 0, kF16 = 2, kBF16 = 14 };  // cudaDataType_t
enum ComputeType : int { kCompute32F = 68 };             // no TF32
enum Operation : int32_t { kNone = 0, kTransposed = 1 };
enum MatmulDescAttribute : int { kTransA = 3 };  // an Operation
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,  // uint64_t
  kMinAlignmentA = 5,      // uint32_t, and so are the others
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};

struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves_count;
  int reserved[4];
};

// What is called; see NVIDIA's documentation of cublasLt<Name>.
struct Library {
  size_t version = 0;  // major * 10000 + minor * 100 + patch
  std::string path;    // for messages

  size_t (*GetVersion)() = nullptr;
  const char* (*GetStatusString)(Status status) = nullptr;
  Status (*Create)(Context** context) = nullptr;
  Status (*Destroy)(Context* context) = nullptr;
  Status (*MatmulDescCreate)(MatmulDesc** desc, ComputeType compute, DataType scale) = nullptr;
  Status (*MatmulDescDestroy)(MatmulDesc* desc) = nullptr;
  Status (*MatmulDescSetAttribute)(MatmulDesc* desc, MatmulDescAttribute attribute,
                                   const void* value, size_t bytes) = nullptr;
  Status (*MatrixLayoutCreate)(MatrixLayout** layout, DataType type, uint64_t rows, uint64_t cols,
                               int64_t leading_dimension) = nullptr;
  Status (*MatrixLayoutDestroy)(MatrixLayout* layout) = nullptr;
  Status (*MatmulPreferenceCreate)(Preference** preference) = nullptr;
  Status (*MatmulPreferenceDestroy)(Preference* preference) = nullptr;
  Status (*MatmulPreferenceSetAttribute)(Preference* preference, PreferenceAttribute attribute,
                                         const void* value, size_t bytes) = nullptr;
  Status (*MatmulAlgoGetHeuristic)(Context* context, MatmulDesc* desc, MatrixLayout* a,
                                   MatrixLayout* b, MatrixLayout* c, MatrixLayout* d,
                                   Preference* preference, int most_results,
                                   HeuristicResult* results, int* num_results) = nullptr;
  Status (*Matmul)(Context* context, MatmulDesc* desc, const void* alpha, const void* a,
                   MatrixLayout* a_layout, const void* b, MatrixLayout* b_layout, const void* beta,
                   const void* c, MatrixLayout* c_layout, void* d, MatrixLayout* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                   void* stream) = nullptr;
};

// The oldest that will do: CUDA's floor.
inline constexpr size_t kOldestVersion = 130000;

// "13.1.0"
inline std::string VersionText(size_t version) {
  return absl::StrCat(version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

// Loads the library that the dynamic linker finds under `name`, and keeps it until the process
// ends. FAILED_PRECONDITION says what was looked for, what was found and what to do: no such
// library, one that is too old, one without a function.
absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(
    const std::string& name = "libcublasLt.so.13");

}  // namespace phalanx::kernels::cuda::cublas

#endif  // PHALANX_KERNELS_CUDA_CUBLAS_LIBRARY_H_
