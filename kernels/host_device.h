// Marks what CPUs and GPUs share: one text of a formula, one set of bits.
#ifndef PHALANX_KERNELS_HOST_DEVICE_H_
#define PHALANX_KERNELS_HOST_DEVICE_H_

#if defined(__CUDACC__)
#define PHALANX_HOST_DEVICE __host__ __device__
#else
#define PHALANX_HOST_DEVICE
#endif

// A function of a formula: inlined everywhere, so that files compiled for different instruction
// sets never share one.
#define PHALANX_SHARED PHALANX_HOST_DEVICE inline __attribute__((always_inline))

#endif  // PHALANX_KERNELS_HOST_DEVICE_H_
