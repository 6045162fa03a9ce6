#include "runtime/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <utility>

namespace phalanx::tokenizer {

struct SentencePieceModel::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceModel::SentencePieceModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<const SentencePieceModel> SentencePieceModel::Load(std::string_view content) {
  auto impl = std::make_unique<Impl>();
  if (!impl->processor.LoadFromSerializedProto(content).ok()) return nullptr;
  if (impl->processor.GetPieceSize() <= 0) return nullptr;
  return std::unique_ptr<const SentencePieceModel>(new SentencePieceModel(std::move(impl)));
}

std::string SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  const auto status = impl_->processor.Encode(text, ids);
  return status.ok() ? "" : status.ToString();
}

std::string SentencePieceModel::Decode(const std::vector<int32_t>& ids, std::string* text) const {
  const auto status = impl_->processor.Decode(ids, text);
  return status.ok() ? "" : status.ToString();
}

int32_t SentencePieceModel::size() const { return impl_->processor.GetPieceSize(); }
int32_t SentencePieceModel::bos_id() const { return impl_->processor.bos_id(); }
int32_t SentencePieceModel::eos_id() const { return impl_->processor.eos_id(); }
int32_t SentencePieceModel::PieceToId(std::string_view piece) const {
  return impl_->processor.PieceToId(piece);
}
const std::string& SentencePieceModel::IdToPiece(int32_t id) const {
  return impl_->processor.IdToPiece(id);
}
bool SentencePieceModel::IsControl(int32_t id) const { return impl_->processor.IsControl(id); }
bool SentencePieceModel::IsUnknown(int32_t id) const { return impl_->processor.IsUnknown(id); }
bool SentencePieceModel::IsByte(int32_t id) const { return impl_->processor.IsByte(id); }

}  // namespace phalanx::tokenizer
