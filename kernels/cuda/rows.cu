#include "kernels/choosing.h"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/rows.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
// Columns of one thread block of an elementwise op.
constexpr int kColumns = 4 * kThreads;

dim3 ElementGrid(int64_t rows, int64_t cols) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((cols + kColumns - 1) / kColumns));
}

// Runs body(column) for this thread's columns of [0, cols).
template <typename Body>
__device__ void ForColumns(int64_t cols, const Body& body) {
  const int64_t begin = int64_t{blockIdx.y} * kColumns;
  const int64_t end = begin + kColumns < cols ? begin + kColumns : cols;
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads) body(j);
}

__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(TensorView table, const int32_t* ids, int64_t first_id, const Choice* chosen,
                     TensorView out) {
  BeginInTurn();
  const int64_t row = FedId(ids[blockIdx.x], chosen) - first_id;
  const bool held = row >= 0 && row < table.rows;
  float* to = static_cast<float*>(out.data) + blockIdx.x * out.stride;
  ForColumns(out.cols, [&](int64_t j) {
    to[j] = held ? Load(table.data, table.dtype, row * table.stride + j) : 0.0f;
  });
}

__global__ void __launch_bounds__(kThreads)
    AddResidualKernel(TensorView x, TensorView delta, const float* bias) {
  BeginInTurn();
  float* to = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  const float* from = static_cast<const float*>(delta.data) + blockIdx.x * delta.stride;
  ForColumns(x.cols, [&](int64_t j) { to[j] = Residual(to[j], from[j], bias, j); });
}

__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(TensorView x, TensorView delta, const float* bias, const float* weight, float eps,
                  TensorView out) {
  BeginInTurn();
  __shared__ float tile[kSumTile];
  __shared__ float total;
  float* row = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  const float* add = delta.data == nullptr
                         ? nullptr
                         : static_cast<const float*>(delta.data) + blockIdx.x * delta.stride;
  // A column is always this thread's: what it writes here it reads again below.
  const float sum = OrderedSum<true>(
      x.cols,
      [&](int64_t j) {
        if (add == nullptr) return row[j];
        const float value = Residual(row[j], add[j], bias, j);
        row[j] = value;
        return value;
      },
      tile, &total);
  const float scale = RmsScale(sum, x.cols, eps);
  const int64_t to = blockIdx.x * out.stride;
  for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x) {
    Store(out.data, out.dtype, to + j, Normed(row[j], scale, weight[j]));
  }
}

__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  BeginInTurn();
  const float* gate = static_cast<const float*>(gate_up.data) + blockIdx.x * gate_up.stride;
  const int64_t to = blockIdx.x * out.stride;
  ForColumns(out.cols, [&](int64_t j) {
    float value = 0.0f;
    if (j < n) {
      float g = gate[j];
      float u = gate[n + j];
      if (bias != nullptr) {
        g = Add(g, bias[j]);
        u = Add(u, bias[n + j]);
      }
      value = SiluTimes(g, u);
    }
    Store(out.data, out.dtype, to + j, value);
  });
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    GatherTokensKernel(TensorView in, const int32_t* rows, TensorView out) {
  BeginInTurn();
  const int64_t row = rows[blockIdx.x];
  const Element* from = static_cast<const Element*>(in.data) + row * in.stride;
  Element* to = static_cast<Element*>(out.data) + blockIdx.x * out.stride;
  ForColumns(out.cols, [&](int64_t j) { to[j] = row < 0 ? Element{0} : from[j]; });
}

// A thread's stack is its column of `memory`, [depth][threads].
__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(SumProgram program, float* out, int64_t count) {
  BeginInTurn();
  PHALANX_DYNAMIC_SHARED(float, memory);
  float* const stack = memory + threadIdx.x;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    int depth = 0;
    for (int step = 0; step < program.steps; ++step) {
      const int code = program.codes[step];
      if (code >= 0) {
        stack[depth++ * kThreads] = program.operands[code][i];
        continue;
      }
      --depth;
      stack[(depth - 1) * kThreads] = Add(stack[(depth - 1) * kThreads], stack[depth * kThreads]);
    }
    out[i] = stack[0];
  }
}

__global__ void __launch_bounds__(kThreads)
    OrIntoKernel(uint32_t* data, const uint32_t* other, int64_t count) {
  BeginInTurn();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    data[i] |= other[i];
  }
}

// Blocks of kernels whose threads stride over `count` elements.
dim3 StridedGrid(int64_t count) {
  constexpr int64_t kMostBlocks = 4096;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
}

}  // namespace

cudaError_t AddParts(const SumProgram& program, int depth, float* out, int64_t count,
                     cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return Launch(AddPartsKernel, StridedGrid(count), kThreads, sizeof(float) * kThreads * depth,
                stream, program, out, count);
}

cudaError_t OrInto(uint32_t* data, const uint32_t* other, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return Launch(OrIntoKernel, StridedGrid(count), kThreads, 0, stream, data, other, count);
}

cudaError_t GatherRows(TensorView table, const int32_t* ids, int64_t first_id, const Choice* chosen,
                       TensorView out, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  return Launch(GatherRowsKernel, ElementGrid(out.rows, out.cols), kThreads, 0, stream, table, ids,
                first_id, chosen, out);
}

cudaError_t AddResidual(TensorView x, TensorView delta, const float* bias, cudaStream_t stream) {
  if (x.rows == 0 || x.cols == 0) return cudaSuccess;
  return Launch(AddResidualKernel, ElementGrid(x.rows, x.cols), kThreads, 0, stream, x, delta,
                bias);
}

cudaError_t RmsNorm(TensorView x, TensorView delta, const float* bias, const float* weight,
                    float eps, TensorView out, cudaStream_t stream) {
  if (x.rows == 0 || x.cols == 0) return cudaSuccess;
  return Launch(RmsNormKernel, dim3(static_cast<unsigned>(x.rows)), kThreads, 0, stream, x, delta,
                bias, weight, eps, out);
}

cudaError_t SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out,
                    cudaStream_t stream) {
  if (gate_up.rows == 0 || out.cols == 0) return cudaSuccess;
  return Launch(SiluMulKernel, ElementGrid(gate_up.rows, out.cols), kThreads, 0, stream, gate_up,
                bias, n, out);
}

cudaError_t GatherTokens(TensorView in, const int32_t* rows, TensorView out, cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  const dim3 grid = ElementGrid(out.rows, out.cols);
  const auto kernel =
      in.dtype == DType::kF32 ? GatherTokensKernel<uint32_t> : GatherTokensKernel<uint16_t>;
  return Launch(kernel, grid, kThreads, 0, stream, in, rows, out);
}

}  // namespace phalanx::kernels::cuda
