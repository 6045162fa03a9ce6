// What the service says of its model.
#ifndef PHALANX_LAUNCHER_MODEL_INFO_H_
#define PHALANX_LAUNCHER_MODEL_INFO_H_

#include <string>

#include "launcher/service.h"
#include "runtime/serving/model_info.h"

namespace phalanx::launcher {

// `name`: what clients call it; empty: the last part of the model directory.
serving::ModelInfo MakeModelInfo(Service& service, const std::string& name);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_MODEL_INFO_H_
