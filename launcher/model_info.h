// What the service says of its model.
#ifndef PHALANX_LAUNCHER_MODEL_INFO_H_
#define PHALANX_LAUNCHER_MODEL_INFO_H_

#include <string>

#include "launcher/service.h"
#include "runtime/serving/model_info.h"

namespace phalanx::launcher {

// What clients call the model: `name`, or where that is empty the last part of its directory.
std::string ModelName(const Service& service, const std::string& name);
// `name`: as above.
serving::ModelInfo MakeModelInfo(Service& service, const std::string& name);

}  // namespace phalanx::launcher

#endif  // PHALANX_LAUNCHER_MODEL_INFO_H_
