#include "runtime/model/weight_loader.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::model {

using checkpoint::TensorRef;
using parallel::Range;

KSlice WholeK(int64_t columns) { return {{{0, columns}}, {{0}}}; }

KSlice ShardedK(const parallel::LeafPartition& cut, Range leaves, int64_t scale, int num_leaves) {
  KSlice out;
  for (int64_t i = leaves.begin; i < leaves.end; ++i) {
    const Range leaf = cut.leaf(static_cast<int>(i));
    out.leaves.push_back({leaf.begin * scale, leaf.end * scale});
  }
  for (const Range& part : parallel::WholeSubtrees(leaves, num_leaves)) {
    out.parts.push_back(parallel::LeafProgram(part, static_cast<int>(part.begin - leaves.begin)));
  }
  return out;
}

void WeightLoader::Matrix(const std::vector<RowSlice>& slices, const KSlice& k,
                          std::unique_ptr<kernels::PackedWeight>& out) {
  if (!status_.ok()) return;
  kernels::WeightSpec spec;
  spec.leaves = k.leaves;
  spec.parts = k.parts;
  std::string names;
  int64_t elements = 0;
  for (const RowSlice& slice : slices) {
    const absl::StatusOr<TensorRef> tensor = checkpoint_.Find(slice.role, slice.layer);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return;
    }
    const Range rows = slice.rows.value_or(Range{0, tensor->rows()});
    const char* data = static_cast<const char*>(tensor->data);
    const int64_t row_bytes = tensor->cols() * kernels::SizeOf(tensor->dtype);
    spec.dtype = tensor->dtype;
    spec.rows.push_back({data + rows.begin * row_bytes, rows.size(), tensor->cols()});
    absl::StrAppend(&names, names.empty() ? "" : " + ", tensor->name, " from row ", rows.begin);
    for (const kernels::KLeaf& leaf : k.leaves) elements += rows.size() * (leaf.end - leaf.begin);
  }
  absl::StatusOr<std::unique_ptr<kernels::PackedWeight>> packed = kernels_.Pack(spec);
  if (!packed.ok()) {
    status_ = absl::Status(
        packed.status().code(),
        absl::StrCat(checkpoint_.directory(), ": ", names, ": ", packed.status().message()));
    return;
  }
  out = *std::move(packed);
  bytes_ += out->bytes();
  done_ += elements;
  if (progress_) progress_(done_, total_);
}

void WeightLoader::Vector(const std::vector<RowSlice>& slices, kernels::Buffer& out) {
  if (!status_.ok()) return;
  std::vector<float> host;
  for (const RowSlice& slice : slices) {
    const absl::StatusOr<std::vector<float>> values =
        checkpoint_.ReadVector(slice.role, slice.layer);
    if (!values.ok()) {
      status_ = values.status();
      return;
    }
    const Range rows = slice.rows.value_or(Range{0, static_cast<int64_t>(values->size())});
    host.insert(host.end(), values->begin() + rows.begin, values->begin() + rows.end);
  }
  const int64_t bytes = static_cast<int64_t>(host.size() * sizeof(float));
  absl::StatusOr<kernels::Buffer> buffer = kernels_.Allocate(bytes);
  if (!buffer.ok()) {
    status_ = buffer.status();
    return;
  }
  out = *std::move(buffer);
  kernels_.CopyIn(out.data(), host.data(), bytes);
  bytes_ += bytes;
}

void WeightLoader::Table(checkpoint::Role role, Range rows, kernels::TensorView& out) {
  if (!status_.ok()) return;
  const absl::StatusOr<TensorRef> tensor = checkpoint_.Find(role);
  if (!tensor.ok()) {
    status_ = tensor.status();
    return;
  }
  status_ = checkpoint::CheckFinite(*tensor, rows.begin, rows.end);
  if (!status_.ok()) return;
  const char* data = static_cast<const char*>(tensor->data);
  const int64_t row_bytes = tensor->cols() * kernels::SizeOf(tensor->dtype);
  out.data = const_cast<char*>(data + rows.begin * row_bytes);
  out.dtype = tensor->dtype;
  out.rows = rows.size();
  out.cols = tensor->cols();
  out.stride = tensor->cols();
}

}  // namespace phalanx::model
