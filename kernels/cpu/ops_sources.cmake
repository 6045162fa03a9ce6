# The sources of every op but MatMul, by the instruction set that each is compiled for:
# PORTABLE: the compiler's default; AVX2: -mavx2 -mfma -mf16c; AVX512: those plus -mavx512f/bw/dq/vl.
set(PHALANX_OPS_PORTABLE_SRCS
    cpu/ops.cc cpu/ops_portable.cc cpu/reference_ops.cc cpu/scalar_math.cc cpu/known_answers.cc
    cpu/attention.cc cpu/cut.cc cpu/moe.cc order.cc rope.cc)
set(PHALANX_OPS_AVX2_SRCS cpu/ops_avx2.cc)
set(PHALANX_OPS_AVX512_SRCS cpu/ops_avx512.cc)
list(TRANSFORM PHALANX_OPS_PORTABLE_SRCS PREPEND ${CMAKE_CURRENT_LIST_DIR}/../)
list(TRANSFORM PHALANX_OPS_AVX2_SRCS PREPEND ${CMAKE_CURRENT_LIST_DIR}/../)
list(TRANSFORM PHALANX_OPS_AVX512_SRCS PREPEND ${CMAKE_CURRENT_LIST_DIR}/../)
