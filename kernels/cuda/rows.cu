#include "kernels/choosing.h"
#include "kernels/cuda/fours.cuh"
#include "kernels/cuda/lane_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/launch_order.cuh"
#include "kernels/cuda/ordered_sum.cuh"
#include "kernels/cuda/rows.h"

namespace phalanx::kernels::cuda {
namespace {

constexpr int kThreads = 256;
// From so many rows on SiluMul gives a thread four columns; fewer are done sooner by more threads.
constexpr int64_t kRowsOfFours = 17;

dim3 ElementGrid(int64_t rows, int64_t cols) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((cols + kThreads - 1) / kThreads));
}

// Runs body(column) for this thread's column of [0, cols), if it has one: only one, for a store may
// be to what another load reads, and a loop would wait for memory in each turn.
template <typename Body>
__device__ void ForColumn(int64_t cols, const Body& body) {
  const int64_t j = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (j < cols) body(j);
}

__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(TensorView table, const int32_t* ids, int64_t first_id, const Choice* chosen,
                     TensorView out) {
  BeginInTurn();
  const int64_t row = FedId(ids[blockIdx.x], chosen) - first_id;
  const bool held = row >= 0 && row < table.rows;
  float* to = static_cast<float*>(out.data) + blockIdx.x * out.stride;
  ForColumn(out.cols, [&](int64_t j) {
    to[j] = held ? Load(table.data, table.dtype, row * table.stride + j) : 0.0f;
  });
}

__global__ void __launch_bounds__(kThreads)
    AddResidualKernel(TensorView x, TensorView delta, const float* bias) {
  BeginInTurn();
  float* to = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  const float* from = static_cast<const float*>(delta.data) + blockIdx.x * delta.stride;
  ForColumn(x.cols, [&](int64_t j) { to[j] = Residual(to[j], from[j], bias, j); });
}

__device__ __forceinline__ Four ResidualOf(const Four& x, const Four& delta, const Four& bias,
                                           bool has_bias) {
  Four sum;
#pragma unroll
  for (int i = 0; i < kFour; ++i) {
    sum.v[i] = Residual(x.v[i], delta.v[i], has_bias ? bias.v : nullptr, i);
  }
  return sum;
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
  if (add != nullptr) {
    for (int64_t j = threadIdx.x; j < x.cols; j += kThreads) {
      row[j] = Residual(row[j], add[j], bias, j);
    }
  }
  const float sum = OrderedSum<true>(
      x.cols, [&](int64_t j) { return row[j]; }, tile, &total);
  const float scale = RmsScale(sum, x.cols, eps);
  const int64_t to = blockIdx.x * out.stride;
  for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x) {
    Store(out.data, out.dtype, to + j, Normed(row[j], scale, weight[j]));
  }
}

constexpr int kNormThreads = 512;
constexpr int kNormFours = kFour * kNormThreads;

// Rows of at most kFours * kNormFours columns, which stay in registers. All that a row is made of
// is asked for at once; the weight comes while the sum is made. Dynamic shared memory: a row.
template <int kFours>
__global__ void __launch_bounds__(kNormThreads)
    RmsNormOfFoursKernel(TensorView x, TensorView delta, const float* bias, const float* weight,
                         float eps, TensorView out) {
  LetNextStart();
  PHALANX_DYNAMIC_SHARED(float, columns);
  __shared__ float total;
  const int n = static_cast<int>(x.cols);
  // Nothing has read the weight since the last step: it comes from memory, for all rows at once.
  if (blockIdx.x == 0) {
#pragma unroll 1
    for (int j = static_cast<int>(threadIdx.x) * kLineFloats; j < n;
         j += kNormThreads * kLineFloats) {
      PrefetchLine(weight + j);
      if (bias != nullptr) PrefetchLine(bias + j);
    }
  }
  WaitForEarlier();
  float* row = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  const float* add = delta.data == nullptr
                         ? nullptr
                         : static_cast<const float*>(delta.data) + blockIdx.x * delta.stride;
  Four values[kFours] = {};
  Four adds[kFours] = {};
  Four biases[kFours] = {};
  Four weights[kFours] = {};
  const auto load = [&](Four(&fours)[kFours], const float* from) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int j = i * kNormFours + static_cast<int>(threadIdx.x) * kFour;
      if (j < n) fours[i] = LoadFour(from + j);
    }
  };
  load(values, row);
  if (add != nullptr) load(adds, add);
  if (add != nullptr && bias != nullptr) load(biases, bias);
  load(weights, weight);
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int j = i * kNormFours + static_cast<int>(threadIdx.x) * kFour;
    if (j >= n) continue;
    if (add != nullptr) {
      values[i] = ResidualOf(values[i], adds[i], biases[i], bias != nullptr);
      StoreFour(row + j, values[i]);
    }
    StoreFour(columns + j, values[i]);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    float sum = 0.0f;
    if (threadIdx.x < kSumLanes) sum = AddToLane<true>(sum, columns, n);
    sum = HalveSum(sum);
    if (threadIdx.x == 0) total = RmsScale(sum, n, eps);
  }
  __syncthreads();
  const float scale = total;
  const int64_t to = blockIdx.x * out.stride;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int j = i * kNormFours + static_cast<int>(threadIdx.x) * kFour;
    if (j >= n) continue;
    Four normed;
#pragma unroll
    for (int k = 0; k < kFour; ++k) {
      normed.v[k] = Normed(values[i].v[k], scale, weights[i].v[k]);
    }
    StoreFour(out.data, out.dtype, to + j, normed);
  }
}

__global__ void __launch_bounds__(kThreads)
    SiluMulKernel(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  BeginInTurn();
  const int64_t from = blockIdx.x * gate_up.stride;
  const int64_t to = blockIdx.x * out.stride;
  ForColumn(out.cols, [&](int64_t j) {
    float value = 0.0f;
    if (j < n) {
      float g = Load(gate_up.data, gate_up.dtype, from + j);
      float u = Load(gate_up.data, gate_up.dtype, from + n + j);
      if (bias != nullptr) {
        g = Add(g, bias[j]);
        u = Add(u, bias[n + j]);
      }
      value = SiluTimes(g, u);
    }
    Store(out.data, out.dtype, to + j, value);
  });
}

// Four columns a thread: of many rows memory is what takes the time, and a thread for each column
// has too few bytes on the way.
__global__ void __launch_bounds__(kThreads)
    SiluMulOfFoursKernel(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  BeginInTurn();
  const int64_t j = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kFour;
  if (j >= out.cols) return;
  Four values = {};
  if (j < n) {
    const int64_t from = blockIdx.x * gate_up.stride + j;
    Four gates = LoadFour(gate_up.data, gate_up.dtype, from);
    Four ups = LoadFour(gate_up.data, gate_up.dtype, from + n);
    if (bias != nullptr) {
      const Four of_gates = LoadFour(bias + j);
      const Four of_ups = LoadFour(bias + n + j);
#pragma unroll
      for (int i = 0; i < kFour; ++i) {
        gates.v[i] = Add(gates.v[i], of_gates.v[i]);
        ups.v[i] = Add(ups.v[i], of_ups.v[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kFour; ++i) values.v[i] = SiluTimes(gates.v[i], ups.v[i]);
  }
  StoreFour(out.data, out.dtype, blockIdx.x * out.stride + j, values);
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    GatherTokensKernel(TensorView in, const int32_t* rows, TensorView out) {
  BeginInTurn();
  const int64_t row = rows[blockIdx.x];
  const Element* from = static_cast<const Element*>(in.data) + row * in.stride;
  Element* to = static_cast<Element*>(out.data) + blockIdx.x * out.stride;
  ForColumn(out.cols, [&](int64_t j) { to[j] = row < 0 ? Element{0} : from[j]; });
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
  if (AreFours(x) && AreFours(delta) && AreFours(bias) && AreFours(weight) && AreFours(out) &&
      x.cols <= 4 * kNormFours) {
    const auto kernel = x.cols <= kNormFours       ? RmsNormOfFoursKernel<1>
                        : x.cols <= 2 * kNormFours ? RmsNormOfFoursKernel<2>
                                                   : RmsNormOfFoursKernel<4>;
    return Launch(kernel, dim3(static_cast<unsigned>(x.rows)), kNormThreads,
                  static_cast<size_t>(x.cols) * sizeof(float), stream, x, delta, bias, weight, eps,
                  out);
  }
  return Launch(RmsNormKernel, dim3(static_cast<unsigned>(x.rows)), kThreads, 0, stream, x, delta,
                bias, weight, eps, out);
}

cudaError_t SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out,
                    cudaStream_t stream) {
  if (gate_up.rows == 0 || out.cols == 0) return cudaSuccess;
  if (gate_up.rows >= kRowsOfFours && n % kFour == 0 && AreFours(gate_up) && AreFours(bias) &&
      AreFours(out)) {
    return Launch(SiluMulOfFoursKernel, ElementGrid(gate_up.rows, out.cols / kFour), kThreads, 0,
                  stream, gate_up, bias, n, out);
  }
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
