# phalanx_test(NAME name LABELS unit SRCS a_test.cc [LIBS phalanx_x ...] [PROCESSORS n] [TIMEOUT s])
# One GoogleTest executable, registered with CTest as one test.
#
# Tests labelled unit or multirank also run under ASan and UBSan (tests/run.sh). Those of them that
# link neither gRPC nor MPI get the label tsan and run under TSan: the system's gRPC, protobuf and
# Open MPI are not instrumented.
get_filename_component(PHALANX_ROOT ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
set(PHALANX_NOT_FOR_TSAN phalanx_proto phalanx_control phalanx_serving phalanx_launcher
                         phalanx_comm_mpi)

function(phalanx_test)
  cmake_parse_arguments(T "" "NAME;PROCESSORS;TIMEOUT" "LABELS;SRCS;LIBS" ${ARGN})
  if(NOT PHALANX_TESTS)
    return()
  endif()
  find_package(GTest REQUIRED)
  add_executable(${T_NAME} ${T_SRCS})
  target_link_libraries(${T_NAME} PRIVATE ${T_LIBS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(
    ${T_NAME} PRIVATE PHALANX_SOURCE_DIR="${PHALANX_ROOT}"
                      PHALANX_BINARY_DIR="${CMAKE_BINARY_DIR}"
                      PHALANX_SHARED_DIR="${PHALANX_ROOT}/../shared")
  if(NOT CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/(kernels|comm|gpu)$")
    # Optimising the bodies of tests took a third of the build. What is tested is optimised; the
    # tests of kernels and comm compute much themselves.
    target_compile_options(${T_NAME} PRIVATE -O0)
  endif()
  if("unit" IN_LIST T_LABELS OR "multirank" IN_LIST T_LABELS)
    set(tsan ON)
    foreach(library IN LISTS T_LIBS)
      if(library IN_LIST PHALANX_NOT_FOR_TSAN)
        set(tsan OFF)
      endif()
    endforeach()
    if(tsan)
      list(APPEND T_LABELS tsan)
    endif()
  endif()
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 600)
  endif()
  if(PHALANX_SANITIZE)
    math(EXPR T_TIMEOUT "3 * ${T_TIMEOUT}")
  endif()
  # CTest counts a binary of which nothing but skips ran as skipped, not as passed.
  set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT}
                                            SKIP_REGULAR_EXPRESSION "\\[  PASSED  \\] 0 tests")
  if(T_PROCESSORS)
    set_tests_properties(${T_NAME} PROPERTIES PROCESSORS ${T_PROCESSORS})
  endif()
endfunction()

# phalanx_script_test(NAME name SCRIPT a_test.py LABELS e2e [ARGS ...] [TIMEOUT s])
# A Python script that drives real processes. Alone on the machine: each starts servers of several
# ranks, and two at once would only wait for each other. Exit code 77: skipped. The system's Python
# has gRPC's packages; another one that is first in PATH may not.
function(phalanx_script_test)
  cmake_parse_arguments(T "" "NAME;SCRIPT;TIMEOUT" "LABELS;ARGS" ${ARGN})
  find_program(PHALANX_PYTHON python3 PATHS /usr/bin NO_DEFAULT_PATH)
  find_program(PHALANX_PYTHON python3 REQUIRED)
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  add_test(NAME ${T_NAME} COMMAND ${PHALANX_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/${T_SCRIPT} ${T_ARGS})
  set_tests_properties(
    ${T_NAME} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT} RUN_SERIAL ON SKIP_RETURN_CODE 77
                         ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endfunction()
