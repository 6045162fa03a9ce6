#include "launcher/random_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/checkpoint/families.h"
#include "runtime/checkpoint/model_config.h"

namespace phalanx::launcher {
namespace {

using checkpoint::Role;

constexpr uint16_t kOne = 0x3F80;  // 1.0 in BF16

struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  bool is_norm = false;
  bool is_bias = false;

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

bool IsNorm(Role role) {
  switch (role) {
    case Role::kFinalNorm:
    case Role::kAttnNorm:
    case Role::kMlpNorm:
    case Role::kQNorm:
    case Role::kKNorm:
      return true;
    default:
      return false;
  }
}

std::vector<Tensor> Tensors(const checkpoint::ModelConfig& config) {
  std::vector<Tensor> out;
  for (const Role role : checkpoint::Roles(config)) {
    const checkpoint::Shape expected = checkpoint::ExpectedShape(config, role);
    const int64_t layers = checkpoint::IsPerLayer(role) ? config.num_layers : 1;
    const int64_t experts = checkpoint::IsPerExpert(role) ? config.num_experts : 1;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (!checkpoint::HasRole(config, role, layer)) continue;
      for (int64_t expert = 0; expert < experts; ++expert) {
        Tensor tensor;
        tensor.name = checkpoint::TensorName(config, role, layer, expert);
        tensor.shape.assign(expected.begin(), expected.end());
        tensor.is_norm = IsNorm(role);
        tensor.is_bias = checkpoint::IsVector(role) && !tensor.is_norm;
        out.push_back(std::move(tensor));
      }
    }
  }
  return out;
}

}  // namespace

absl::Status WriteRandomCheckpoint(const std::string& directory, const std::string& config,
                                   uint32_t seed) {
  const std::string config_path = directory + "/config.json";
  const absl::StatusOr<checkpoint::ModelConfig> parsed =
      checkpoint::ParseModelConfig(config, config_path);
  if (!parsed.ok()) return parsed.status();
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const auto unwritable = [](const std::string& path) {
    return absl::UnavailableError(absl::StrCat(path, ": can't be written; is the disk full?"));
  };
  std::ofstream config_file(config_path, std::ios::binary);
  config_file << config;
  config_file.close();
  if (!config_file.good()) return unwritable(config_path);

  const std::vector<Tensor> tensors = Tensors(*parsed);
  nlohmann::json header;
  int64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t bytes = tensor.elements() * 2;
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::string path = directory + "/model.safetensors";
  std::ofstream out(path, std::ios::binary);
  const uint64_t length = text.size();
  for (int i = 0; i < 8; ++i) out.put(static_cast<char>(length >> (8 * i)));
  out << text;
  std::mt19937 random(seed);
  std::vector<uint16_t> values;
  for (const Tensor& tensor : tensors) {
    values.assign(tensor.elements(), tensor.is_norm ? kOne : 0);
    if (!tensor.is_norm && !tensor.is_bias) {
      // Two values of each draw: sign and mantissa of 7 bits each, exponents 2^-9 to 2^-6.
      for (size_t i = 0; i < values.size(); i += 2) {
        const uint32_t bits = random();
        const auto value = [](uint32_t b) {
          return static_cast<uint16_t>((b & 0x807F) | (118 + (b >> 7 & 3)) << 7);
        };
        values[i] = value(bits);
        if (i + 1 < values.size()) values[i + 1] = value(bits >> 16);
      }
    }
    for (uint16_t& value : values) {
      // Little endian on any machine.
      const unsigned char bytes[2] = {static_cast<unsigned char>(value & 0xFF),
                                      static_cast<unsigned char>(value >> 8)};
      std::copy(bytes, bytes + 2, reinterpret_cast<unsigned char*>(&value));
    }
    out.write(reinterpret_cast<const char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(uint16_t)));
  }
  out.close();
  return out.good() ? absl::OkStatus() : unwritable(path);
}

}  // namespace phalanx::launcher
