// What every communicator must do, as functions that each member of a group runs. They return OK or
// say what differed. The tests run them over ranks as threads and over MPI in several forms.
#ifndef PHALANX_TESTS_COMM_COLLECTIVE_CASES_H_
#define PHALANX_TESTS_COMM_COLLECTIVE_CASES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace phalanx::comm {

struct CollectiveCase {
  std::string name;
  absl::Status (*run)(Communicator& group);
};

const std::vector<CollectiveCase>& CollectiveCases();

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_COLLECTIVE_CASES_H_
