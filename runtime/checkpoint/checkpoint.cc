#include "runtime/checkpoint/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/numeric/int128.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/checkpoint/elements.h"
#include "runtime/checkpoint/json_file.h"
#include "runtime/checkpoint/quantization.h"

namespace phalanx::checkpoint {
namespace {

using kernels::DType;
using nlohmann::json;

constexpr absl::string_view kSingleFile = "model.safetensors";
constexpr absl::string_view kIndexFile = "model.safetensors.index.json";

// A symbolic link to nothing exists: opening it then says what is wrong.
bool Exists(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0;
}

// A shard's name must be a plain file name in the model's directory.
absl::Status CheckShardName(const std::string& name, const std::string& index_path) {
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of("/\\\0", 0, 3) == std::string::npos && name.size() <= 255;
  if (plain && absl::EndsWith(name, ".safetensors")) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(index_path, ": weight_map names the file \"", Printable(name),
                   "\", expected a plain name ending in .safetensors, without directories"));
}

// FNV-1a, 128 bits (http://www.isthe.com/chongo/tech/comp/fnv/).
class Fnv1a {
 public:
  void Add(absl::string_view bytes) {
    for (const char c : bytes) {
      state_ ^= static_cast<uint8_t>(c);
      state_ *= absl::MakeUint128(0x0000000001000000ULL, 0x000000000000013BULL);
    }
  }
  // Length first, so that a boundary that moves changes the digest.
  void AddPart(absl::string_view bytes) {
    Add(absl::StrCat(bytes.size(), ":"));
    Add(bytes);
  }
  std::string Hex() const {
    return absl::StrFormat("%016x%016x", absl::Uint128High64(state_), absl::Uint128Low64(state_));
  }

 private:
  absl::uint128 state_ = absl::MakeUint128(0x6c62272e07bb0142ULL, 0x62b821756295c58dULL);
};

// For a message about the shape of `role`: what of it the configuration doesn't say.
std::string WhatWasAssumed(const ModelConfig& config, Role role) {
  ModelConfig other = config;
  other.head_dim += 2;
  other.num_kv_heads += 1;
  const bool of_heads = ExpectedShape(other, role) != ExpectedShape(config, role);
  if (!of_heads || config.assumed.empty()) return "";
  return absl::StrCat(" (it doesn't say, so this was taken: ", absl::StrJoin(config.assumed, ", "),
                      ")");
}

}  // namespace

int64_t TensorRef::elements() const { return NumElements(shape); }

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  auto config = LoadModelConfig(directory, &checkpoint->texts_);
  if (!config.ok()) return config.status();
  checkpoint->directory_ = directory;
  checkpoint->config_ = std::move(*config);
  absl::Status status = checkpoint->OpenFiles();
  if (status.ok()) status = checkpoint->DetermineWeightDtype();
  if (status.ok()) status = checkpoint->Validate();
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::OpenFiles() {
  const std::string single = absl::StrCat(directory_, "/", kSingleFile);
  const std::string index = absl::StrCat(directory_, "/", kIndexFile);
  if (!Exists(single)) {
    if (Exists(index)) return OpenIndexed(index);
    for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      if (Exists(absl::StrCat(directory_, "/", pickle))) {
        return absl::UnimplementedError(
            absl::StrCat(directory_, ": has ", pickle, " but no ", kSingleFile,
                         "; pickled weights are not read, save the model as safetensors"));
      }
    }
    return absl::NotFoundError(absl::StrCat(directory_, ": has neither ", kSingleFile, " nor ",
                                            kIndexFile, "; expected one of them"));
  }
  auto file = SafetensorsFile::Open(single);
  if (!file.ok()) return file.status();
  for (const TensorInfo& info : (*file)->tensors()) tensors_[info.name] = {0, &info};
  files_.push_back(std::move(*file));
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenIndexed(const std::string& index_path) {
  const auto text = ReadTextFile(index_path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const auto index = ParseJsonObject(*text, index_path);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        index_path, ": expected an object \"weight_map\" of tensor names to file names"));
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map gives \"", Printable(name), "\" the file ",
                       PrintableJson(shard), ", expected a file name"));
    }
    const std::string& shard_name = shard.get_ref<const std::string&>();
    absl::Status status = CheckShardName(shard_name, index_path);
    if (!status.ok()) return status;
    shards.insert(shard_name);
  }
  for (const std::string& shard : shards) {
    const std::string path = absl::StrCat(directory_, "/", shard);
    auto file = SafetensorsFile::Open(path);
    if (absl::IsNotFound(file.status())) {
      return absl::NotFoundError(
          absl::StrCat(path, ": no such file, but ", kIndexFile, " names it; fetch it"));
    }
    if (!file.ok()) return file.status();
    for (const TensorInfo& info : (*file)->tensors()) {
      const auto entry = map->find(info.name);
      if (entry == map->end() || entry->get_ref<const std::string&>() != shard) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": has tensor \"", Printable(info.name), "\", but ", kIndexFile,
            entry == map->end() ? " does not list it"
                                : absl::StrCat(" says that it is in ", PrintableJson(*entry))));
      }
      tensors_[info.name] = {static_cast<int>(files_.size()), &info};
    }
    files_.push_back(std::move(*file));
  }
  for (const auto& [name, shard] : map->items()) {
    if (!tensors_.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": says that tensor \"", Printable(name), "\" is in ",
                       PrintableJson(shard), ", but that file does not have it"));
    }
  }
  return absl::OkStatus();
}

std::string Checkpoint::StoredName(Role role, int64_t layer, int64_t expert,
                                   const OtherName** other) const {
  std::string name = TensorName(config_, role, layer, expert);
  if (other != nullptr) *other = nullptr;
  const OtherName* candidate = FindOtherName(config_, role);
  if (candidate != nullptr && !tensors_.contains(name)) {
    std::string other_name = TensorName(*candidate, layer);
    if (other_name != name && tensors_.contains(other_name)) {
      if (other != nullptr) *other = candidate;
      return other_name;
    }
  }
  if (!config_.tie_word_embeddings || (role != Role::kEmbedding && role != Role::kLmHead)) {
    return name;
  }
  // safetensors' save_model keeps one name of two tensors that share memory, often the head's.
  std::string embedding = TensorName(config_, Role::kEmbedding);
  std::string head = TensorName(config_, Role::kLmHead);
  return !tensors_.contains(embedding) && tensors_.contains(head) ? head : embedding;
}

absl::Status Checkpoint::DetermineWeightDtype() {
  const std::string name = StoredName(Role::kEmbedding, 0, 0);
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return absl::OkStatus();  // Validate names what is missing
  const auto dtype = SupportedDType(it->second.info->dtype);
  if (!dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(files_[it->second.file]->path(), ": tensor \"",
                                                 name, "\" has dtype ", it->second.info->dtype,
                                                 ", supported are F32, BF16 and F16"));
  }
  config_.weight_dtype = *dtype;
  // Matrices that were widened again.
  const bool codes = std::any_of(tensors_.begin(), tensors_.end(), [](const auto& entry) {
    return entry.second.info->dtype == kFp8;
  });
  if (!codes) config_.fp8.reset();
  for (const auto& [tensor, location] : tensors_) {
    if (codes && location.info->dtype == kFp8) {
      const auto scale = tensors_.find(ScaleName(tensor));
      config_.fine_scales |= scale != tensors_.end() && scale->second.info->dtype != "BF16";
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::MissingTensor(Role role, const std::string& name) const {
  std::string reason;
  if (role == Role::kLmHead) {
    reason = "tie_word_embeddings false";
  } else if (IsPerLayer(role)) {
    reason = absl::StrCat("num_hidden_layers ", config_.num_layers);
    if (role == Role::kOBias || (role >= Role::kQBias && role <= Role::kVBias)) {
      absl::StrAppend(&reason, " with attention biases");
    } else if (role >= Role::kGateBias && role <= Role::kDownBias) {
      absl::StrAppend(&reason, " with mlp_bias true");
    } else if (role >= Role::kRouter) {
      absl::StrAppend(&reason, " with ", config_.num_experts, " experts");
    }
  } else {
    reason = absl::StrCat("architecture ", config_.architecture);
  }
  return absl::InvalidArgumentError(absl::StrCat(directory_, ": config.json says ", reason,
                                                 ", but tensor ", name,
                                                 " is missing from the safetensors files"));
}

absl::Status Checkpoint::CheckTensor(Role role, int64_t layer, int64_t expert) const {
  const OtherName* other = nullptr;
  const std::string name = StoredName(role, layer, expert, &other);
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return MissingTensor(role, name);
  const TensorInfo& info = *it->second.info;
  const std::string& path = files_[it->second.file]->path();
  Shape expected = ExpectedShape(config_, role);
  if (other != nullptr && IsPerExpert(role)) {
    expected = {config_.num_experts, other->parts * expected[0], expected[1]};
  }
  if (info.shape != expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": tensor ", name, " has shape ", ShapeString(info.shape),
        ", but config.json asks for ", ShapeString(expected), WhatWasAssumed(config_, role)));
  }
  if (info.dtype == kFp8 && config_.fp8.has_value() && IsProduct(role)) {
    if (config_.weight_dtype != DType::kBF16) {
      return absl::UnimplementedError(absl::StrCat(
          path, ": tensor ", name, " has dtype ", kFp8, ", but the embedding has ",
          DTypeName(config_.weight_dtype), "; FP8 matrices are read beside BF16 alone"));
    }
    if (other != nullptr && IsPerExpert(role)) {
      return absl::UnimplementedError(absl::StrCat(path, ": tensor ", name,
                                                   " holds all experts of a layer in ", kFp8,
                                                   "; FP8 is read with a matrix for each expert"));
    }
    return FindScales(name, info.shape).status();
  }
  const auto dtype = SupportedDType(info.dtype);
  if (!dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(
        path, ": tensor ", name, " has dtype ", info.dtype, ", supported are F32, BF16 and F16",
        info.dtype == kFp8 ? ", and F8_E4M3 for matrices of layers where config.json has a "
                             "quantization_config of FP8"
                           : ""));
  }
  if (*dtype != config_.weight_dtype && !(IsVector(role) && *dtype == DType::kF32)) {
    return absl::UnimplementedError(absl::StrCat(
        path, ": tensor ", name, " has dtype ", info.dtype, ", but the embedding has ",
        DTypeName(config_.weight_dtype),
        "; one dtype for all weights is supported (F32 for norms and biases beside it); convert "
        "the checkpoint to one dtype"));
  }
  const auto address = reinterpret_cast<uintptr_t>(files_[it->second.file]->data(info));
  if (address % kernels::SizeOf(*dtype) != 0) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": tensor ", name, " is not aligned to its ", kernels::SizeOf(*dtype),
                     "-byte elements (files of safetensors before 0.3); save the model again"));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckTiedHead() const {
  if (!config_.tie_word_embeddings) return absl::OkStatus();
  const auto head = tensors_.find(TensorName(config_, Role::kLmHead));
  if (head == tensors_.end()) return absl::OkStatus();
  const auto embedding = tensors_.find(TensorName(config_, Role::kEmbedding));
  if (embedding == tensors_.end()) return absl::OkStatus();
  const TensorInfo& a = *embedding->second.info;
  const TensorInfo& b = *head->second.info;
  const SafetensorsFile& b_file = *files_[head->second.file];
  // All of it: training that adds a few tokens changes their rows alone.
  if (a.shape == b.shape && a.dtype == b.dtype &&
      std::memcmp(files_[embedding->second.file]->data(a), b_file.data(b),
                  static_cast<size_t>(a.end - a.begin)) == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(b_file.path(), ": config.json says tie_word_embeddings true, but ", head->first,
                   " is there and differs from ", embedding->first,
                   "; set tie_word_embeddings to false or remove ", head->first));
}

absl::Status Checkpoint::Validate() const {
  absl::flat_hash_set<std::string> expected;
  for (const Role role : Roles(config_)) {
    const int64_t layers = IsPerLayer(role) ? config_.num_layers : 1;
    const int64_t experts = IsPerExpert(role) ? config_.num_experts : 1;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (!HasRole(config_, role, layer)) continue;
      for (int64_t expert = 0; expert < experts; ++expert) {
        absl::Status status = CheckTensor(role, layer, expert);
        if (!status.ok()) return status;
        const std::string name = StoredName(role, layer, expert);
        const TensorInfo& info = *tensors_.at(name).info;
        const std::string first = StoredName(role, layer, 0);
        if (info.dtype != tensors_.at(first).info->dtype) {
          return absl::UnimplementedError(
              absl::StrCat(directory_, ": tensor ", name, " has dtype ", info.dtype, ", but ",
                           first, " has ", tensors_.at(first).info->dtype,
                           "; one dtype for all experts of a layer is supported"));
        }
        if (info.dtype == kFp8) expected.insert(ScaleName(name));
        expected.insert(name);
      }
    }
  }
  // The first by name, so that the same directory gives the same message.
  std::string extra;
  for (const auto& [name, location] : tensors_) {
    if (expected.contains(name) || IsIgnorable(config_, name)) continue;
    if (config_.fp8.has_value() && IsActivationScale(name)) continue;
    if (extra.empty() || name < extra) extra = name;
  }
  if (!extra.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        files_[tensors_.at(extra).file]->path(), ": has tensor \"", Printable(extra),
        "\", which a ", config_.architecture, " of ", config_.num_layers,
        " layers as in config.json does not have; leaving it out would change the answers"));
  }
  return CheckTiedHead();
}

absl::StatusOr<TensorRef> Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(
        absl::StrCat(directory_, ": has no tensor \"", Printable(name), "\""));
  }
  const TensorInfo& info = *it->second.info;
  const auto dtype = info.dtype == kFp8 && config_.fp8.has_value() ? std::optional(DType::kF8E4M3)
                                                                   : SupportedDType(info.dtype);
  if (!dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(files_[it->second.file]->path(), ": tensor \"",
                                                 Printable(name), "\" has dtype ", info.dtype,
                                                 ", supported are F32, BF16 and F16"));
  }
  return TensorRef{it->first, *dtype, info.shape, files_[it->second.file]->data(info), {}};
}

absl::StatusOr<TensorRef> Checkpoint::Find(Role role, int64_t layer, int64_t expert) const {
  const OtherName* other = nullptr;
  auto tensor = Find(StoredName(role, layer, expert, &other));
  if (tensor.ok() && tensor->dtype == DType::kF8E4M3) {
    auto scales = FindScales(tensor->name, tensor->shape);
    if (!scales.ok()) return scales.status();
    tensor->scales = *std::move(scales);
    return tensor;
  }
  if (!tensor.ok() || other == nullptr || !IsPerExpert(role)) return tensor;
  // [num_experts, parts * rows, cols]; Validate has checked the shape.
  const int64_t rows = tensor->shape[1] / other->parts;
  const int64_t cols = tensor->shape[2];
  const int64_t first_row = (expert * other->parts + other->part) * rows;
  tensor->data =
      static_cast<const char*>(tensor->data) + first_row * cols * kernels::SizeOf(tensor->dtype);
  tensor->shape = {rows, cols};
  absl::StrAppend(&tensor->name, "[", expert);
  if (other->parts > 1) {
    absl::StrAppend(&tensor->name, ", ", other->part * rows, ":", (other->part + 1) * rows);
  }
  absl::StrAppend(&tensor->name, "]");
  return tensor;
}

absl::StatusOr<std::vector<float>> Checkpoint::ReadVector(Role role, int64_t layer) const {
  const auto tensor = Find(role, layer);
  if (!tensor.ok()) return tensor.status();
  std::vector<float> values(tensor->elements());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = ElementAt(tensor->data, tensor->dtype, static_cast<int64_t>(i));
    if (!std::isfinite(values[i])) {
      return absl::InvalidArgumentError(absl::StrCat(directory_, ": tensor ", tensor->name, " has ",
                                                     std::isnan(values[i]) ? "NaN" : "infinity",
                                                     " at element ", i,
                                                     "; the checkpoint is damaged"));
    }
  }
  return values;
}

std::vector<std::string> Checkpoint::TensorNames() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, location] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

void Checkpoint::ReleasePages() const {
  for (const auto& file : files_) file->ReleasePages();
}

std::vector<int64_t> Checkpoint::FileIdentities() const {
  std::vector<int64_t> out;
  for (const auto& file : files_) {
    for (const int64_t part : file->identity()) out.push_back(part);
  }
  return out;
}

int64_t Checkpoint::TotalBytes() const {
  int64_t total = 0;
  for (const auto& [name, location] : tensors_) total += location.info->end - location.info->begin;
  return total;
}

std::string Checkpoint::CheckpointDigest() const {
  Fnv1a digest;
  digest.AddPart(texts_.config);
  digest.AddPart(texts_.generation);
  for (const auto& file : files_) digest.AddPart(file->header_bytes());
  const auto norm = Find(Role::kFinalNorm);
  if (norm.ok()) {
    digest.AddPart({static_cast<const char*>(norm->data), static_cast<size_t>(norm->bytes())});
  }
  return digest.Hex();
}

absl::Status Checkpoint::CheckFinite(const TensorRef& tensor, int64_t row_begin,
                                     int64_t row_end) const {
  const int64_t cols = tensor.rows() == 0 ? 0 : tensor.elements() / tensor.rows();
  for (int64_t i = row_begin * cols; i < row_end * cols; ++i) {
    const float value = ElementAt(tensor.data, tensor.dtype, i);
    if (std::isfinite(value)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        directory_, ": tensor ", tensor.name, " has ", std::isnan(value) ? "NaN" : "infinity",
        " at row ", i / cols, ", column ", i % cols, "; the checkpoint is damaged"));
  }
  return absl::OkStatus();
}

}  // namespace phalanx::checkpoint
