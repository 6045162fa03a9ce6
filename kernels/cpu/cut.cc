#include "kernels/cpu/cut.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "kernels/cpu/fp_environment.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/order.h"
#include "kernels/scalar_math.h"

namespace phalanx::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Columns of one thread's piece of a row.
constexpr int64_t kChunk = 8192;

// One row that is being cut.
class Row {
 public:
  Row(ThreadPool& pool, const OpTable& ops, CutScratch& scratch, absl::Span<const float> logits,
      const ChoiceRow& choice)
      : pool_(pool), ops_(ops), scratch_(scratch), logits_(logits), choice_(choice) {}

  Cut Run() {
    for (const float x : logits_) max_ = x > max_ ? x : max_;
    if (!std::isfinite(max_)) return {max_, kEveryTie};  // nothing to choose from but this
    scaled_max_ = max_ / choice_.temperature;
    Cut cut{-kInfinity, kEveryTie};
    const auto n = static_cast<int64_t>(logits_.size());
    if (choice_.top_k > 0 && choice_.top_k < n) {
      cut = UpTo(LastOfTopK());
    } else if (choice_.top_p < 1.0f) {
      cut = UpTo(LastOfTopP());
    }
    if (choice_.min_p > 0.0f) {
      // Shares fall along the order, so min_p cuts a tail; all that tie at its end stay.
      const float least = LeastOfMinP();
      if (least > cut.threshold) cut = {least, kEveryTie};
    }
    return cut;
  }

 private:
  uint64_t UnitsOf(int32_t id) const {
    const float scaled = logits_[id] / choice_.temperature;
    return ShareUnits(scaled == scaled_max_ ? 1.0f : ExpScalar(scaled - scaled_max_));
  }

  int32_t LastOfTopK() {
    const std::vector<int32_t> best = BestIds(logits_, choice_.top_k);
    if (choice_.top_p >= 1.0f) return best.back();
    uint64_t total = 0;
    for (const int32_t id : best) total += UnitsOf(id);
    const uint64_t wanted = WantedUnits(choice_.top_p, total);
    uint64_t sum = 0;
    size_t kept = 0;
    while (sum < wanted) sum += UnitsOf(best[kept++]);
    return best[kept - 1];
  }

  // The units of the whole row; scratch_.weights afterwards holds its weights.
  uint64_t Weigh() {
    const auto n = static_cast<int64_t>(logits_.size());
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    scratch_.weights.resize(n);
    scratch_.sums.assign(chunks, 0);
    pool_.ParallelFor(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kChunk;
        const int64_t last = std::min(n, first + kChunk);
        ops_.softmax_weights(logits_.data(), first, last, choice_.temperature, scaled_max_,
                             scratch_.weights.data());
        uint64_t sum = 0;
        for (int64_t j = first; j < last; ++j) sum += ShareUnits(scratch_.weights[j]);
        scratch_.sums[chunk] = sum;
      }
    });
    uint64_t total = 0;
    for (const uint64_t sum : scratch_.sums) total += sum;
    return total;
  }

  // Sorts no more of the row than it must.
  int32_t LastOfTopP() {
    const uint64_t wanted = WantedUnits(choice_.top_p, Weigh());
    const BetterId better{logits_.data()};
    std::vector<int32_t>& candidates = scratch_.candidates;
    // candidates[0, sorted) is in order, what follows is worse and in no order; everything outside
    // is worse still.
    size_t sorted = 0;
    const auto sort_more = [&](size_t count) {
      const auto begin = candidates.begin() + static_cast<std::ptrdiff_t>(sorted);
      count = std::min(count, candidates.size() - sorted);
      const auto middle = begin + static_cast<std::ptrdiff_t>(count);
      if (middle != candidates.end()) std::nth_element(begin, middle, candidates.end(), better);
      std::sort(begin, middle, better);
      sorted += count;
    };
    uint64_t sum = 0;
    size_t kept = 0;
    for (const float reach : {8.0f, 16.0f, 32.0f, kInfinity}) {
      // Everything whose logit / T is within `reach` of the best; a wider reach keeps what was
      // sorted, because all of it is better than the new ones.
      const float least = max_ - reach * choice_.temperature;
      candidates.clear();
      for (int32_t id = 0; id < static_cast<int32_t>(logits_.size()); ++id) {
        if (logits_[id] >= least && logits_[id] > -kInfinity) candidates.push_back(id);
      }
      sort_more(std::exchange(sorted, 0));
      while (sum < wanted) {
        if (kept == sorted) sort_more(std::max<size_t>(64, 3 * sorted));
        if (kept == sorted) break;
        sum += ShareUnits(scratch_.weights[candidates[kept++]]);
      }
      if (sum >= wanted) break;
    }
    return candidates[kept - 1];
  }

  float LeastOfMinP() const {
    const float least_log = LogScalar(choice_.min_p);
    float least = max_;
    for (const float x : logits_) {
      // Of -inf the difference is -inf, too.
      const bool stays = x / choice_.temperature - scaled_max_ >= least_log && x > -kInfinity;
      if (stays && x < least) least = x;
    }
    return least;
  }

  // The beginning of the order that ends with `last`.
  Cut UpTo(int32_t last) const {
    const float threshold = logits_[last];
    const auto worse = logits_.begin() + last + 1;
    const bool is_tied = std::find(worse, logits_.end(), threshold) != logits_.end();
    return {threshold, is_tied ? last : kEveryTie};
  }

  ThreadPool& pool_;
  const OpTable& ops_;
  CutScratch& scratch_;
  const absl::Span<const float> logits_;
  const ChoiceRow& choice_;
  float max_ = -kInfinity;
  float scaled_max_ = 0;
};

}  // namespace

Cut CutRow(ThreadPool& pool, const OpTable& ops, CutScratch& scratch,
           absl::Span<const float> logits, const ChoiceRow& row) {
  const ScopedFpEnvironment environment;
  return Row(pool, ops, scratch, logits, row).Run();
}

}  // namespace phalanx::kernels::cpu
