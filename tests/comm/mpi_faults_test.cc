// How the calls of MPI ranks end when another rank dies or aborts. mpirun runs this with
// --enable-recovery, so that it lets the survivors tell, and with --fault=NAME.
//
// Every survivor prints one line that begins with "survivor"; CTest looks for as many.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "comm/mpi/mpi_environment.h"

namespace phalanx::comm {
namespace {

int Run(const std::string& fault, int ranks_per_node) {
  MpiOptions options;
  options.ranks_per_node = ranks_per_node;
  options.shutdown_timeout = absl::Seconds(5);
  absl::StatusOr<std::unique_ptr<MpiEnvironment>> environment = MpiEnvironment::Init(options);
  if (!environment.ok()) {
    std::printf("Init: %s\n", environment.status().ToString().c_str());
    return 1;
  }
  Communicator& world = (*environment)->World();
  const int last = world.size() - 1;
  const absl::StatusOr<std::unique_ptr<Communicator>> all_but_last =
      world.Split(world.rank() == last ? -1 : 0, 0);
  if (!all_but_last.ok() || !world.Barrier().ok()) return 1;

  std::string expected;
  absl::Status status;
  std::string message;
  if (fault == "kill") {
    if (world.rank() == last) raise(SIGKILL);
    expected = "rank " + std::to_string(last) + " died";
    // Half of them wait in a collective, half, with no deadline, for a message from rank 0, who is
    // alive and silent.
    status = world.rank() % 2 == 0 ? world.Barrier() : world.BroadcastMessage(message, 0);
  } else if (fault == "abort") {
    expected = "the last rank has had enough";
    if (world.rank() == last) {
      world.Abort(expected);
      status = world.Barrier();
    } else {
      // In a group that the aborting rank is no member of, made from one of which it is.
      status = world.rank() == 0 ? (*all_but_last)->Recv(nullptr, 0, last - 1, 0)
                                 : (*all_but_last)->BroadcastMessage(message, 0);
    }
  } else if (fault == "silence") {
    // The last rank never comes: the others' deadline names it, and it ends with them.
    expected = "rank " + std::to_string(last);
    if (world.rank() == last) {
      status = world.BroadcastMessage(message, 0);
    } else {
      world.set_timeout(absl::Milliseconds(300));
      const std::vector<int64_t> bytes(world.size(), 0);
      status = world.AllGather(nullptr, nullptr, bytes);
    }
  }
  const std::string text = status.ToString();
  if (status.ok() || text.find(expected) == std::string::npos) {
    std::printf("rank %d: expected an error with '%s', found '%s'\n", world.rank(),
                expected.c_str(), text.c_str());
    return 1;
  }
  const absl::Status end = (*environment)->Finalize();
  if (end.ok()) {
    std::printf("rank %d: Finalize took a world that was aborted\n", world.rank());
    return 1;
  }
  // In one piece, since the ranks share a terminal.
  const std::string line = "survivor: " + text + "\n";
  if (write(STDOUT_FILENO, line.data(), line.size()) < 0) return 1;
  return 0;
}

}  // namespace
}  // namespace phalanx::comm

int main(int argc, char** argv) {
  std::string fault;
  int ranks_per_node = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--fault=", 8) == 0) fault = argv[i] + 8;
    if (std::strncmp(argv[i], "--ranks_per_node=", 17) == 0) {
      ranks_per_node = std::atoi(argv[i] + 17);
    }
  }
  return phalanx::comm::Run(fault, ranks_per_node);
}
