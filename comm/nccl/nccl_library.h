// The part of NCCL's C API that phalanx calls, as a table of functions that is found at run time: a
// binary starts where there is no NCCL, and tests put another table in its place.
//
// Declared as in nccl.h of NCCL 2.28 (NVIDIA, "NCCL API",
// https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html): same values, same layouts. A
// cudaStream_t is a void*. Calls may come from any thread, but no two at a time may use one
// communicator.
#ifndef PHALANX_COMM_NCCL_NCCL_LIBRARY_H_
#define PHALANX_COMM_NCCL_NCCL_LIBRARY_H_

#include <climits>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace phalanx::comm::nccl {

struct Comm;  // opaque

struct UniqueId {
  char bytes[128];
};

enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

enum DataType : int { kUint8 = 1, kUint32 = 3, kFloat32 = 7 };
enum RedOp : int { kSum = 0 };

// ncclConfig_t up to the fields that 2.22 has: NCCL reads `size` bytes and takes its defaults for
// what `version` did not have yet.
struct Config {
  size_t size = sizeof(Config);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 22200;
  int blocking = INT_MIN;  // INT_MIN and null: NCCL's default
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

// What is called; see NCCL's documentation of nccl<Name>.
struct Library {
  int version = 0;   // major * 10000 + minor * 100 + patch
  std::string path;  // for messages

  Result (*GetVersion)(int* version) = nullptr;
  Result (*GetUniqueId)(UniqueId* id) = nullptr;
  Result (*CommInitRankConfig)(Comm** comm, int size, UniqueId id, int rank,
                               Config* config) = nullptr;
  Result (*CommFinalize)(Comm* comm) = nullptr;
  Result (*CommDestroy)(Comm* comm) = nullptr;
  Result (*CommAbort)(Comm* comm) = nullptr;
  Result (*CommGetAsyncError)(Comm* comm, Result* error) = nullptr;
  const char* (*GetErrorString)(Result result) = nullptr;
  const char* (*GetLastError)(Comm* comm) = nullptr;
  Result (*AllReduce)(const void* send, void* recv, size_t count, DataType type, RedOp op,
                      Comm* comm, void* stream) = nullptr;
  Result (*ReduceScatter)(const void* send, void* recv, size_t recv_count, DataType type, RedOp op,
                          Comm* comm, void* stream) = nullptr;
  Result (*AllGather)(const void* send, void* recv, size_t send_count, DataType type, Comm* comm,
                      void* stream) = nullptr;
  Result (*Broadcast)(const void* send, void* recv, size_t count, DataType type, int root,
                      Comm* comm, void* stream) = nullptr;
  Result (*Send)(const void* send, size_t count, DataType type, int peer, Comm* comm,
                 void* stream) = nullptr;
  Result (*Recv)(void* recv, size_t count, DataType type, int peer, Comm* comm,
                 void* stream) = nullptr;
  Result (*GroupStart)() = nullptr;
  Result (*GroupEnd)() = nullptr;
};

// The oldest NCCL that will do: the first that aborts several communicators as one group.
inline constexpr int kOldestVersion = 22200;

// "2.28.9"
std::string VersionText(int version);

// Loads the library that the dynamic linker finds under `name`, and keeps it until the process
// ends. FAILED_PRECONDITION says what was looked for, what was found and what to install: no such
// library, one that is too old, one without a function.
absl::StatusOr<std::shared_ptr<const Library>> LoadLibrary(
    const std::string& name = "libnccl.so.2");

}  // namespace phalanx::comm::nccl

#endif  // PHALANX_COMM_NCCL_NCCL_LIBRARY_H_
