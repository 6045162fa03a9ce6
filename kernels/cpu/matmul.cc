#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

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

// Matmuls that share the pool's loops. At most kMaxRows rows of x are held packed at once.
class Batch {
 public:
  Batch(ThreadPool& pool, const MatMulTable& table, Buffer& packed_x, TensorView x,
        absl::Span<const TensorView> outs)
      : pool_(pool), table_(table), packed_x_(packed_x), x_(x), outs_(outs) {
    for (const TensorView& out : outs) {
      PHALANX_CHECK(out.dtype == DType::kF32) << "an output is " << Name(out.dtype);
      out_strides_.push_back(out.stride);
    }
  }

  // Rows [begin, begin + count) of x times `w`. Runs what was added before where there is no room.
  void Add(const CpuPackedWeight& w, int64_t begin, int64_t count) {
    PHALANX_CHECK(x_.dtype == ActivationType(w.dtype())) << "x is " << Name(x_.dtype);
    PHALANX_CHECK(x_.cols >= w.k()) << "x has " << x_.cols << " columns, the weight " << w.k();
    PHALANX_CHECK(static_cast<int>(outs_.size()) == w.num_parts())
        << outs_.size() << " outputs for " << w.num_parts() << " parts";
    for (const TensorView& out : outs_) {
      PHALANX_CHECK(out.rows >= begin + count && out.cols >= w.n())
          << "an output is " << out.rows << " x " << out.cols;
    }
    if (w.n() == 0) return;
    for (int64_t row = begin; row < begin + count; row += kMaxRows) {
      const int64_t rows = std::min(kMaxRows, begin + count - row);
      if (rows_ + rows > kMaxRows) Run();
      Unit unit = {};
      unit.first_row = row;
      MatMulJob& job = unit.job;
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
      job.x = static_cast<const char*>(x_.data) + row * x_.stride * SizeOf(x_.dtype);
      job.x_stride = x_.stride;
      job.rows = rows;
      job.out_strides = out_strides_.data();
      table_.plan(&job);
      unit.blocks = (job.rows + job.row_block - 1) / job.row_block;
      units_.push_back(unit);
      rows_ += rows;
    }
  }

  void Run() {
    if (units_.empty()) return;
    Place();
    // Ranges are runs of units' blocks (or panel groups), in the order in which units were added.
    pool_.ParallelFor(pack_end_.back(), 1, [&](int64_t begin, int64_t end) {
      for (size_t u = Find(pack_end_, begin); begin < end; ++u) {
        const int64_t first = u == 0 ? 0 : pack_end_[u - 1];
        const int64_t last = std::min(end, pack_end_[u]);
        table_.pack_x(units_[u].job, begin - first, last - first);
        begin = last;
      }
    });
    pool_.ParallelFor(compute_end_.back(), 1, [&](int64_t begin, int64_t end) {
      for (size_t u = Find(compute_end_, begin); begin < end; ++u) {
        const int64_t first = u == 0 ? 0 : compute_end_[u - 1];
        const int64_t last = std::min(end, compute_end_[u]);
        Compute(units_[u], begin - first, last - first);
        begin = last;
      }
    });
    units_.clear();
    rows_ = 0;
  }

 private:
  struct Unit {
    MatMulJob job;
    int64_t first_row;
    int64_t blocks;            // row blocks
    int64_t groups;            // panel groups
    int64_t blocks_per_split;  // row blocks that are computed together
    int64_t scratch_floats;
  };

  // The unit that holds item `i` of those numbered up to ends[u] in unit u.
  static size_t Find(const std::vector<int64_t>& ends, int64_t i) {
    return std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
  }

  // Where each unit's packed rows and outputs are, and how its work is cut.
  void Place() {
    int64_t bytes = 0;
    for (const Unit& unit : units_) bytes += PackedBytes(unit);
    if (bytes > static_cast<int64_t>(packed_x_.bytes())) {
      absl::StatusOr<Buffer> grown = AllocateHost(bytes);
      PHALANX_CHECK(grown.ok()) << grown.status().message();
      packed_x_ = *std::move(grown);
    }
    out_data_.resize(units_.size() * outs_.size());
    pack_end_.clear();
    compute_end_.clear();
    int64_t packed = 0, pack_items = 0, compute_items = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      Unit& unit = units_[u];
      MatMulJob& job = unit.job;
      job.packed_x = packed_x_.as<char>() + packed;
      packed += PackedBytes(unit);
      float** out_data = out_data_.data() + u * outs_.size();
      for (size_t p = 0; p < outs_.size(); ++p) {
        out_data[p] = outs_[p].f32() + unit.first_row * outs_[p].stride;
      }
      job.outs = out_data;
      // Panel groups are shared out; rows too where the groups are too few to keep the threads
      // busy.
      unit.groups = (job.panels + kGroupPanels - 1) / kGroupPanels;
      int64_t splits = 1;
      if (job.mode != kDirect && pool_.size() > 1) {
        splits = std::clamp<int64_t>(pool_.size() * kUnitsPerThread / unit.groups, 1,
                                     (unit.blocks + 3) / 4);
      }
      unit.blocks_per_split = (unit.blocks + splits - 1) / splits;
      splits = (unit.blocks + unit.blocks_per_split - 1) / unit.blocks_per_split;
      const int64_t split_rows = std::min(job.rows, unit.blocks_per_split * job.row_block);
      unit.scratch_floats = table_.scratch_floats(job, split_rows);
      pack_items += unit.blocks;
      compute_items += unit.groups * splits;
      pack_end_.push_back(pack_items);
      compute_end_.push_back(compute_items);
    }
  }

  static int64_t PackedBytes(const Unit& unit) {
    return RoundUp(unit.job.rows * unit.job.k * static_cast<int64_t>(sizeof(float)), 64);
  }

  // Items [begin, end) of one unit, numbered panel groups first, so that a range is a run of groups
  // of one split.
  void Compute(const Unit& unit, int64_t begin, int64_t end) const {
    float* scratch = thread_scratch.AtLeast(unit.scratch_floats);
    while (begin < end) {
      const int64_t split = begin / unit.groups;
      const int64_t group = begin % unit.groups;
      const int64_t count = std::min(end - begin, unit.groups - group);
      table_.compute(unit.job, group, group + count, split * unit.blocks_per_split,
                     std::min(unit.blocks, (split + 1) * unit.blocks_per_split), scratch);
      begin += count;
    }
  }

  ThreadPool& pool_;
  const MatMulTable& table_;
  Buffer& packed_x_;
  const TensorView x_;
  const absl::Span<const TensorView> outs_;
  std::vector<int64_t> out_strides_;
  std::vector<Unit> units_;
  int64_t rows_ = 0;                  // of all units
  std::vector<float*> out_data_;      // [units][parts]
  std::vector<int64_t> pack_end_;     // row blocks up to and with unit u
  std::vector<int64_t> compute_end_;  // compute items up to and with unit u
};

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
  Batch batch(pool, table, packed_x, x, outs);
  batch.Add(w, 0, x.rows);
  batch.Run();
}

void GroupedMatMul(ThreadPool& pool, const MatMulTable& table, Buffer& packed_x, TensorView x,
                   absl::Span<const ExpertRows> groups, absl::Span<const TensorView> outs) {
  Batch batch(pool, table, packed_x, x, outs);
  for (const ExpertRows& group : groups) {
    PHALANX_CHECK(group.begin >= 0 && group.begin + group.count <= x.rows)
        << "rows " << group.begin << " to " << group.begin + group.count << " of " << x.rows;
    if (group.count > 0) {
      batch.Add(static_cast<const CpuPackedWeight&>(*group.w), group.begin, group.count);
    }
  }
  batch.Run();
}

}  // namespace phalanx::kernels::cpu
