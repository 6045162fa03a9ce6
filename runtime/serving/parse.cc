#include "runtime/serving/parse.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/zero_copy_stream.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/tokenizer/utf8.h"

namespace phalanx::serving {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// The first string field, depth first, whose bytes are not UTF-8; empty: none.
std::string FindBadString(const UnknownFieldSet& fields, const Descriptor& type) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* descriptor = type.FindFieldByNumber(field.number());
    if (descriptor == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const std::string& bytes = field.length_delimited();
    if (descriptor->type() == FieldDescriptor::TYPE_STRING) {
      const size_t offset = tokenizer::FindInvalidUtf8(bytes);
      if (offset != std::string::npos) {
        return absl::StrCat(descriptor->name(), ": is not valid UTF-8 at byte ", offset);
      }
    } else if (descriptor->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(bytes)) continue;
      const std::string found = FindBadString(inner, *descriptor->message_type());
      if (!found.empty()) return absl::StrCat(descriptor->name(), ".", found);
    }
  }
  return "";
}

}  // namespace

absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* request) {
  {
    grpc::ByteBuffer copy = bytes;  // shares the slices
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && request->ParseFromZeroCopyStream(&reader)) {
      return absl::OkStatus();
    }
  }
  const Descriptor& type = *request->GetDescriptor();
  grpc::ByteBuffer copy = bytes;
  grpc::ProtoBufferReader reader(&copy);
  UnknownFieldSet fields;
  if (reader.status().ok() && fields.ParseFromZeroCopyStream(&reader)) {
    const std::string found = FindBadString(fields, type);
    if (!found.empty()) return absl::InvalidArgumentError(found);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the request's bytes are not a ", type.full_name()));
}

grpc::ByteBuffer Serialize(const google::protobuf::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace phalanx::serving
