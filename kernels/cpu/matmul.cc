#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "kernels/check.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace phalanx::kernels::cpu {
namespace {

// Rows whose packed form is held at once: bounds memory, and the weight is read again after them.
constexpr int64_t kMaxRows = 512;
// Work units per thread that are enough to balance it.
constexpr int64_t kUnitsPerThread = 4;

// Memory of one thread that lives as long as it does and only grows.
class ThreadScratch {
 public:
  float* AtLeast(int64_t floats) {
    if (floats > floats_) {
      constexpr int64_t kAlignment = 64;
      const int64_t bytes = RoundUp(floats * static_cast<int64_t>(sizeof(float)), kAlignment);
      data_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
      PHALANX_CHECK(data_ != nullptr) << "out of memory for " << bytes << " bytes of scratch";
      floats_ = floats;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t floats_ = 0;
};

thread_local ThreadScratch thread_scratch;

}  // namespace

const MatMulTable& MatMulFor(CpuPath path) {
#if defined(__x86_64__)
  switch (path) {
    case CpuPath::kPortable:
      break;
    case CpuPath::kAvx2:
      return MatMulAvx2();
    case CpuPath::kAvx512:
      return MatMulAvx512();
    case CpuPath::kAmx:
      return MatMulAmx();
  }
#endif
  PHALANX_CHECK(path == CpuPath::kPortable) << "this build has no path " << Name(path);
  return MatMulPortable();
}

void MatMul(ThreadPool& pool, const MatMulTable& table, Buffer& packed_x, TensorView x,
            const CpuPackedWeight& w, absl::Span<const TensorView> outs) {
  PHALANX_CHECK(x.dtype == ActivationType(w.dtype())) << "x is " << Name(x.dtype);
  PHALANX_CHECK(x.cols >= w.k()) << "x has " << x.cols << " columns, the weight " << w.k();
  PHALANX_CHECK(static_cast<int>(outs.size()) == w.num_parts())
      << outs.size() << " outputs for " << w.num_parts() << " parts";
  std::vector<float*> out_data(outs.size());
  std::vector<int64_t> out_strides(outs.size());
  for (size_t p = 0; p < outs.size(); ++p) {
    PHALANX_CHECK(outs[p].dtype == DType::kF32 && outs[p].rows >= x.rows && outs[p].cols >= w.n())
        << "output " << p << " is " << outs[p].rows << " x " << outs[p].cols;
    out_strides[p] = outs[p].stride;
  }
  if (w.n() == 0) return;

  for (int64_t row = 0; row < x.rows; row += kMaxRows) {
    MatMulJob job = {};
    job.dtype = w.dtype();
    job.n = w.n();
    job.k = w.k();
    job.panels = w.panels();
    job.weight = w.data.as<char>();
    job.panel_bytes = w.panel_bytes;
    job.leaves = w.leaves.data();
    job.programs = w.programs.data();
    job.program_begin = w.program_begin.data();
    job.num_parts = w.num_parts();
    job.stack_depth = w.stack_depth;
    job.x = static_cast<const char*>(x.data) + row * x.stride * SizeOf(x.dtype);
    job.x_stride = x.stride;
    job.rows = std::min(kMaxRows, x.rows - row);
    for (size_t p = 0; p < outs.size(); ++p) out_data[p] = outs[p].f32() + row * outs[p].stride;
    job.outs = out_data.data();
    job.out_strides = out_strides.data();
    table.plan(&job);

    const int64_t bytes = job.rows * job.k * static_cast<int64_t>(sizeof(float));
    if (bytes > static_cast<int64_t>(packed_x.bytes())) {
      absl::StatusOr<Buffer> grown = AllocateHost(bytes);
      PHALANX_CHECK(grown.ok()) << grown.status().message();
      packed_x = *std::move(grown);
    }
    job.packed_x = packed_x.data();
    const int64_t blocks = (job.rows + job.row_block - 1) / job.row_block;
    pool.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) { table.pack_x(job, begin, end); });

    // Panel groups are shared out; rows too where the groups are too few to keep the threads busy.
    const int64_t groups = (job.panels + kGroupPanels - 1) / kGroupPanels;
    int64_t splits = 1;
    if (job.mode != kDirect && pool.size() > 1) {
      splits = std::clamp<int64_t>(pool.size() * kUnitsPerThread / groups, 1, (blocks + 3) / 4);
    }
    const int64_t blocks_per_split = (blocks + splits - 1) / splits;
    splits = (blocks + blocks_per_split - 1) / blocks_per_split;
    const int64_t split_rows = std::min(job.rows, blocks_per_split * job.row_block);
    const int64_t scratch_floats = table.scratch_floats(job, split_rows);
    pool.ParallelFor(groups * splits, 1, [&](int64_t begin, int64_t end) {
      float* scratch = thread_scratch.AtLeast(scratch_floats);
      // Units are numbered groups first, so that a range is a run of groups of one split.
      while (begin < end) {
        const int64_t split = begin / groups;
        const int64_t group = begin % groups;
        const int64_t count = std::min(end - begin, groups - group);
        table.compute(job, group, group + count, split * blocks_per_split,
                      std::min(blocks, (split + 1) * blocks_per_split), scratch);
        begin += count;
      }
    });
  }
}

}  // namespace phalanx::kernels::cpu
