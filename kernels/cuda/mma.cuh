// mma.sync.m16n8k16 and asynchronous copies to shared memory (sm_80 and newer).
#ifndef PHALANX_KERNELS_CUDA_MMA_CUH_
#define PHALANX_KERNELS_CUDA_MMA_CUH_

#include <cstdint>

namespace phalanx::kernels::cuda {

// 16 bytes: eight BF16 of a lane.
struct alignas(16) Words {
  uint32_t w[4];
};

__device__ __forceinline__ Words LoadWords(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
// LoadWords of device memory, in registers of its own even where the compiler has the same words
// already.
__device__ __forceinline__ Words LoadWordsApart(const void* from) {
  Words v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(from));
  return v;
}
__device__ __forceinline__ void StoreWords(void* to, const Words& words) {
  *static_cast<uint4*>(to) = {words.w[0], words.w[1], words.w[2], words.w[3]};
}
// Eight FP8 codes of a lane.
struct alignas(8) Codes {
  uint32_t w[2];
};
__device__ __forceinline__ Codes LoadCodes(const void* from) {
  const uint2 v = *static_cast<const uint2*>(from);
  return {{v.x, v.y}};
}
__device__ __forceinline__ void StoreCodes(void* to, const Codes& codes) {
  *static_cast<uint2*>(to) = {codes.w[0], codes.w[1]};
}
// Of two BF16 each: a * b + c, and a * b, rounded once; denormals are kept.
__device__ __forceinline__ uint32_t FmaBf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}
__device__ __forceinline__ uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  return FmaBf16x2(a, b, 0x80008000u);
}
// Two values as BF16, each rounded to nearest even.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// c += A B. a: registers 0 .. 3, b: registers 0 and 1 of the operands' fragments.
__device__ __forceinline__ void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A place in shared memory, in bytes, for what walks over it.
using SharedAt = uint32_t;
__device__ __forceinline__ SharedAt AtShared(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
// Copies 16 bytes to shared memory, or 16 zero bytes where `valid` is false (`from` must be a
// pointer into memory of the device all the same).
__device__ __forceinline__ void CopyAsync(SharedAt to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CopyAsync(void* shared, const void* from, bool valid) {
  CopyAsync(AtShared(shared), from, valid);
}
// `value`, kept in a register from here on: the assembler would rather work it out again at each
// use, ten instructions in front of a copy, than hold it, and sees through everything but an
// exchange. By all lanes of a warp.
__device__ __forceinline__ uint32_t Kept(uint32_t value) {
  return __shfl_sync(0xffffffffu, value, static_cast<int>(threadIdx.x % 32));
}
template <typename Type>
__device__ __forceinline__ const Type* Kept(const Type* pointer) {
  const auto bits = reinterpret_cast<uint64_t>(pointer);
  const uint64_t high = Kept(static_cast<uint32_t>(bits >> 32));
  return reinterpret_cast<const Type*>(high << 32 | Kept(static_cast<uint32_t>(bits)));
}
__device__ __forceinline__ Words LoadShared(SharedAt at) {
  Words v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "r"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t LoadSharedWord(SharedAt at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
// Copies 16 bytes to shared memory, and has all of the 128 bytes that they lie in fetched to the L2
// cache: where the rest is read soon.
__device__ __forceinline__ void CopyAsyncOfLine(SharedAt to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the last kPending groups of this thread have arrived.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// 2^x, within 2^-22 of it; +0 for what would be denormal. Profile `fast` alone.
__device__ __forceinline__ float Exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// What PrefetchLine takes at once.
inline constexpr int kLineBytes = 128;
inline constexpr int kLineFloats = kLineBytes / 4;
// Has the kLineBytes that `from` lies in fetched to the L2 cache.
__device__ __forceinline__ void PrefetchLine(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory");
}

}  // namespace phalanx::kernels::cuda

#endif  // PHALANX_KERNELS_CUDA_MMA_CUH_
