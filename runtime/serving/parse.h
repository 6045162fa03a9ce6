// Parsing requests so that what is wrong with one can be said. gRPC's own parsing answers a string
// that is not UTF-8 with UNIMPLEMENTED and no word about the field.
#ifndef PHALANX_RUNTIME_SERVING_PARSE_H_
#define PHALANX_RUNTIME_SERVING_PARSE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace phalanx::serving {

// INVALID_ARGUMENT names the string field that is not UTF-8, e.g. "text", "sampling.stop", or says
// that the bytes are no such message.
absl::Status ParseRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* request);

// The bytes of `message`. `message` holds valid UTF-8 only.
grpc::ByteBuffer Serialize(const google::protobuf::Message& message);

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_PARSE_H_
