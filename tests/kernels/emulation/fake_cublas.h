// cuBLASLt on the emulated device: products in the stream's order, added in an order that is none
// of phalanx's. LoadLibrary (kernels/cuda/cublas_library.h) gives it here, so that a device of
// profile `fast` is made as on a GPU.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_FAKE_CUBLAS_H_
#define PHALANX_TESTS_KERNELS_EMULATION_FAKE_CUBLAS_H_

#include <cstdint>
#include <memory>

#include "kernels/cuda/cublas_library.h"

namespace phalanx::kernels::emulation {

std::shared_ptr<const cuda::cublas::Library> FakeCublas();

// What goes wrong from now on, in any thread.
struct FakeCublasFaults {
  bool no_context = false;  // the library doesn't start
  // Products of this many rows have no kernel: -1 none; asked for, it finds nothing or answers that
  // it is not supported.
  int64_t no_kernel_for_rows = -1;
  bool says_not_supported = false;
  bool refuses_products = false;  // cublasLtMatmul fails
};
void SetFakeCublasFaults(const FakeCublasFaults& faults);

// Since this was asked last.
struct FakeCublasCounts {
  int64_t asked = 0;     // for a kernel
  int64_t products = 0;  // enqueued
};
FakeCublasCounts TakeFakeCublasCounts();
// Descriptors, layouts, preferences and contexts that are there.
int64_t LiveFakeCublasObjects();

}  // namespace phalanx::kernels::emulation

#endif  // PHALANX_TESTS_KERNELS_EMULATION_FAKE_CUBLAS_H_
