// In place of the product's header of this name: kernels run on the emulated device.
#ifndef PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_CUH_
#define PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_CUH_

#include <cuda_runtime_api.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/cuda/recorder.h"
#include "kernels/cuda/shared_memory.h"

#define PHALANX_DYNAMIC_SHARED(Type, name) \
  Type* const name = static_cast<Type*>(::phalanx::kernels::emulation::DynamicShared())

namespace phalanx::kernels::cuda {

template <typename... Parameters>
std::function<void()> BindArguments(const void* kernel, void** arguments) {
  const auto run = reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(kernel));
  return [&]<size_t... kIndex>(std::index_sequence<kIndex...>)->std::function<void()> {
    const std::tuple<std::remove_cv_t<Parameters>...> values(
        *static_cast<const std::remove_cv_t<Parameters>*>(arguments[kIndex])...);
    return [run, values] { std::apply(run, values); };
  }
  (std::index_sequence_for<Parameters...>());
}

template <typename... Parameters>
const void* AddressOf(void (*kernel)(Parameters...)) {
  const auto* address = reinterpret_cast<const void*>(kernel);
  emulation::Know(address, BindArguments<Parameters...>);
  return address;
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  const void* const address = AddressOf(kernel);
  if (Recorder* const recorder = Recorder::Of(stream); recorder != nullptr) {
    recorder->Record(kernel, {grid.x, grid.y, grid.z}, threads, shared_bytes, arguments...);
    return cudaSuccess;
  }
  const cudaError_t error = AllowShared(address, shared_bytes);
  if (error != cudaSuccess) return error;
  std::tuple<std::remove_cv_t<Parameters>...> values(arguments...);
  const cudaError_t launched = std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(address, grid, dim3(static_cast<unsigned>(threads)), pointers,
                                shared_bytes, stream);
      },
      values);
  // As a launch by nvcc's syntax is asked for its error: whatever this thread left behind.
  return launched != cudaSuccess ? launched : cudaGetLastError();
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_TESTS_KERNELS_EMULATION_LAUNCH_CUH_
