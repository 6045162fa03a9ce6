// Runs the cases of collective_cases.h, which use plain arrays, on a communicator that takes memory
// of a device.
#ifndef PHALANX_TESTS_COMM_DEVICE_ARRAYS_H_
#define PHALANX_TESTS_COMM_DEVICE_ARRAYS_H_

#include <memory>

#include "comm/communicator.h"
#include "kernels/kernels.h"

namespace phalanx::comm {

// Each call copies its arrays to memory of `device`, calls `group` and, if all went well, waits and
// copies back what was received. Both are borrowed and outlive the result.
std::unique_ptr<Communicator> WithDeviceArrays(Communicator& group, kernels::Kernels& device);

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_DEVICE_ARRAYS_H_
