// A communicator that tells an Injector of every call before it is made.
#ifndef PHALANX_TESTS_FAULTS_FAULT_COMMUNICATOR_H_
#define PHALANX_TESTS_FAULTS_FAULT_COMMUNICATOR_H_

#include <memory>

#include "comm/communicator.h"
#include "tests/faults/injector.h"

namespace phalanx::faults {

// Both are borrowed and outlive what is returned and all that is split from it.
std::unique_ptr<comm::Communicator> WithFaults(comm::Communicator& world, Injector& injector);

}  // namespace phalanx::faults

#endif  // PHALANX_TESTS_FAULTS_FAULT_COMMUNICATOR_H_
