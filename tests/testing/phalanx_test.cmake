# phalanx_test(NAME name LABELS unit SRCS a_test.cc [LIBS phalanx_x ...] [PROCESSORS n] [TIMEOUT s])
# One GoogleTest executable, registered with CTest as one test.
function(phalanx_test)
  cmake_parse_arguments(T "" "NAME;PROCESSORS;TIMEOUT" "LABELS;SRCS;LIBS" ${ARGN})
  if(NOT PHALANX_TESTS)
    return()
  endif()
  find_package(GTest REQUIRED)
  add_executable(${T_NAME} ${T_SRCS})
  target_link_libraries(${T_NAME} PRIVATE ${T_LIBS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(
    ${T_NAME} PRIVATE PHALANX_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                      PHALANX_BINARY_DIR="${CMAKE_BINARY_DIR}"
                      PHALANX_SHARED_DIR="${CMAKE_SOURCE_DIR}/../shared")
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 600)
  endif()
  set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${T_TIMEOUT})
  if(T_PROCESSORS)
    set_tests_properties(${T_NAME} PROPERTIES PROCESSORS ${T_PROCESSORS})
  endif()
endfunction()
