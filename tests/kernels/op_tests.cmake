# The tests of ops, compiled once whatever devices they run on: each executable links those that its
# device has, and one kernel_sets_*.cc.
set(phalanx_op_tests
    attention_test
    experts_test
    fp8_cache_test
    fp8_weights_test
    gated_matmul_test
    known_answers_test
    matmul_test
    memory_ops_test
    moe_ops_test
    ops_test
    sampling_ops_test)
# Of every device but the adapter by which CPUs stand in for one.
set(phalanx_device_op_tests ${phalanx_op_tests} fast_attention_test fast_products_test invariance_test)
if(NOT TARGET body_ops_test)
  set(sources ${phalanx_device_op_tests} host_memory_kernels)
  list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
  list(TRANSFORM sources APPEND .cc)
  phalanx_test_bodies(SRCS ${sources} LIBS phalanx_kernels)
endif()
