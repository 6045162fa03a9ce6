// main() of a GoogleTest executable that mpirun starts: every rank runs the same tests in the same
// order on one world.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "tests/comm/mpi_main.h"

namespace phalanx::comm {
namespace {

std::unique_ptr<MpiEnvironment> environment;
MpiOptions options;

}  // namespace

MpiEnvironment& TestEnvironment() { return *environment; }
int TestRanksPerNode() { return options.ranks_per_node; }

int RunTests(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--ranks_per_node=", 17) == 0) {
      options.ranks_per_node = std::atoi(argv[i] + 17);
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  options.shutdown_timeout = absl::Seconds(60);
  absl::StatusOr<std::unique_ptr<MpiEnvironment>> made = MpiEnvironment::Init(options);
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
    return 1;
  }
  environment = *std::move(made);
  // One voice is enough, unless something fails.
  if (environment->World().rank() != 0) {
    delete ::testing::UnitTest::GetInstance()->listeners().Release(
        ::testing::UnitTest::GetInstance()->listeners().default_result_printer());
  }
  int code = RUN_ALL_TESTS();
  if (absl::Status status = environment->Finalize(); !status.ok()) {
    std::fprintf(stderr, "Finalize: %s\n", status.ToString().c_str());
    if (code == 0) code = 1;
  }
  environment.reset();
  return code;
}

}  // namespace phalanx::comm

int main(int argc, char** argv) { return phalanx::comm::RunTests(argc, argv); }
