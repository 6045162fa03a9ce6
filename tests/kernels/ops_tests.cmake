# The tests of every op but MatMul.
foreach(name ops attention sampling_ops vector_math known_answers moe_ops)
  phalanx_test(NAME ${name}_test LABELS unit SRCS ${name}_test.cc LIBS phalanx_kernels)
endforeach()
phalanx_test(NAME merge_partials_test LABELS unit SRCS merge_partials_test.cc LIBS phalanx_kernels
             phalanx_parallel)
