# The tests of every op but MatMul.
foreach(name ops attention sampling_ops vector_math known_answers)
  phalanx_test(NAME ${name}_test LABELS unit SRCS ${name}_test.cc LIBS phalanx_kernels)
endforeach()
