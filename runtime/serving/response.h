// From the coordinator's events to the messages of the stream.
#ifndef PHALANX_RUNTIME_SERVING_RESPONSE_H_
#define PHALANX_RUNTIME_SERVING_RESPONSE_H_

#include <map>
#include <vector>

#include "proto/phalanx/v1/inference.pb.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/request.h"
#include "runtime/serving/model_info.h"

namespace phalanx::serving {

// Counts what has been said of each sample.
class ResponseWriter {
 public:
  // `logprobs`: whether the request asked for those of its tokens.
  explicit ResponseWriter(bool logprobs) : logprobs_(logprobs) {}

  // The messages that `event` calls for, in order; the last event's end with the summary if its
  // status is OK.
  std::vector<v1::GenerateResponse> Write(const coordinator::Event& event);

 private:
  // Generated tokens by sample index. Filled by events alone: the request's n, which the client
  // chooses, must not decide how much memory is taken before it is checked.
  std::map<int64_t, int32_t> num_tokens_;
  bool logprobs_;
};

v1::Profile ToProto(const ModelInfo& model);
v1::GetModelResponse ModelResponse(const ModelInfo& model);
// Engine, ranks, epoch, layout and state.
void FillStatus(const coordinator::CoordinatorStatus& status, v1::GetStatusResponse* response);

}  // namespace phalanx::serving

#endif  // PHALANX_RUNTIME_SERVING_RESPONSE_H_
