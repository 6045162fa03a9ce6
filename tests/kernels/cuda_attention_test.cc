// Attention's shared memory on the emulated device: what a block may have is asked for, and no
// block wants more than the device has.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_kernels.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/host_memory_kernels.h"
#include "tests/kernels/ops_testing.h"

namespace phalanx::kernels {
namespace {

// Rows [from, tokens) of attention in one call, as bits.
std::vector<uint32_t> Attend(const Shape& shape, int64_t tokens, int64_t from,
                             Numerics numerics = Numerics::kExact) {
  auto device = CreateCudaKernels({.device = 0, .pack_threads = 1, .numerics = numerics});
  EXPECT_TRUE(device.ok()) << device.status();
  HostMemoryKernels kernels(*std::move(device));
  const Layer layer(shape);
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  std::vector<int32_t> table, positions, slots;
  for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(blocks - 1 - b));
  for (int32_t p = 0; p < tokens; ++p) {
    positions.push_back(p);
    slots.push_back(table[p / kBlockTokens] * kBlockTokens + p % kBlockTokens);
  }
  Cache cache(kernels, layer.kv(), blocks);
  Random random(3);
  Matrix qkv = Matrix::Of(DType::kF32, tokens, layer.Cols(), random);
  Matrix q(Activation(shape), tokens, shape.heads * RoundUp(shape.dim, kDotGroup));
  kernels.QkvToCache(layer.Qkv(qkv.view(), positions, slots, cache.view(), q.view()));
  Matrix out(Activation(shape), tokens - from, layer.OutCols());
  kernels.Attention(layer.Attention(RowsOf(q.view(), from, tokens - from), cache.view(),
                                    {{0, tokens - from, from, table.data()}}, out.view()));
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < tokens - from; ++i) {
    for (int64_t j = 0; j < layer.OutCols(); ++j) {
      bits.push_back(__builtin_bit_cast(uint32_t, out.Get(i, j)));
    }
  }
  return bits;
}

std::vector<uint32_t> Tail(const std::vector<uint32_t>& all, size_t count) {
  return {all.end() - static_cast<int64_t>(count), all.end()};
}

Shape WithHeads(int64_t heads, int64_t dim) {
  Shape shape;
  shape.heads = heads;
  shape.kv_heads = 1;
  shape.dim = dim;
  return shape;
}

// Twelve rows of 128 columns are 48 KiB of products, and the kernel has static memory besides.
// First in this process: once more was allowed, this is, too.
TEST(CudaAttention, AsksForSharedMemoryThatExceedsTheDefaultWithWhatIsStatic) {
  const Shape shape = WithHeads(12, 128);
  const std::vector<uint32_t> last = Attend(shape, 40, 39);
  EXPECT_EQ(last, Tail(Attend(shape, 40, 0), last.size()));
}

TEST(CudaAttention, OfWideHeadsFitsADeviceWithLittleSharedMemory) {
  const Shape shape = WithHeads(5, 256);
  const std::vector<uint32_t> all = Attend(shape, 40, 0);
  emulation::SetMostShared(99 << 10);
  // Few rows; then more, which the other kernel takes.
  for (const int64_t from : {35, 30}) {
    const std::vector<uint32_t> some = Attend(shape, 40, from);
    EXPECT_EQ(some, Tail(all, some.size())) << from;
  }
  emulation::SetMostShared(emulation::kMostShared);
}

// 32 KiB of queries and 64 KiB of keys and values.
TEST(CudaAttention, OfFastIsExactsWhereABlockHasTooLittleSharedMemory) {
  const Shape shape = WithHeads(5, 128);
  const std::vector<uint32_t> exact = Attend(shape, 40, 0);
  emulation::SetMostShared(96 << 10);
  EXPECT_NE(Attend(shape, 40, 0, Numerics::kFast), exact);
  emulation::SetMostShared((96 << 10) - 1);
  EXPECT_EQ(Attend(shape, 40, 0, Numerics::kFast), exact);
  emulation::SetMostShared(emulation::kMostShared);
}

}  // namespace
}  // namespace phalanx::kernels
