// The world's communicator of an MPI test, made by mpi_test_main.cc, and its command line.
#ifndef PHALANX_TESTS_COMM_MPI_MAIN_H_
#define PHALANX_TESTS_COMM_MPI_MAIN_H_

#include "comm/mpi/mpi_environment.h"

namespace phalanx::comm {

MpiEnvironment& TestEnvironment();
// --ranks_per_node=K of the command line, 0 without it.
int TestRanksPerNode();

}  // namespace phalanx::comm

#endif  // PHALANX_TESTS_COMM_MPI_MAIN_H_
