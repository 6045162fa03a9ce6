#include "runtime/model/weight_loader.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::model {

using checkpoint::TensorRef;
using parallel::Range;

namespace {

// How K is cut and what it is added up to: part of what a packed matrix is.
std::string CutName(const KSlice& k) {
  std::string out = ", columns";
  for (const kernels::KLeaf& leaf : k.leaves) absl::StrAppend(&out, " ", leaf.begin, "-", leaf.end);
  for (const std::vector<int>& part : k.parts) {
    absl::StrAppend(&out, ";");
    for (const int code : part) absl::StrAppend(&out, " ", code);
  }
  return out;
}

}  // namespace

KSlice WholeK(int64_t columns) { return {{{0, columns}}, {{0}}}; }

KSlice ShardedK(const parallel::LeafPartition& leaves, const parallel::TreeCut& cut, int m,
                int64_t scale) {
  KSlice out;
  const Range run = cut.run(m);
  for (int64_t i = run.begin; i < run.end; ++i) {
    const Range leaf = leaves.leaf(static_cast<int>(i));
    out.leaves.push_back({leaf.begin * scale, leaf.end * scale});
  }
  out.parts = cut.part_programs(m);
  return out;
}

absl::StatusOr<TensorRef> WeightLoader::Read(const RowSlice& slice,
                                             const std::vector<kernels::KLeaf>& columns) {
  absl::StatusOr<TensorRef> tensor = checkpoint_.Find(slice.role, slice.layer, slice.expert);
  if (!tensor.ok() || mapped()) return tensor;
  const Range rows = slice.rows.value_or(Range{0, tensor->rows()});
  const parallel::LeafPartition whole(tensor->rows(), 1, 1);
  const parallel::LeafPartition& cut = slice.cut == nullptr ? whole : *slice.cut;
  for (int i = 0; i < cut.num_leaves(); ++i) {
    const Range leaf = cut.leaf(i);
    const Range piece = {std::max(leaf.begin, rows.begin), std::min(leaf.end, rows.end)};
    if (piece.empty()) continue;
    for (const kernels::KLeaf& column : columns) {
      if (column.begin == column.end) continue;
      digests_.push_back(DigestSlice(*tensor, piece, {column.begin, column.end}));
    }
    if (tensor->dtype != kernels::DType::kF8E4M3) continue;
    const checkpoint::ScaleRef& scales = tensor->scales;
    const int64_t block = scales.block.block_rows;
    digests_.push_back(
        DigestSlice({scales.name, scales.dtype, {scales.rows, scales.columns}, scales.data, {}},
                    {piece.begin / block, (piece.end + block - 1) / block}, {0, scales.columns}));
  }
  return tensor;
}

bool WeightLoader::Allocate(const std::string& name, int64_t bytes, kernels::Buffer& out) {
  absl::StatusOr<kernels::Buffer> buffer =
      arena_ != nullptr ? arena_->Take(name, bytes) : kernels_->Allocate(bytes);
  if (!buffer.ok()) {
    status_ = buffer.status();
    return false;
  }
  out = *std::move(buffer);
  bytes_ += bytes;
  return true;
}

void WeightLoader::Matrix(const std::vector<RowSlice>& slices, const KSlice& k,
                          std::unique_ptr<kernels::PackedWeight>& out) {
  Product(slices, k, kernels::WeightFormat::kPlain, out);
}

void WeightLoader::Product(const std::vector<RowSlice>& slices, const KSlice& k,
                           kernels::WeightFormat format,
                           std::unique_ptr<kernels::PackedWeight>& out) {
  if (!status_.ok()) return;
  const auto& coded = checkpoint_.config().fp8;
  kernels::WeightSpec spec;
  if (!coded.has_value()) spec.format = format;
  std::deque<std::vector<float>> scales;  // of each slice with codes
  spec.leaves = k.leaves;
  spec.parts = k.parts;
  std::string names;
  int64_t elements = 0;
  for (const RowSlice& slice : slices) {
    const absl::StatusOr<TensorRef> tensor = Read(slice, k.leaves);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return;
    }
    const Range rows = slice.rows.value_or(Range{0, tensor->rows()});
    const char* data = static_cast<const char*>(tensor->data);
    const int64_t row_bytes = tensor->cols() * kernels::SizeOf(tensor->dtype);
    kernels::RowBlock& block = spec.rows.emplace_back();
    block.data = data + rows.begin * row_bytes;
    block.rows = rows.size();
    block.stride = tensor->cols();
    const bool codes = tensor->dtype == kernels::DType::kF8E4M3;
    if (&slice != &slices.front() && codes == scales.empty()) {
      status_ = absl::UnimplementedError(absl::StrCat(
          checkpoint_.directory(), ": tensors ", names, " and ", tensor->name,
          " make one matrix, but only one of them is FP8; both or none of them may be"));
      return;
    }
    spec.dtype = checkpoint_.config().weight_dtype;
    if (codes) {
      const checkpoint::ScaleRef& of = tensor->scales;
      absl::StatusOr<std::vector<float>> read = checkpoint_.ReadScales(*tensor);
      if (!read.ok()) {
        status_ = read.status();
        return;
      }
      spec.format = format;
      scales.push_back(*std::move(read));
      block.scales = {scales.back().data(), of.block.block_rows, of.block.block_columns,
                      of.columns};
      block.first_row = rows.begin;
      for (const kernels::KLeaf& leaf : k.leaves) {
        if (of.columns == 1 || leaf.begin % kernels::kDotGroup == 0) continue;
        status_ = absl::UnimplementedError(absl::StrCat(
            checkpoint_.directory(), ": tensor ", tensor->name, " has scales for ",
            of.block.block_columns, " columns each, but a part of it that is added up begins at ",
            "column ", leaf.begin, ", no multiple of ", kernels::kDotGroup,
            "; use the checkpoint in BF16 with --weight-dtype fp8_e4m3"));
        return;
      }
    }
    absl::StrAppend(&names, names.empty() ? "" : " + ", tensor->name, " from row ", rows.begin);
    for (const kernels::KLeaf& leaf : k.leaves) elements += rows.size() * (leaf.end - leaf.begin);
  }
  if (kernels_ != nullptr) {
    kernels::Buffer memory;
    if (!Allocate(absl::StrCat(names, CutName(k)), kernels_->PackedBytes(spec), memory)) return;
    if (mapped()) {
      out = kernels_->WrapPacked(spec, std::move(memory));
    } else {
      absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> packed =
          kernels_->PackInto(spec, std::move(memory));
      if (!packed.ok()) {
        status_ = absl::Status(
            packed.status().code(),
            absl::StrCat(checkpoint_.directory(), ": ", names, ": ", packed.status().message()));
        return;
      }
      out = *std::move(packed);
    }
  }
  const int64_t size = kernels::SizeOf(scales.empty() ? spec.dtype : kernels::DType::kF8E4M3);
  for (const kernels::RowBlock& rows : spec.rows) {
    if (mapped()) break;
    checkpoint::AdviseDone(rows.data, rows.rows * rows.stride * size);
  }
  done_ += elements;
  if (progress_) progress_(done_, total_);
}

void WeightLoader::Vector(const std::vector<RowSlice>& slices, kernels::Buffer& out) {
  if (!status_.ok()) return;
  std::vector<float> host;
  std::string names;
  int64_t elements = 0;
  for (const RowSlice& slice : slices) {
    const absl::StatusOr<TensorRef> tensor = Read(slice, {{0, 1}});
    if (!tensor.ok()) {
      status_ = tensor.status();
      return;
    }
    const Range rows = slice.rows.value_or(Range{0, tensor->rows()});
    absl::StrAppend(&names, names.empty() ? "" : " + ", tensor->name, " from row ", rows.begin);
    elements += rows.size();
    if (mapped()) continue;
    const absl::StatusOr<std::vector<float>> values =
        checkpoint_.ReadVector(slice.role, slice.layer);
    if (!values.ok()) {
      status_ = values.status();
      return;
    }
    host.insert(host.end(), values->begin() + rows.begin, values->begin() + rows.end);
  }
  const int64_t bytes = elements * static_cast<int64_t>(sizeof(float));
  if (kernels_ != nullptr && Allocate(names, bytes, out) && !mapped()) {
    kernels_->CopyIn(out.data(), host.data(), bytes);
  }
}

void WeightLoader::Table(const RowSlice& slice, kernels::Buffer& out) {
  if (!status_.ok()) return;
  const int64_t columns = checkpoint_.config().hidden_size;
  const absl::StatusOr<TensorRef> tensor = Read(slice, {{0, columns}});
  if (!tensor.ok()) {
    status_ = tensor.status();
    return;
  }
  const Range rows = slice.rows.value_or(Range{0, tensor->rows()});
  if (kernels_ == nullptr) return;
  if (!mapped()) status_ = checkpoint_.CheckFinite(*tensor, rows.begin, rows.end);
  const int64_t row_bytes = tensor->cols() * kernels::SizeOf(tensor->dtype);
  const char* data = static_cast<const char*>(tensor->data) + rows.begin * row_bytes;
  const std::string name = absl::StrCat(tensor->name, " from row ", rows.begin, ", as stored");
  if (status_.ok() && Allocate(name, rows.size() * row_bytes, out) && !mapped()) {
    kernels_->CopyIn(out.data(), data, rows.size() * row_bytes);
  }
  if (!mapped()) checkpoint::AdviseDone(data, rows.size() * row_bytes);
}

}  // namespace phalanx::model
