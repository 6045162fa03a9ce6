#include "kernels/cuda/step_graphs.h"

namespace phalanx::kernels::cuda {

StepGraphs::~StepGraphs() {
  for (Kept& kept : kept_) Drop(kept);
}

int StepGraphs::Bucket(int64_t rows) {
  int bucket = 0;
  while ((int64_t{1} << bucket) < rows) ++bucket;
  return bucket;
}

size_t StepGraphs::HashKey::operator()(const Key& key) const {
  return static_cast<size_t>(key.topology * 31 + static_cast<uint64_t>(key.place) * 64 +
                             static_cast<uint64_t>(key.bucket));
}

void StepGraphs::BeginStep(int64_t rows) {
  bucket_ = Bucket(rows);
  place_ = 0;
}

void StepGraphs::Run(const Segment& segment) {
  if (segment.empty()) return;
  const Key key = {place_++, bucket_, segment.topology()};
  const auto plain = [&] {
    ++counts_.plain;
    api_.Launch(segment);
  };
  if (segment.kernels().size() < options_.least_kernels) return plain();
  bool is_new = false;
  Kept& kept = Find(key, &is_new);
  if (kept.refused || (is_new && !options_.build_at_once)) return plain();
  if (kept.graph == nullptr || !Update(kept, segment)) {
    kept.graph = api_.Build(segment);
    if (kept.graph == nullptr) {
      kept.refused = true;
      return plain();
    }
    kept.segment = segment;
    ++counts_.built;
  }
  ++counts_.launched;
  api_.Launch(kept.graph);
}

StepGraphs::Kept& StepGraphs::Find(const Key& key, bool* is_new) {
  const auto found = places_.find(key);
  *is_new = found == places_.end();
  if (!*is_new) {
    kept_.splice(kept_.begin(), kept_, found->second);
    return kept_.front();
  }
  if (kept_.size() >= options_.most_graphs) {
    Drop(kept_.back());
    places_.erase(kept_.back().key);
    kept_.pop_back();
    ++counts_.evicted;
  }
  kept_.emplace_front();
  kept_.front().key = key;
  places_[key] = kept_.begin();
  return kept_.front();
}

bool StepGraphs::Update(Kept& kept, const Segment& segment) {
  // Another topology with the same hash takes the entry over.
  bool updated = kept.segment.SameTopology(segment);
  const Upload& before = kept.segment.upload;
  const Upload& now = segment.upload;
  if (updated && now.bytes > 0 &&
      (before.to != now.to || before.from != now.from || before.bytes != now.bytes)) {
    updated = api_.UpdateUpload(kept.graph, segment);
    kept.segment.upload = now;
  }
  for (size_t i = 0; updated && i < segment.kernels().size(); ++i) {
    if (kept.segment.SameKernel(segment, i)) continue;
    updated = api_.UpdateKernel(kept.graph, segment, i);
    kept.segment.TakeKernel(segment, i);
    ++counts_.updated_nodes;
  }
  if (!updated) Drop(kept);
  return updated;
}

void StepGraphs::Drop(Kept& kept) {
  if (kept.graph != nullptr) api_.Destroy(kept.graph);
  kept.graph = nullptr;
}

}  // namespace phalanx::kernels::cuda
