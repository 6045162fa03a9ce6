#include "launcher/model_info.h"

#include <filesystem>

#include "absl/strings/ascii.h"
#include "runtime/serving/text_decoder.h"

namespace phalanx::launcher {

std::string ModelName(const Service& service, const std::string& name) {
  if (!name.empty()) return name;
  // As it is written, so that the target of a link may change; but neither "." nor "..".
  const std::filesystem::path path = service.model_directory();
  const std::filesystem::path last = (path / "").lexically_normal().parent_path().filename();
  if (!last.empty() && last != "." && last != "..") return last.string();
  return std::filesystem::weakly_canonical(path).filename().string();
}

serving::ModelInfo MakeModelInfo(Service& service, const std::string& name) {
  const checkpoint::ModelConfig& config = service.config();
  serving::ModelInfo info;
  info.name = ModelName(service, name);
  info.family = config.model_type;
  info.context_length = service.max_context();
  info.vocab_size = config.vocab_size;
  for (const int64_t id : config.eos_token_ids) {
    info.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
  if (config.bos_token_id.has_value()) {
    info.bos_token_id = static_cast<int32_t>(*config.bos_token_id);
  }
  info.weight_type = absl::AsciiStrToLower(std::string(
      kernels::Name(config.fp8.has_value() ? kernels::DType::kF8E4M3 : config.weight_dtype)));
  info.num_parameters = service.num_parameters();
  info.profile = service.profile().ToString();
  info.checkpoint_digest = service.checkpoint_digest();
  info.defaults = config.generation;
  if (service.tokenizer() != nullptr) {
    info.max_prompt_bytes = serving::MaxPromptBytes(*service.tokenizer(), service.max_context());
  }
  // Ranks agree on it or don't start; known once they have.
  const coordinator::GroupInfo group = service.coordinator().GetStatus().group;
  if (!group.ranks.empty()) info.profile_digest = group.ranks[0].op_digest;
  return info;
}

}  // namespace phalanx::launcher
