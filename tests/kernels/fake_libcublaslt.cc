// A shared library with the names of cuBLASLt's functions: CUBLAS_VERSION says which version it
// claims to be, CUBLAS_WITHOUT_MATMUL leaves one function out.
#include <cstddef>

extern "C" {
size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
const char* cublasLtGetStatusString(int /*status*/) { return "a text of the library"; }
int cublasLtCreate() { return 0; }
int cublasLtDestroy() { return 0; }
int cublasLtMatmulDescCreate() { return 0; }
int cublasLtMatmulDescDestroy() { return 0; }
int cublasLtMatmulDescSetAttribute() { return 0; }
int cublasLtMatrixLayoutCreate() { return 0; }
int cublasLtMatrixLayoutDestroy() { return 0; }
int cublasLtMatmulPreferenceCreate() { return 0; }
int cublasLtMatmulPreferenceDestroy() { return 0; }
int cublasLtMatmulPreferenceSetAttribute() { return 0; }
int cublasLtMatmulAlgoGetHeuristic() { return 0; }
#ifndef CUBLAS_WITHOUT_MATMUL
int cublasLtMatmul() { return 0; }
#endif
}
