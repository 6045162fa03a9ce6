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

std::unique_ptr<Kernels> Device(Numerics numerics) {
  auto device = CreateCudaKernels({.device = 0, .pack_threads = 1, .numerics = numerics});
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);
}

// A sequence whose keys and values are in a cache.
class Cached {
 public:
  Cached(const Shape& shape, int64_t tokens, Numerics numerics = Numerics::kExact)
      : tokens_(tokens),
        kernels_(Device(numerics)),
        layer_(shape),
        cache_(kernels_, layer_.kv(), Blocks()),
        q_(Activation(shape), tokens, shape.heads * RoundUp(shape.dim, kDotGroup)) {
    std::vector<int32_t> positions, slots;
    for (int64_t b = 0; b < Blocks(); ++b) table_.push_back(static_cast<int32_t>(Blocks() - 1 - b));
    for (int32_t p = 0; p < tokens; ++p) {
      positions.push_back(p);
      slots.push_back(table_[p / kBlockTokens] * kBlockTokens + p % kBlockTokens);
    }
    Random random(3);
    Matrix qkv = Matrix::Of(DType::kF32, tokens, layer_.Cols(), random);
    kernels_.QkvToCache(layer_.Qkv(qkv.view(), positions, slots, cache_.view(), q_.view()));
  }

  // Rows [from, tokens) of attention in one call, as bits.
  std::vector<uint32_t> Attend(int64_t from) {
    Matrix out(Activation(layer_.shape()), tokens_ - from, layer_.OutCols());
    kernels_.Attention(layer_.Attention(RowsOf(q_.view(), from, tokens_ - from), cache_.view(),
                                        {{0, tokens_ - from, from, table_.data()}}, out.view()));
    std::vector<uint32_t> bits;
    for (int64_t i = 0; i < tokens_ - from; ++i) {
      for (int64_t j = 0; j < layer_.OutCols(); ++j) {
        bits.push_back(__builtin_bit_cast(uint32_t, out.Get(i, j)));
      }
    }
    return bits;
  }

 private:
  int64_t Blocks() const { return (tokens_ + kBlockTokens - 1) / kBlockTokens; }

  int64_t tokens_;
  HostMemoryKernels kernels_;
  Layer layer_;
  Cache cache_;
  Matrix q_;
  std::vector<int32_t> table_;
};

std::vector<uint32_t> Attend(const Shape& shape, int64_t tokens, int64_t from,
                             Numerics numerics = Numerics::kExact) {
  return Cached(shape, tokens, numerics).Attend(from);
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

// Few rows have kernels of two, four and eight warps, for up to eight rows and up to sixteen, and
// for stripes whose blocks they take in one round or in several. The rows are the last of a prompt,
// which the kernel of many rows takes.
TEST(CudaAttention, OfFewRowsHasTheBitsOfMany) {
  struct Case {
    int64_t tokens;
    int stripes;
    int64_t window;
  };
  // The device has three multiprocessors, so one stripe is a block of eight warps where it has more
  // than four KV blocks; three stripes likewise, four no longer.
  const Case cases[] = {{37, 8, 0},  {160, 1, 0},   {255, 1, 70},  {300, 1, 0},   {545, 1, 0},
                        {650, 3, 0}, {610, 1, 400}, {130, 4, 0},   {200, 4, 0},   {512, 4, 0},
                        {520, 4, 0}, {900, 4, 0},   {900, 4, 600}, {1100, 4, 999}};
  for (const auto& [dim, format] :
       {std::pair{64, KvFormat::kPlain}, std::pair{64, KvFormat::kF8E4M3},
        std::pair{80, KvFormat::kPlain}, std::pair{128, KvFormat::kPlain},
        std::pair{128, KvFormat::kF8E4M3}, std::pair{136, KvFormat::kF8E4M3},
        std::pair{256, KvFormat::kPlain}}) {
    for (const Case& c : cases) {
      Shape shape = WithHeads(4, dim);
      shape.format = format;
      shape.stripes = c.stripes;
      shape.window = c.window;
      Cached cached(shape, c.tokens);
      // 9 x 4 rows are too many for the kernels of few.
      const std::vector<uint32_t> many = cached.Attend(c.tokens - 9);
      for (const int64_t few : {1, 2, 3, 4}) {
        const std::vector<uint32_t> bits = cached.Attend(c.tokens - few);
        EXPECT_EQ(bits, Tail(many, bits.size()))
            << few << " of " << c.tokens << " tokens, heads of " << dim << ", " << c.stripes
            << " stripes, window " << c.window << ", format " << static_cast<int>(format);
      }
    }
  }
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
