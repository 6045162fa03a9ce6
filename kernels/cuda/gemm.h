// Matrix products by cuBLASLt on one device: profile `fast`. In what order a sum is added is the
// library's business, and may differ with the number of rows, the card and the library's version.
// One device and one version give equal calls equal bits.
#ifndef PHALANX_KERNELS_CUDA_GEMM_H_
#define PHALANX_KERNELS_CUDA_GEMM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/cublas_library.h"
#include "kernels/tensor.h"

namespace phalanx::kernels::cuda {

// out[m, n] = factor x[m, k] w[n, k]^T, added in F32, or that added to what out holds. BF16 x BF16,
// F16 x F16, or F32 x F32 without TF32. Out is F32, or of the type of x and w.
struct Product {
  DType type = DType::kBF16;  // of x and w
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements from one row to the next, as the others
  const void* w = nullptr;
  int64_t w_stride = 0;
  void* out = nullptr;
  DType out_type = DType::kF32;
  int64_t out_stride = 0;
  float factor = 1;
  bool adds = false;
};

// Belongs to one thread at a time.
class Gemm {
 public:
  // Bytes of the workspace that Run is given.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
  // Choices that are remembered; one more, and all are asked for anew.
  static constexpr size_t kMostChoices = 16384;

  // For the calling thread's current device. FAILED_PRECONDITION where the library doesn't start
  // there.
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(
      std::shared_ptr<const cublas::Library> library);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  const cublas::Library& library() const { return *library_; }

  // Whether the library has a kernel for `product`. It is asked the first time that a product of
  // such sizes, strides and alignment of pointers comes.
  bool CanRun(const Product& product);
  // Enqueues a product for which CanRun was true. `workspace`: kWorkspaceBytes of the device,
  // aligned to 256, which calls on one stream may share. Ends the process where the library
  // refuses, as after any other error of a launch.
  void Run(const Product& product, void* workspace, void* stream);

 private:
  // How a product is computed.
  struct Choice {
    bool exists = false;
    cublas::MatrixLayout* w = nullptr;
    cublas::MatrixLayout* x = nullptr;
    cublas::MatrixLayout* out = nullptr;
    cublas::Algorithm algorithm = {};
  };
  // Two types, m, n, k, three strides, three alignments.
  using Key = std::array<int64_t, 11>;

  explicit Gemm(std::shared_ptr<const cublas::Library> library) : library_(std::move(library)) {}
  Choice Choose(const Product& product);
  const Choice& Find(const Product& product);
  void Forget();
  void Check(cublas::Status status, const char* what, const Product& product) const;

  const std::shared_ptr<const cublas::Library> library_;
  cublas::Context* context_ = nullptr;
  cublas::MatmulDesc* desc_ = nullptr;
  std::map<Key, Choice> choices_;
};

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_GEMM_H_
