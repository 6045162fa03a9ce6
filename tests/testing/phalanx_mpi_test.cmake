# phalanx_mpi_test(NAME name TARGET executable RANKS n [ARGS ...] [MPIRUN_ARGS ...] [TIMEOUT s])
# Runs an executable that brings its own main() on n ranks of this machine, whatever its cores.
function(phalanx_mpi_test)
  cmake_parse_arguments(T "" "NAME;TARGET;RANKS;TIMEOUT" "ARGS;MPIRUN_ARGS" ${ARGN})
  find_program(PHALANX_MPIRUN mpirun REQUIRED)
  add_test(NAME ${T_NAME}
           COMMAND ${PHALANX_MPIRUN} -np ${T_RANKS} --oversubscribe --allow-run-as-root --bind-to none
                   --mca btl self,vader,tcp --mca btl_vader_single_copy_mechanism none
                   ${T_MPIRUN_ARGS} $<TARGET_FILE:${T_TARGET}> ${T_ARGS})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  set_tests_properties(${T_NAME} PROPERTIES LABELS mpi TIMEOUT ${T_TIMEOUT})
endfunction()
