// A shared library with the names of NCCL's functions: NCCL_VERSION says which version it claims to
// be, NCCL_WITHOUT_SEND leaves one function out.
extern "C" {
int ncclGetVersion(int* version) {
  *version = NCCL_VERSION;
  return 0;
}
int ncclGetUniqueId(void* /*id*/) { return 0; }
int ncclCommInitRankConfig() { return 0; }
int ncclCommFinalize() { return 0; }
int ncclCommDestroy() { return 0; }
int ncclCommAbort() { return 0; }
int ncclCommGetAsyncError() { return 0; }
const char* ncclGetErrorString(int /*result*/) { return "a text of the library"; }
const char* ncclGetLastError() { return ""; }
int ncclAllReduce() { return 0; }
int ncclReduceScatter() { return 0; }
int ncclAllGather() { return 0; }
int ncclBroadcast() { return 0; }
#ifndef NCCL_WITHOUT_SEND
int ncclSend() { return 0; }
#endif
int ncclRecv() { return 0; }
int ncclGroupStart() { return 0; }
int ncclGroupEnd() { return 0; }
}
