#include "kernels/cpu/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/fp_environment.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/reference_cache.h"
#include "kernels/scalar_math.h"

namespace phalanx::kernels::reference {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

float MaxOf(float a, float b) { return a > b ? a : b; }

// Adds lanes j + (j + n/2), and so on down to one.
float Halve(std::vector<float> lanes) {
  for (size_t n = lanes.size() / 2; n > 0; n /= 2) {
    for (size_t j = 0; j < n; ++j) lanes[j] = lanes[j] + lanes[j + n];
  }
  return lanes[0];
}
float HalveMax(std::vector<float> lanes) {
  for (size_t n = lanes.size() / 2; n > 0; n /= 2) {
    for (size_t j = 0; j < n; ++j) lanes[j] = MaxOf(lanes[j], lanes[j + n]);
  }
  return lanes[0];
}

// In place: x / sqrt(mean(x^2) + eps) * weight.
void Normalize(std::vector<float>& x, const float* weight, float eps) {
  std::vector<float> lanes(16, 0.0f);
  for (size_t j = 0; j < x.size(); ++j) lanes[j % 16] = std::fma(x[j], x[j], lanes[j % 16]);
  const float mean = Halve(lanes) / static_cast<float>(x.size());
  const float scale = 1.0f / std::sqrt(mean + eps);
  for (size_t j = 0; j < x.size(); ++j) x[j] = (x[j] * scale) * weight[j];
}

void Rotate(std::vector<float>& x, const float* cos, const float* sin, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float x0 = x[i];
    const float x1 = x[i + half];
    x[i] = std::fma(-x1, sin[i], x0 * cos[i]);
    x[i + half] = std::fma(x0, sin[i], x1 * cos[i]);
  }
}

// Dot product of a query with one cached key.
float Score(const AttentionArgs& args, const CacheBlock& block, int64_t row, int64_t head,
            int64_t token) {
  const int64_t q_column = head * RoundUp(args.cache.shape.head_dim, kDotGroup);
  const auto q = [&](int64_t i) { return Get(args.q, row, q_column + i); };
  const auto k = [&](int64_t i) { return block.Key(i, token); };
  const int64_t width = cpu::KvLayout(args.cache.shape).dk;
  float sum = 0.0f;
  if (args.cache.shape.read_type() == DType::kBF16) {
    for (int64_t group = 0; group < width; group += kDotGroup) {
      float even = 0.0f;
      float odd = 0.0f;
      for (int64_t i = group; i < group + kDotGroup; i += 2) {
        even = std::fma(q(i), k(i), even);
        odd = std::fma(q(i + 1), k(i + 1), odd);
      }
      sum = sum + (even + odd);
    }
  } else {
    for (int64_t i = 0; i < width; ++i) sum = std::fma(q(i), k(i), sum);
  }
  return sum * args.scale;
}

// A running softmax over one block: `state` is max, sum, then head_dim values.
void AttendBlock(const AttentionArgs& args, int64_t physical, int64_t row, int64_t head,
                 cpu::VisibleRange visible, float* state) {
  const CacheBlock block(args.cache, physical, args.kv_head_of[head]);
  std::vector<float> scores(kBlockTokens, kNegativeInfinity);
  for (int t = visible.begin; t < visible.end; ++t) {
    scores[t] = Score(args, block, row, head, t);
  }
  const float max = MaxOf(state[0], HalveMax(scores));
  const float alpha = state[0] == kNegativeInfinity ? 0.0f : ExpScalar(state[0] - max);
  std::vector<float> p(kBlockTokens, 0.0f);
  for (int t = visible.begin; t < visible.end; ++t) p[t] = ExpScalar(scores[t] - max);
  state[0] = max;
  state[1] = std::fma(state[1], alpha, Halve(p));
  for (int64_t i = 0; i < args.cache.shape.head_dim; ++i) {
    const auto v = [&](int t) {
      const bool seen = t >= visible.begin && t < visible.end;
      return seen ? block.Value(i, t) : 0.0f;
    };
    float weighted = 0.0f;
    if (args.cache.shape.read_type() == DType::kBF16) {
      float even = 0.0f;
      float odd = 0.0f;
      for (int t = 0; t < kBlockTokens; t += 2) {
        even = std::fma(Bf16ToF32(F32ToBf16(p[t])), v(t), even);
        odd = std::fma(Bf16ToF32(F32ToBf16(p[t + 1])), v(t + 1), odd);
      }
      weighted = even + odd;
    } else {
      for (int t = 0; t < kBlockTokens; ++t) weighted = std::fma(p[t], v(t), weighted);
    }
    state[2 + i] = std::fma(state[2 + i], alpha, weighted);
  }
}

using Partial = std::vector<float>;  // max, sum, then head_dim values

Partial Merge(const Partial& a, const Partial& b) {
  if (a[0] == kNegativeInfinity) return b;
  if (b[0] == kNegativeInfinity) return a;
  Partial r(a.size());
  r[0] = MaxOf(a[0], b[0]);
  const float ea = ExpScalar(a[0] - r[0]);
  const float eb = ExpScalar(b[0] - r[0]);
  for (size_t i = 1; i < a.size(); ++i) r[i] = std::fma(a[i], ea, b[i] * eb);
  return r;
}

// Runs a postfix program over partials of `width` floats each.
Partial RunMerge(absl::Span<const int> program, const float* partials, int64_t width) {
  std::vector<Partial> stack;
  for (const int step : program) {
    if (step >= 0) {
      stack.emplace_back(partials + step * width, partials + (step + 1) * width);
    } else {
      const Partial right = std::move(stack.back());
      stack.pop_back();
      stack.back() = Merge(stack.back(), right);
    }
  }
  return stack.back();
}

}  // namespace

void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id, TensorView out) {
  const ScopedFpEnvironment environment;
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t row = ids[i] - first_id;
    for (int64_t j = 0; j < out.cols; ++j) {
      Put(out, i, j, row >= 0 && row < table.rows ? Get(table, row, j) : 0.0f);
    }
  }
}

void AddResidual(TensorView x, TensorView delta, const float* bias) {
  const ScopedFpEnvironment environment;
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < x.cols; ++j) {
      const float d = Get(delta, i, j);
      Put(x, i, j, Get(x, i, j) + (bias != nullptr ? d + bias[j] : d));
    }
  }
}

void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) {
  const ScopedFpEnvironment environment;
  for (int64_t i = 0; i < x.rows; ++i) {
    std::vector<float> row(x.cols);
    for (int64_t j = 0; j < x.cols; ++j) row[j] = Get(x, i, j);
    Normalize(row, weight, eps);
    for (int64_t j = 0; j < x.cols; ++j) Put(out, i, j, row[j]);
  }
}

void SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) {
  const ScopedFpEnvironment environment;
  for (int64_t i = 0; i < gate_up.rows; ++i) {
    for (int64_t j = 0; j < out.cols; ++j) {
      float value = 0.0f;
      if (j < n) {
        float gate = Get(gate_up, i, j);
        float up = Get(gate_up, i, n + j);
        if (bias != nullptr) {
          gate = gate + bias[j];
          up = up + bias[n + j];
        }
        value = (gate / (1.0f + ExpScalar(-gate))) * up;
      }
      Put(out, i, j, value);
    }
  }
}

void QkvToCache(const QkvArgs& args) {
  const ScopedFpEnvironment environment;
  const KvShape& shape = args.cache.shape;
  const int64_t d = shape.head_dim;
  const int64_t all_heads = args.num_heads + 2 * shape.num_kv_heads;
  for (int64_t row = 0; row < args.qkv.rows; ++row) {
    const int64_t table = args.positions[row] * (args.rotary_dim / 2);
    for (int64_t head = 0; head < all_heads; ++head) {
      const bool is_query = head < args.num_heads;
      const bool is_value = head >= args.num_heads + shape.num_kv_heads;
      std::vector<float> x(d);
      for (int64_t i = 0; i < d; ++i) {
        x[i] = Get(args.qkv, row, head * d + i);
        if (args.bias != nullptr) x[i] = x[i] + args.bias[head * d + i];
      }
      const float* norm = is_value ? nullptr : is_query ? args.q_norm : args.k_norm;
      if (norm != nullptr) Normalize(x, norm, args.norm_eps);
      if (!is_value) Rotate(x, args.cos + table, args.sin + table, args.rotary_dim);
      if (is_query) {
        const int64_t width = RoundUp(d, kDotGroup);
        for (int64_t i = 0; i < width; ++i) {
          Put(args.q, row, head * width + i, i < d ? x[i] : 0.0f);
        }
        continue;
      }
      if (args.slots[row] < 0) continue;
      const CacheBlock block(args.cache, args.slots[row] / kBlockTokens,
                             (head - args.num_heads) % shape.num_kv_heads);
      const int64_t token = args.slots[row] % kBlockTokens;
      if (is_value) {
        block.PutValue(x, token);
      } else {
        block.PutKey(x, token);
      }
    }
  }
}

void CopyBlocks(const KvView& cache, absl::Span<const std::pair<int32_t, int32_t>> blocks) {
  const cpu::KvLayout layout(cache.shape);
  auto* base = static_cast<uint8_t*>(cache.data);
  for (const auto& [source, destination] : blocks) {
    std::memmove(base + destination * layout.block_bytes, base + source * layout.block_bytes,
                 layout.block_bytes);
  }
}

void AttentionPartials(const AttentionArgs& args, float* partials) {
  const ScopedFpEnvironment environment;
  const int64_t width = 2 + args.cache.shape.head_dim;
  const int64_t stripes = args.stripe_end - args.stripe_begin;
  for (const AttentionSequence& sequence : args.sequences) {
    for (int64_t r = 0; r < sequence.row_count; ++r) {
      const int64_t row = sequence.row_begin + r;
      const int64_t position = sequence.start + r;
      for (int64_t head = 0; head < args.num_heads; ++head) {
        for (int64_t s = 0; s < stripes; ++s) {
          float* state = partials + ((row * args.num_heads + head) * stripes + s) * width;
          state[0] = kNegativeInfinity;
          for (int64_t i = 1; i < width; ++i) state[i] = 0.0f;
          for (int64_t b = args.stripe_begin + s; b * kBlockTokens <= position;
               b += args.num_stripes) {
            const cpu::VisibleRange visible(position, b, args.window);
            if (visible.empty()) continue;
            AttendBlock(args, sequence.block_table[b], row, head, visible, state);
          }
        }
      }
    }
  }
}

void MergeAttention(const AttentionArgs& args, const float* partials) {
  const ScopedFpEnvironment environment;
  const int64_t d = args.cache.shape.head_dim;
  const int64_t width = 2 + d;
  const int operands = args.num_partials > 0 ? args.num_partials : args.num_stripes;
  for (int64_t row = 0; row < args.out.rows; ++row) {
    for (int64_t j = 0; j < args.out.cols; ++j) Put(args.out, row, j, 0.0f);
    for (int64_t head = 0; head < args.num_heads; ++head) {
      const Partial total = RunMerge(
          args.stripe_program, partials + (row * args.num_heads + head) * operands * width, width);
      for (int64_t i = 0; i < d; ++i) {
        Put(args.out, row, args.out_column[head] + i, total[2 + i] / total[1]);
      }
    }
  }
}

void Attention(const AttentionArgs& args) {
  std::vector<float> partials(args.q.rows * args.num_heads * args.num_stripes *
                              (2 + args.cache.shape.head_dim));
  AttentionArgs all = args;
  all.stripe_begin = 0;
  all.stripe_end = args.num_stripes;
  all.num_partials = 0;
  AttentionPartials(all, partials.data());
  MergeAttention(all, partials.data());
}

void LogSumExpLeaves(TensorView logits, absl::Span<const std::pair<int64_t, int64_t>> leaves,
                     absl::Span<MaxSum> out) {
  const ScopedFpEnvironment environment;
  for (int64_t row = 0; row < logits.rows; ++row) {
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      const auto [begin, end] = leaves[leaf];
      std::vector<float> max_lanes(16, kNegativeInfinity);
      for (int64_t j = begin; j < end; ++j) {
        float& lane = max_lanes[(j - begin) % 16];
        lane = MaxOf(Get(logits, row, j), lane);
      }
      const float max = HalveMax(max_lanes);
      std::vector<float> sum_lanes(16, 0.0f);
      for (int64_t j = begin; j < end && max != kNegativeInfinity; ++j) {
        float& lane = sum_lanes[(j - begin) % 16];
        lane = lane + ExpScalar(Get(logits, row, j) - max);
      }
      out[row * leaves.size() + leaf] = {max, Halve(sum_lanes)};
    }
  }
}

void MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                   absl::Span<const std::vector<int>> programs, float* out) {
  const ScopedFpEnvironment environment;
  const int64_t width = 2 + d;
  for (int64_t unit = 0; unit < count; ++unit) {
    for (const std::vector<int>& program : programs) {
      const Partial total = RunMerge(program, partials + unit * num_in * width, width);
      for (const float value : total) *out++ = value;
    }
  }
}

void RouteTopK(const RouterArgs& args) {
  const ScopedFpEnvironment environment;
  const int64_t experts = args.logits.cols;
  for (int64_t row = 0; row < args.logits.rows; ++row) {
    TensorView logits = args.logits;
    logits.data = logits.f32() + row * logits.stride;
    logits.rows = 1;
    MaxSum total;
    LogSumExpLeaves(logits, std::vector<std::pair<int64_t, int64_t>>{{0, experts}},
                    absl::MakeSpan(&total, 1));
    const bool sound = total.sum > 0.0f;
    std::vector<float> p(experts);
    for (int64_t e = 0; e < experts; ++e) {
      p[e] = ExpScalar(Get(logits, 0, e) - total.max);
      if (sound) p[e] = p[e] / total.sum;
    }
    std::vector<int32_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      if (std::isnan(p[a]) || std::isnan(p[b])) return !std::isnan(p[a]) && std::isnan(p[b]);
      return p[a] > p[b];
    });
    float chosen = p[order[0]];
    for (int64_t k = 1; k < args.top_k; ++k) chosen = chosen + p[order[k]];
    for (int64_t k = 0; k < args.top_k; ++k) {
      const int64_t slot = row * args.top_k + k;
      args.experts[slot] = order[k];
      args.weights[slot] = !sound           ? std::numeric_limits<float>::quiet_NaN()
                           : args.normalise ? p[order[k]] / chosen
                                            : p[order[k]];
    }
  }
}

void CombineExperts(const CombineExpertsArgs& args) {
  const ScopedFpEnvironment environment;
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t j = 0; j < args.hidden; ++j) {
      float sum = 0.0f;
      for (int64_t k = 0; k < args.top_k; ++k) {
        const int64_t slot = row * args.top_k + k;
        std::vector<float> stack;
        for (const int step : args.program) {
          if (step >= 0) {
            stack.push_back(args.parts[slot * args.num_parts + step][j]);
          } else {
            const float right = stack.back();
            stack.pop_back();
            stack.back() = stack.back() + right;
          }
        }
        sum = k == 0 ? args.weights[slot] * stack.back()
                     : std::fma(args.weights[slot], stack.back(), sum);
      }
      if (args.shared.data != nullptr) {
        const float shared = Get(args.shared, row, j);
        if (args.shared_gate_logit != nullptr) {
          const float gate = 1.0f / (1.0f + ExpScalar(-args.shared_gate_logit[row]));
          sum = std::fma(gate, shared, sum);
        } else {
          sum = sum + shared;
        }
      }
      Put(args.out, row, j, sum);
    }
  }
}

void GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) {
  const int64_t size = SizeOf(in.dtype);
  for (size_t i = 0; i < rows.size(); ++i) {
    uint8_t* to = static_cast<uint8_t*>(out.data) + i * out.stride * size;
    const uint8_t* from = static_cast<const uint8_t*>(in.data) + rows[i] * in.stride * size;
    for (int64_t j = 0; j < out.cols * size; ++j) to[j] = rows[i] < 0 ? 0 : from[j];
  }
}

void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) {
  const ScopedFpEnvironment environment;
  for (const LogitEdit& edit : edits) {
    float x = Get(logits, edit.row, edit.id) + edit.bias;
    if (edit.repetition != 1.0f) x = x > 0.0f ? x / edit.repetition : x * edit.repetition;
    x -= edit.frequency;
    x -= edit.presence;
    Put(logits, edit.row, edit.id, edit.suppressed ? kNegativeInfinity : x);
  }
}

Choice ChooseRow(TensorView logits, const ChoiceRow& row) {
  const ScopedFpEnvironment environment;
  const float t = row.temperature;
  const auto logit = [&](int32_t id) { return Get(logits, row.row, id); };
  std::vector<int32_t> order;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.cols); ++id) {
    if (logit(id) > kNegativeInfinity) order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  // An infinite logit is all that there is.
  if (t != 0.0f && !order.empty() && std::isfinite(logit(order[0]))) {
    const float best = logit(order[0]) / t;
    const auto units = [&](int32_t id) {
      const float scaled = logit(id) / t;
      const double share = scaled == best ? 1.0 : ExpScalar(scaled - best);
      return static_cast<uint64_t>(std::floor(share * 0x1p40));
    };
    size_t kept = order.size();
    if (row.top_k > 0) kept = std::min<size_t>(kept, row.top_k);
    if (row.top_p < 1.0f) {
      uint64_t total = 0;
      for (size_t i = 0; i < kept; ++i) total += units(order[i]);
      const auto wanted =
          static_cast<uint64_t>(std::ceil(double{row.top_p} * static_cast<double>(total)));
      uint64_t sum = 0;
      kept = 0;
      while (kept == 0 || sum < wanted) sum += units(order[kept++]);
    }
    if (row.min_p > 0.0f) {
      const auto stays = [&](int32_t id) { return logit(id) / t - best >= LogScalar(row.min_p); };
      // Whatever overflows, the best and what ties with it stays.
      const auto is_best = [&](int32_t id) { return logit(id) == logit(order[0]); };
      while (kept > 1 && !is_best(order[kept - 1]) && !stays(order[kept - 1])) --kept;
    }
    order.resize(kept);
  } else if (t != 0.0f) {
    const auto is_best = [&](int32_t id) { return logit(id) == logit(order[0]); };
    order.erase(std::find_if_not(order.begin(), order.end(), is_best), order.end());
  }
  Choice best{-1, kNegativeInfinity};
  for (const int32_t id : order) {
    float value = logit(id);
    if (t != 0.0f) value = value / t + Gumbel(row.key, static_cast<uint32_t>(id));
    if (value > best.value || (value == best.value && id < best.id)) best = {id, value};
  }
  return best;
}

}  // namespace phalanx::kernels::reference
