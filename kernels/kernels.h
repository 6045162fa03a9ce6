// The op set: one narrow interface on views and a stream, implemented per device.
//
// Contract of every op (rules R1 to R5 of the design): an output element depends on its own row and
// column alone, in an order fixed by the model's shape; never on how many rows or columns the call
// holds, on their position in a vector or a tile, or on the thread that computes it. All CPU paths
// (portable, AVX2, AVX-512, AMX) give the same bits as the plain reference in
// kernels/cpu/reference.h, and tests compare them with memcmp.
//
// Notation: m rows (tokens of a step), n output columns, k summed dimension, d head_dim.
// "activation dtype" is BF16 for BF16 weights and F32 for F32 and F16 weights.
//
// Ops check nothing but programmer errors; shapes are checked one layer above. An instance belongs
// to one thread at a time. On a CPU an op has finished when it returns; on a GPU it is enqueued on
// the instance's stream.
#ifndef PHALANX_KERNELS_KERNELS_H_
#define PHALANX_KERNELS_KERNELS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace phalanx::kernels {

// K is padded to multiples of this, leaf by leaf (one TDPBF16PS covers 32 values of k).
inline constexpr int64_t kDotGroup = 32;
// Tokens in one KV block. The P.V product of one block is one dot group.
inline constexpr int64_t kBlockTokens = 32;
// The widest head that ops take.
inline constexpr int64_t kMaxHeadDim = 1024;

constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
// The dtype in which a matmul with weights of `weight` takes its left operand.
constexpr DType ActivationType(DType weight) {
  return weight == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

// ---------------------------------------------------------------------------------------------
// Matmul

// The scales of a matrix of FP8 codes: element [i, j] is worth its code times data[i / block_rows *
// stride + j / block_columns].
struct CodeScales {
  const float* data = nullptr;  // each 0 or in [2^-90, 2^7]; BF16's, but of kF8E4M3Fine
  int64_t block_rows = 1;
  int64_t block_columns = 1;  // a multiple of kDotGroup, or all columns
  int64_t stride = 0;
};

// Rows of a source matrix in the checkpoint, [rows, stride] with the wanted columns inside.
struct RowBlock {
  const void* data = nullptr;  // row 0, column 0 of the source
  int64_t rows = 0;
  int64_t stride = 0;  // elements from one row to the next
  // Where the source holds codes of F8_E4M3 in place of values: their scales, and which row of
  // theirs row 0 is.
  CodeScales scales = {};
  int64_t first_row = 0;
};

// Columns [begin, end) of the source: one leaf of K. May be empty.
struct KLeaf {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t padded() const { return RoundUp(end - begin, kDotGroup); }
};

// How a weight's values are kept.
enum class WeightFormat : uint8_t {
  kPlain,  // as they are
  // Of BF16: as kernels/fp8_weights.h says, a scale for each row and dot group of a leaf, BF16 or
  // (Fine) F32.
  kF8E4M3,
  kF8E4M3Fine,
};
constexpr bool IsFp8(WeightFormat format) { return format != WeightFormat::kPlain; }

// What to pack: y[m, n] = x[m, k] * W^T, W of [n, k] stacked from row blocks, k cut into leaves.
struct WeightSpec {
  DType dtype = DType::kBF16;
  std::vector<RowBlock> rows;  // stacked in order: n = sum of rows; all of codes or none
  std::vector<KLeaf> leaves;   // at least one; the padded leaves stand side by side in x
  // One postfix program per output part over local leaf indices: i >= 0 pushes leaf i's sum, -1
  // adds the two topmost (left + right). A K that is never sharded has one leaf and parts {{0}}.
  // Every leaf appears exactly once over all parts.
  std::vector<std::vector<int>> parts;
  // Of BF16 another than plain, and of codes always. Leaves of codes begin at whole dot groups of
  // the source where scales change between columns.
  WeightFormat format = WeightFormat::kPlain;
};

// A weight in the device's own layout. Immutable.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  DType dtype() const { return dtype_; }
  int64_t n() const { return n_; }
  // Columns that x must have: the sum of the padded leaves. Pad columns of x must be +0.
  int64_t k() const { return k_; }
  int num_parts() const { return num_parts_; }
  // Bytes held, and bytes that one pass over the weight reads.
  virtual int64_t bytes() const = 0;

 protected:
  DType dtype_ = DType::kBF16;
  int64_t n_ = 0;
  int64_t k_ = 0;
  int num_parts_ = 1;
};

// ---------------------------------------------------------------------------------------------
// KV cache

// How keys and values are stored.
enum class KvFormat : uint8_t {
  kPlain,   // in KvShape::dtype
  kF8E4M3,  // as kernels/fp8.h says; one scale for each token, KV head, and key or value
};

// Shape of one layer's cache on this rank. A block holds kBlockTokens tokens of every local KV
// head, keys and values, with their scales; its inner layout belongs to the device's kernels.
struct KvShape {
  DType dtype = DType::kBF16;  // BF16, F16 or F32; equals the checkpoint's dtype
  int64_t num_kv_heads = 0;    // local heads
  int64_t head_dim = 0;
  KvFormat format = KvFormat::kPlain;

  // What attention reads keys and values as. Over a cache of FP8 it is, bit for bit, attention over
  // a plain cache of this dtype that holds the same values.
  constexpr DType read_type() const {
    return format == KvFormat::kPlain ? dtype : ActivationType(dtype);
  }
};

// One layer's storage: `num_blocks` blocks of Kernels::KvBlockBytes(shape) bytes each.
struct KvView {
  KvShape shape;
  void* data = nullptr;
  int64_t num_blocks = 0;
};

// Writes the step's keys and values to the cache and makes the queries ready.
struct QkvArgs {
  TensorView qkv;  // [m, (num_heads + 2 num_kv_heads) * d] F32: q heads, k heads, v heads
  const float* bias = nullptr;    // [(num_heads + 2 num_kv_heads) * d] or null
  const float* q_norm = nullptr;  // [d] or null: RMSNorm over each query head (Qwen3)
  const float* k_norm = nullptr;  // [d] or null
  float norm_eps = 0;
  int64_t num_heads = 0;
  // Rotary tables [rows, rotary_dim / 2] in F32; the "rotate half" pairing of Hugging Face:
  // x[i] with x[i + rotary_dim / 2]. Attention factors (YaRN) are multiplied into the tables.
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t rotary_dim = 0;               // = d for every family so far; even
  absl::Span<const int32_t> positions;  // [m] row of the tables for each row
  absl::Span<const int32_t> slots;      // [m] physical block * kBlockTokens + offset, or -1: this
                                        // rank does not store the row's keys and values
  KvView cache;
  TensorView q;  // out: [m, num_heads * RoundUp(d, 32)] activation dtype, each head's tail zeroed
};

// One sequence's rows in an attention call.
struct AttentionSequence {
  int64_t row_begin = 0;                 // first row of q
  int64_t row_count = 0;                 // rows, at positions start .. start + row_count - 1
  int64_t start = 0;                     // absolute position of the first row
  const int32_t* block_table = nullptr;  // [ceil((start + row_count) / 32)] physical block of each
                                         // absolute block; -1 where another rank holds it
};

struct AttentionArgs {
  TensorView q;  // as QkvArgs.q
  int64_t num_heads = 0;
  // Query head h reads local KV head kv_head_of[h].
  absl::Span<const int32_t> kv_head_of;  // [num_heads]
  float scale = 0;                       // positive
  int64_t window = 0;                    // a query at p sees positions > p - window; 0: no window
  KvView cache;
  absl::Span<const AttentionSequence> sequences;
  // R3: absolute block b belongs to stripe b % num_stripes.
  int num_stripes = 8;
  int stripe_begin = 0;  // stripes that this rank attends over
  int stripe_end = 8;
  // Partials per query head that MergeAttention takes: 0 means one per stripe; less after
  // MergePartials. Attention and AttentionPartials ignore it.
  int num_partials = 0;
  // Postfix program (as WeightSpec::parts) over stripes 0 .. num_stripes - 1, or over partials
  // 0 .. num_partials - 1 where that is set.
  absl::Span<const int> stripe_program;
  // Where head h's output goes: column out_column[h] of `out`, d values wide.
  absl::Span<const int32_t> out_column;
  TensorView out;  // [m, k] activation dtype; columns that belong to no head are set to +0
};

// (max, sum of exp, weighted values) of one query head over one stripe, before normalisation.
// Laid out as partials[row][head][stripe - stripe_begin][2 + d] in F32: max, sum, then d values.
// An empty stripe is (-inf, 0, 0...).

// ---------------------------------------------------------------------------------------------
// Mixture of experts

// The most operands of AddParts.
inline constexpr int kMaxAddends = 64;

// The widest router that the ops take.
inline constexpr int64_t kMaxExperts = 4096;

// Which experts a token goes to, and with what weights (rule R4 of the design; Fedus et al.,
// arXiv:2101.03961; Jiang et al., arXiv:2401.04088).
struct RouterArgs {
  TensorView logits;            // [m, E] F32, E at most kMaxExperts
  int64_t top_k = 0;            // 1 .. E
  bool normalise = false;       // divide the chosen probabilities by their sum
  absl::Span<int32_t> experts;  // out, on the host: [m * top_k] expert ids, best first
  absl::Span<float> weights;    // out, on the host: [m * top_k]
};

// Finishes each token's experts: the sum over its experts in the router's order (R4).
struct CombineExpertsArgs {
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t top_k = 0;               // at least 1
  const float* weights = nullptr;  // [rows * top_k], as RouterArgs.weights
  // Part p of slot (row, k)'s output, `hidden` floats, is at parts[(row * top_k + k) * num_parts +
  // p].
  absl::Span<const float* const> parts;  // [rows * top_k * num_parts]
  int num_parts = 1;                     // 1 .. 64
  absl::Span<const int> program;         // postfix (as WeightSpec::parts) over 0 .. num_parts - 1
  TensorView shared;                     // [rows, hidden] F32: the shared expert; data null: none
  const float* shared_gate_logit = nullptr;  // [rows] or null: no gate
  TensorView out;                            // [rows, hidden] F32; may be `shared` itself
};

// One expert's rows in a grouped matmul.
struct ExpertRows {
  const PackedWeight* w = nullptr;
  int64_t begin = 0;  // first row of x and of the outputs
  int64_t count = 0;  // rows; 0: the expert got no token
};

// One expert's weights.
struct ExpertWeights {
  const PackedWeight* gate_up = nullptr;  // [2 channels, k]: gate, then up
  const PackedWeight* down = nullptr;     // [hidden, channels]
};

// A layer's experts, of one shape, dtype and number of parts, as a device wants them at hand.
// Immutable; the weights are borrowed.
class ExpertSet {
 public:
  explicit ExpertSet(std::vector<ExpertWeights> weights) : weights_(std::move(weights)) {}
  virtual ~ExpertSet() = default;
  absl::Span<const ExpertWeights> weights() const { return weights_; }

 private:
  const std::vector<ExpertWeights> weights_;
};

// Where slots, the choices (row, k) of a step's rows, are worked on side by side, by expert. Rows
// for at least as many slots in each; what they hold afterwards is undefined.
struct ExpertRoom {
  TensorView x;                        // [slots, gate_up.k()] activation dtype
  TensorView gate_up;                  // [slots, 2 channels] F32
  TensorView activated;                // [slots, down.k()] activation dtype
  absl::Span<const TensorView> parts;  // of `down`: [slots, hidden] F32 each, of one stride
};

// A layer of experts on a rank that holds all of them: from the router's logits to the sum.
struct ExpertsArgs {
  TensorView logits;                   // as RouterArgs, [m, E]
  int64_t top_k = 0;                   // 1 .. E
  bool normalise = false;              // as RouterArgs
  TensorView x;                        // [m, gate_up.k()] activation dtype
  const ExpertSet* experts = nullptr;  // [E]
  ExpertRoom room;                     // for m * top_k slots
  absl::Span<const int> program;       // over the parts of `down`, as CombineExpertsArgs
  TensorView shared;                   // as CombineExpertsArgs
  const float* shared_gate_logit = nullptr;
  TensorView out;             // [m, hidden] F32; may be `shared` itself
  int64_t* tokens = nullptr;  // [E] on the device: each is raised by its expert's slots
};

// See Kernels::Mark. Outlived by the instance that made it.
class Marker {
 public:
  virtual ~Marker() = default;
  // Whether everything enqueued before it has finished. From any thread; never waits.
  virtual bool Passed() const { return true; }
  // Returns once it has. From any thread.
  virtual void Wait() const {}
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  // "cpu avx2, 2 threads", for logs and status.
  virtual std::string Describe() const = 0;

  // Memory on the device, zeroed, aligned to 64 bytes; RESOURCE_EXHAUSTED names the bytes.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  virtual void CopyIn(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyOut(void* host, const void* device, int64_t bytes) = 0;
  // As CopyOut to memory of AllocateHost, without waiting: it is there when a later Mark has
  // passed.
  virtual void CopyOutLater(void* host, const void* device, int64_t bytes) {
    CopyOut(host, device, bytes);
  }
  // Returns when everything enqueued so far has finished.
  virtual void Synchronize() = 0;
  // The widest head that attention over a cache of this type takes here.
  virtual int64_t max_head_dim(DType /*cache*/) const { return kMaxHeadDim; }
  // Whether the host may read and write memory of Allocate, once Synchronize has returned.
  virtual bool host_accessible() const { return true; }
  // Bytes that one Allocate could still give. UNIMPLEMENTED where the device's memory is the
  // host's.
  virtual absl::StatusOr<int64_t> FreeBytes() const {
    return absl::UnimplementedError("the device's memory is the host's");
  }

  // Memory of the host from which and to which CopyIn and CopyOut are fast: pinned, on a GPU.
  // Aligned to 64 bytes; what it holds is undefined. RESOURCE_EXHAUSTED names the bytes.
  virtual absl::StatusOr<Buffer> AllocateHost(int64_t bytes);
  // Which piece of hardware this is: equal for two instances, in whatever processes, only if they
  // share one device. Empty where the device is the host.
  virtual std::string DeviceId() const { return ""; }
  // The cudaStream_t on which ops are enqueued, with nothing put off, for libraries that enqueue
  // there themselves: to be asked for each time. Null where ops have finished when they return.
  virtual void* native_stream() { return nullptr; }
  // A place in the order of what is enqueued, or null while a graph is being captured.
  virtual std::unique_ptr<Marker> Mark() { return std::make_unique<Marker>(); }
  // The ops of one step of `rows` rows follow, until EndStep. A device may put off what they
  // enqueue until the step ends or somebody needs a result, and takes it that block tables named by
  // attention calls stay as they are. CopyIn and the ops' other host arrays may go when the call
  // returns, as ever. Without the two every op stands for itself.
  virtual void BeginStep(int64_t /*rows*/) {}
  virtual void EndStep() {}
  // Enqueues what was put off.
  virtual void Flush() {}
  // Called once the largest step has run, before the rest of the memory is given away: from here on
  // ops make do with the scratch memory that they have.
  virtual void FreezeScratch() {}

  // memory[0:bytes] = 0.
  virtual void Zero(void* memory, int64_t bytes) = 0;
  // out[i, j] = in[i, j] for i < out.rows, j < out.cols; one dtype. They don't overlap.
  virtual void CopyRows(TensorView in, TensorView out) = 0;
  // out[i] = the postfix program (as WeightSpec::parts) over operands[.][i] in F32 additions, i <
  // count: how ranks' parts of a sum are finished. At most kMaxAddends operands; `out` may be one.
  virtual void AddParts(absl::Span<const float* const> operands, absl::Span<const int> program,
                        float* out, int64_t count) = 0;
  // data[i] |= other[i], i < count.
  virtual void OrInto(uint32_t* data, const uint32_t* other, int64_t count) = 0;

  // Packs a weight; rows are read once, in order. A product with a weight of FP8 is, bit for bit,
  // the product with a plain one of the values that are read back; a CPU keeps it as just that.
  // INVALID_ARGUMENT names a value that can't be kept (NaN, infinite, for FP8 too large) by row and
  // column.
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> Pack(const WeightSpec& spec) = 0;
  // Bytes of `spec` when packed. The source's data is not read.
  virtual int64_t PackedBytes(const WeightSpec& spec) const = 0;
  // As Pack, into `memory`: PackedBytes(spec) bytes, aligned to 64.
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackInto(const WeightSpec& spec,
                                                                 Buffer memory) = 0;
  // A weight over `memory` that PackInto has filled for an equal spec, in this process or another
  // one of this build and path. Nothing is read; the memory may be read-only.
  virtual std::unique_ptr<PackedWeight> WrapPacked(const WeightSpec& spec, Buffer memory) const = 0;
  // Backs memory of Allocate with pages and leaves what it holds: memory that isn't there shows
  // now. May run on a thread of its own while ops use the memory. RESOURCE_EXHAUSTED.
  virtual absl::Status Back(void* memory, int64_t bytes) const = 0;

  // outs[p][m, n] (F32) = part p of x * W^T. x: [m, w.k()] in ActivationType(w.dtype()).
  // BF16: per dot group of 32, an even and an odd FMA chain from +0 in rising k, even + odd, then
  // added to the leaf's accumulator (from +0): the order of TDPBF16PS (Intel SDM vol. 2). F32 and
  // F16: one FMA chain in rising k from +0 per leaf. Leaves are added by the part's program.
  virtual void MatMul(TensorView x, const PackedWeight& w, absl::Span<const TensorView> outs) = 0;

  // out[i, :] (F32) = table[ids[i] - first_id, :], widened; +0 where ids[i] is outside
  // [first_id, first_id + table.rows). With `chosen` (on the device) an id of -1 - s stands for
  // what was chosen there, chosen[s].id, or for 0 where that is -1.
  virtual void GatherRows(TensorView table, absl::Span<const int32_t> ids, int64_t first_id,
                          const Choice* chosen, TensorView out) = 0;

  // x[m, n] += delta[m, n] + bias[n] (bias null: none), computed as x + (delta + bias).
  virtual void AddResidual(TensorView x, TensorView delta, const float* bias) = 0;

  // out (activation dtype or F32) = x / sqrt(mean(x^2) + eps) * weight. x: F32 [m, n]. The sum of
  // squares runs in 16 lanes (lane j takes columns j, j + 16, ...; FMA), lanes are added by halving
  // (j + j+8, then +4, +2, +1); the scale is 1 / sqrt in IEEE division and square root.
  // (Zhang and Sennrich, arXiv:1910.07467.)
  virtual void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) = 0;

  // AddResidual then RmsNorm, fused.
  virtual void AddResidualRmsNorm(TensorView x, TensorView delta, const float* bias,
                                  const float* weight, float eps, TensorView out) {
    AddResidual(x, delta, bias);
    RmsNorm(x, weight, eps, out);
  }

  // out[m, j] = silu(gate[m, j]) * up[m, j] with gate = gate_up[:, 0:n], up = gate_up[:, n:2n], for
  // j < n; columns n .. out.cols - 1 are set to +0. `bias` [2n] or null is added first.
  virtual void SiluMul(TensorView gate_up, const float* bias, int64_t n, TensorView out) = 0;

  // MatMul with a weight of one part and 2n columns, then SiluMul of its output, fused. `gate_up`:
  // F32 [m, 2n] of room for what is between the two; what it holds afterwards is not said. `out`
  // doesn't overlap x.
  virtual void MatMulSiluMul(TensorView x, const PackedWeight& w, TensorView gate_up,
                             const float* bias, int64_t n, TensorView out) {
    MatMul(x, w, {&gate_up, 1});
    SiluMul(gate_up, bias, n, out);
  }

  virtual int64_t KvBlockBytes(const KvShape& shape) const = 0;
  // Bias, q/k norm, rotary embedding, then the cache write. Pad columns of q are set to +0.
  virtual void QkvToCache(const QkvArgs& args) = 0;
  // Copies whole blocks inside one layer's cache: blocks[i] = {source, destination}.
  virtual void CopyBlocks(const KvView& cache,
                          absl::Span<const std::pair<int32_t, int32_t>> blocks) = 0;

  // Causal paged attention over all stripes [0, num_stripes), which this rank must hold: partials
  // then merge, fused (a profile that doesn't promise R3 may do without them). (Running softmax:
  // Milakov and Gimelshein, arXiv:1805.02867.)
  virtual void Attention(const AttentionArgs& args) = 0;
  // The partials of stripes [stripe_begin, stripe_end) only; `args.out` is unused.
  virtual void AttentionPartials(const AttentionArgs& args, float* partials) = 0;
  // Merges partials of all stripes, [m][num_heads][num_stripes][2 + d], into args.out. With
  // args.num_partials set, [m][num_heads][num_partials][2 + d].
  virtual void MergeAttention(const AttentionArgs& args, const float* partials) = 0;
  // Merges whole subtrees of the stripes' tree, so that fewer partials travel. partials:
  // [count][num_in][2 + d], count = m * num_heads, num_in at most 64; out: [count][programs.size()]
  // [2 + d], part p merged by the postfix program programs[p] over the num_in inputs and not
  // normalised. A node merges as in MergeAttention, so that merging in two steps gives the bits of
  // one. `out` and `partials` don't overlap.
  virtual void MergePartials(const float* partials, int64_t count, int64_t d, int num_in,
                             absl::Span<const std::vector<int>> programs, float* out) = 0;

  // Per row: p = exp(x - max) / sum, max and sum over all E logits in 16 lanes over rising columns,
  // lanes taken together by halving (as LogSumExpLeaves, one leaf); then the top_k largest p in
  // falling order, ties to the lower id. weights: p, or with `normalise` p divided by the sum of
  // the chosen p, added in k order. A NaN logit, or one of +inf, loses to every number; ids are
  // always distinct and in [0, E), and all weights of such a row are the quiet NaN 0x7fc00000, so
  // that the fault shows in the output; so are those of a row of -inf.
  virtual void RouteTopK(const RouterArgs& args) = 0;

  // out[row] = w_0 y_0, then fma(w_k, y_k, out) for k = 1 .. top_k - 1, then the shared expert:
  // fma(1 / (1 + exp(-shared_gate_logit[row])), shared, out), or out + shared without a gate.
  // y_k: the program over slot (row, k)'s parts in F32 additions.
  virtual void CombineExperts(const CombineExpertsArgs& args) = 0;

  // Copies rows: out[i, 0:out.cols] = in[rows[i], 0:out.cols]. One dtype. out.cols is at most
  // in.stride, so that pad columns can come along. rows[i] = -1: row i becomes +0.
  virtual void GatherTokens(TensorView in, absl::Span<const int32_t> rows, TensorView out) = 0;

  // For every group, rows [begin, begin + count) of x times its weight into the same rows of
  // outs[p]: MatMul on each group's rows, bit for bit. The weights have one shape, dtype and number
  // of parts; groups share no row. Rows in no group are not touched.
  virtual void GroupedMatMul(TensorView x, absl::Span<const ExpertRows> groups,
                             absl::Span<const TensorView> outs) = 0;

  // The weights as RunExperts takes them. RESOURCE_EXHAUSTED names the bytes.
  virtual absl::StatusOr<std::unique_ptr<ExpertSet>> MakeExpertSet(
      std::vector<ExpertWeights> weights);
  // RouteTopK, then each slot's row of x through its expert's gate_up, SiluMul and down, then
  // CombineExperts: their bits. Where ops are enqueued nothing of it waits for the host.
  virtual void RunExperts(const ExpertsArgs& args);

  // out[row * leaves.size() + i] = (max, sum of exp(x - max)) over columns leaves[i] of row.
  // Inside a leaf: 16 lanes over rising columns, lanes added by halving.
  virtual void LogSumExpLeaves(TensorView logits,
                               absl::Span<const std::pair<int64_t, int64_t>> leaves,
                               absl::Span<MaxSum> out) = 0;

  // Each edit changes logits[row, id] in place. No id of a row is edited twice.
  virtual void EditLogits(TensorView logits, absl::Span<const LogitEdit> edits) = 0;
  // out[i], on the device: what rows[i] chooses; id -1 (value -inf) where its row has no number
  // above -inf. A row may be named many times.
  virtual void ChooseRows(TensorView logits, absl::Span<const ChoiceRow> rows, Choice* out) = 0;
};

enum class CpuPath { kPortable, kAvx2, kAvx512, kAmx };
std::string_view Name(CpuPath path);  // "portable", "avx2", "avx512", "amx"
// The paths that this machine has, slowest first; "portable" is always there.
std::vector<CpuPath> AvailableCpuPaths();

struct CpuOptions {
  int threads = 1;
  CpuPath path = AvailableCpuPaths().back();
};
// INVALID_ARGUMENT when the machine lacks the path or threads < 1.
absl::StatusOr<std::unique_ptr<Kernels>> CreateCpuKernels(const CpuOptions& options);

// Runs every op on fixed inputs and returns a digest of all output bits (R6): ranks whose digests
// differ must not work together. Hexadecimal, 32 digits.
std::string KnownAnswerDigest(Kernels& kernels, DType weight_dtype,
                              KvFormat kv_format = KvFormat::kPlain,
                              WeightFormat weight_format = WeightFormat::kPlain);

}  // namespace phalanx::kernels

#endif  // PHALANX_KERNELS_KERNELS_H_
