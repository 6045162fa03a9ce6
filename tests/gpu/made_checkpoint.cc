#include "tests/gpu/made_checkpoint.h"

#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/families.h"

namespace phalanx::timing {
namespace {

using checkpoint::ModelConfig;
using checkpoint::Role;
using checkpoint::Shape;

// Values of the pattern: the largest prime below 2^22.
constexpr int64_t kPatternValues = 4194301;

int64_t Elements(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

struct Tensor {
  Role role;
  std::string name;
  Shape shape;
};

// What the files of `config` hold.
std::vector<Tensor> TensorsOf(const ModelConfig& config) {
  std::vector<Tensor> tensors;
  for (const Role role : checkpoint::Roles(config)) {
    const int64_t layers = checkpoint::IsPerLayer(role) ? config.num_layers : 1;
    const int64_t experts = checkpoint::IsPerExpert(role) ? config.num_experts : 1;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (!checkpoint::HasRole(config, role, layer)) continue;
      for (int64_t expert = 0; expert < experts; ++expert) {
        tensors.push_back({role, checkpoint::TensorName(config, role, layer, expert),
                           checkpoint::ExpectedShape(config, role)});
      }
    }
  }
  return tensors;
}

bool IsNorm(Role role) {
  return role == Role::kFinalNorm || role == Role::kAttnNorm || role == Role::kMlpNorm ||
         role == Role::kQNorm || role == Role::kKNorm;
}

// Of one dtype, as the files hold it.
struct Values {
  std::vector<char> pattern;
  std::vector<char> ones;
};

template <typename Bits>
Values MakeValues(int mantissa_bits, int64_t most_ones) {
  const auto of = [&](Bits sign, Bits exponent, Bits mantissa) {
    return static_cast<Bits>(sign << (8 * sizeof(Bits) - 1) | exponent << mantissa_bits | mantissa);
  };
  std::vector<Bits> pattern(kPatternValues);
  uint64_t state = 88172645463325252u;
  for (Bits& value : pattern) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = of(state >> 63, 127 - 8, state >> 20 & ((Bits{1} << mantissa_bits) - 1));
  }
  const std::vector<Bits> ones(most_ones, of(0, 127, 0));
  Values out;
  out.pattern.resize(pattern.size() * sizeof(Bits));
  std::memcpy(out.pattern.data(), pattern.data(), out.pattern.size());
  out.ones.resize(ones.size() * sizeof(Bits));
  std::memcpy(out.ones.data(), ones.data(), out.ones.size());
  return out;
}

absl::Status WriteModel(const std::vector<Tensor>& tensors, int64_t value_bytes,
                        const std::string& path) {
  nlohmann::json header;
  int64_t end = 0;
  int64_t widest_norm = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t begin = end;
    end += Elements(tensor.shape) * value_bytes;
    header[tensor.name] = {
        {"dtype", value_bytes == 2 ? "BF16" : "F32"},
        {"shape", std::vector<int64_t>(tensor.shape.begin(), tensor.shape.end())},
        {"data_offsets", {begin, end}}};
    if (IsNorm(tensor.role)) widest_norm = std::max(widest_norm, Elements(tensor.shape));
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::ofstream out(path, std::ios::binary);
  for (int i = 0; i < 8; ++i) out.put(static_cast<char>(text.size() >> (8 * i)));
  out << text;
  const Values values = value_bytes == 2 ? MakeValues<uint16_t>(7, widest_norm)
                                         : MakeValues<uint32_t>(23, widest_norm);
  size_t at = 0;  // in the pattern
  for (const Tensor& tensor : tensors) {
    auto bytes = static_cast<size_t>(Elements(tensor.shape) * value_bytes);
    if (IsNorm(tensor.role)) {
      out.write(values.ones.data(), static_cast<std::streamsize>(bytes));
      continue;
    }
    while (bytes > 0 && out.good()) {
      const size_t piece = std::min(bytes, values.pattern.size() - at);
      out.write(values.pattern.data() + at, static_cast<std::streamsize>(piece));
      at = (at + piece) % values.pattern.size();
      bytes -= piece;
    }
  }
  out.close();
  if (!out) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, " could not be written: is there room for ", end, " bytes?"));
  }
  return absl::OkStatus();
}

// Sum over linear weights of elements that each of `rows` rows is multiplied by; `experts`: of how
// many experts. The embedding is one only where it is the head.
int64_t LinearElements(const ModelConfig& config, int64_t experts) {
  int64_t sum = 0;
  for (const Role role : checkpoint::Roles(config)) {
    if (checkpoint::IsVector(role)) continue;
    if (role == Role::kEmbedding && !config.tie_word_embeddings) continue;
    if (role == Role::kLmHead && config.tie_word_embeddings) continue;
    const int64_t layers = checkpoint::IsPerLayer(role) ? config.num_layers : 1;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (!checkpoint::HasRole(config, role, layer)) continue;
      sum += Elements(checkpoint::ExpectedShape(config, role)) *
             (checkpoint::IsPerExpert(role) ? experts : 1);
    }
  }
  return sum;
}

constexpr NamedShape kShapes[] = {
    {"llama-3.2-1b", R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
  "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
  "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
  "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": true,
  "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
})"},
    {"llama-3.1-8b", R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
  "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
  "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
  "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
  "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
})"},
    {"qwen1.5-moe-a2.7b", R"({
  "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "torch_dtype": "bfloat16",
  "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
  "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936,
  "max_position_embeddings": 8448, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
  "rope_theta": 1000000.0, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": false,
  "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1
})"},
};

}  // namespace

absl::Span<const NamedShape> TimedShapes() { return kShapes; }

absl::StatusOr<std::unique_ptr<MadeCheckpoint>> MadeCheckpoint::Make(absl::string_view config,
                                                                     const std::string& parent) {
  const absl::StatusOr<ModelConfig> parsed = checkpoint::ParseModelConfig(config, "config.json");
  if (!parsed.ok()) return parsed.status();
  const std::string& dtype = parsed->declared_dtype;
  if (dtype != "bfloat16" && dtype != "float32") {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: dtype is \"", dtype, "\"; expected bfloat16 or float32"));
  }
  const int64_t value_bytes = dtype == "bfloat16" ? 2 : 4;
  const int64_t bytes = NumParameters(*parsed) * value_bytes;
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(parent, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat(parent, ": ", error.message()));
  if (space.available < static_cast<uintmax_t>(bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a checkpoint of this shape takes ", bytes, " bytes, and ", parent, " has ",
                     space.available, "; choose another folder with --dir"));
  }
  std::string folder = parent + "/phalanx_checkpoint_XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no folder can be made in ", parent));
  }
  std::unique_ptr<MadeCheckpoint> made(new MadeCheckpoint(folder));
  std::ofstream(folder + "/config.json") << config;
  if (absl::Status status =
          WriteModel(TensorsOf(*parsed), value_bytes, folder + "/model.safetensors");
      !status.ok()) {
    return status;
  }
  return made;
}

MadeCheckpoint::~MadeCheckpoint() {
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

int64_t NumParameters(const ModelConfig& config) {
  int64_t sum = 0;
  for (const Tensor& tensor : TensorsOf(config)) sum += Elements(tensor.shape);
  return sum;
}

std::optional<int64_t> WeightsRead(const ModelConfig& config, int64_t rows) {
  if (config.num_experts > 0 && rows > 1) return std::nullopt;
  return LinearElements(config, config.experts_per_token);
}

int64_t StepFlops(const ModelConfig& config, int64_t rows, int64_t past) {
  const int64_t head = config.vocab_size * config.hidden_size;
  const int64_t of_a_row = LinearElements(config, config.experts_per_token) - head;
  const int64_t seen = rows * past + rows * (rows + 1) / 2;
  return 2 * (rows * of_a_row + head) + 4 * config.num_layers * config.q_size() * seen;
}

}  // namespace phalanx::timing
