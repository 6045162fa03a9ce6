// When a kernel begins. On sm_90 and newer a segment's kernel is started while the one before it
// still runs, so that neither its start nor its first reads of weights cost time between the two:
// "programmatic dependent launch" (CUDA Programming Guide, 4.5; PTX ISA, griddepcontrol).
//
// What keeps the order is the kernels' own wait, which is why code without it is never launched so
// (launch_order.h):
// - Every thread of every kernel waits, first of all, whether it has anything to do or not. A grid
//   that ended without would be taken for done by the next one's wait, and with it all before it.
// - Before the wait a kernel touches no memory of the device but weights that the launch itself
//   names: those lie there since the load. (tests/kernels/emulation ends a test where a kernel
//   doesn't wait, or reads or writes before it. It doesn't see what asynchronous copies read.) What
//   an earlier kernel may still write can be prefetched to the L2 cache, where all writes meet:
//   that brings no value to anybody.
// - A kernel whose launch doesn't ask for it, and every one on sm_80, finds nothing to wait for.
//   (A test compiles the kernels for the host with a header of the same name in place of this one.)
#ifndef PHALANX_KERNELS_CUDA_LAUNCH_ORDER_CUH_
#define PHALANX_KERNELS_CUDA_LAUNCH_ORDER_CUH_

namespace phalanx::kernels::cuda {

// The next kernel may be started where there is room beside this one, once all blocks of this one
// have said so or ended. It waits for this one's end all the same.
__device__ __forceinline__ void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until all kernels before this one have ended and what they wrote is seen.
__device__ __forceinline__ void WaitForEarlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// How a kernel begins that has nothing to do before its turn.
__device__ __forceinline__ void BeginInTurn() {
  LetNextStart();
  WaitForEarlier();
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_LAUNCH_ORDER_CUH_
