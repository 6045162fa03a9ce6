get_filename_component(PHALANX_ROOT ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
set(PHALANX_NOT_FOR_TSAN phalanx_proto phalanx_control phalanx_serving phalanx_launcher
                         phalanx_comm_mpi)

# How the sources of tests are compiled; LIB ...: what they use.
function(phalanx_compiles_as_test target)
  find_package(GTest REQUIRED)
  target_link_libraries(${target} PRIVATE ${ARGN} GTest::gmock)
  target_compile_definitions(
    ${target} PRIVATE PHALANX_SOURCE_DIR="${PHALANX_ROOT}"
                      PHALANX_BINARY_DIR="${CMAKE_BINARY_DIR}"
                      PHALANX_SHARED_DIR="${PHALANX_ROOT}/../shared")
  # Optimising the bodies of tests took a third of the build. What is tested is optimised; the tests
  # of kernels and comm compute much themselves.
  set(level -O0)
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/(kernels|comm|gpu)$")
    set(level -O1)
  endif()
  target_compile_options(${target} PRIVATE ${level} -pthread)
  # One setting for objects and executables and -pthread for all, or they couldn't share
  # precompiled headers.
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  if(NOT TARGET phalanx_test_headers${level})
    # What nearly every test includes, read once. A header that changes with the project doesn't
    # belong here.
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/test_headers.cc CONTENT "// CMake wants a source.\n")
    add_library(phalanx_test_headers${level} OBJECT EXCLUDE_FROM_ALL ${CMAKE_BINARY_DIR}/test_headers.cc)
    target_link_libraries(phalanx_test_headers${level} PRIVATE GTest::gmock absl::statusor absl::strings)
    target_compile_options(phalanx_test_headers${level} PRIVATE ${level} -pthread)
    set_target_properties(phalanx_test_headers${level} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_precompile_headers(phalanx_test_headers${level} PRIVATE <gmock/gmock.h> <gtest/gtest.h>
                              <absl/status/statusor.h> <absl/strings/str_cat.h>)
  endif()
  target_precompile_headers(${target} REUSE_FROM phalanx_test_headers${level})
endfunction()

# phalanx_test_bodies(SRCS a_test.cc [LIBS phalanx_x ...])
# Sources that several tests link, each for another device, are compiled once: phalanx_test's BODIES
# name them (a_test).
function(phalanx_test_bodies)
  cmake_parse_arguments(T "" "" "SRCS;LIBS" ${ARGN})
  if(NOT PHALANX_TESTS)
    return()
  endif()
  foreach(source IN LISTS T_SRCS)
    get_filename_component(name ${source} NAME_WE)
    add_library(body_${name} OBJECT EXCLUDE_FROM_ALL ${source})
    phalanx_compiles_as_test(body_${name} ${T_LIBS})
  endforeach()
endfunction()

# phalanx_test(NAME name LABELS unit SRCS a_test.cc [BODIES b_test ...] [LIBS phalanx_x ...]
#              [PROCESSORS n] [TIMEOUT s])
# One GoogleTest executable, registered with CTest as one test.
#
# Tests labelled unit or multirank also run under ASan and UBSan (tests/run.sh). Those of them that
# link neither gRPC nor MPI get the label tsan and run under TSan: the system's gRPC, protobuf and
# Open MPI are not instrumented.
function(phalanx_test)
  cmake_parse_arguments(T "" "NAME;PROCESSORS;TIMEOUT" "LABELS;SRCS;BODIES;LIBS" ${ARGN})
  if(NOT PHALANX_TESTS)
    return()
  endif()
  list(TRANSFORM T_BODIES REPLACE "(.+)" "$<TARGET_OBJECTS:body_\\1>")
  add_executable(${T_NAME} ${T_SRCS} ${T_BODIES})
  phalanx_compiles_as_test(${T_NAME} ${T_LIBS})
  target_link_libraries(${T_NAME} PRIVATE GTest::gtest_main)
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
