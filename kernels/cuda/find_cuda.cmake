# Enables the language CUDA as PHALANX_CUDA says:
#   OFF   never
#   ON    or the configuration fails, naming what is missing
#   AUTO  where a whole toolkit is found (detect_cuda.cmake)
# Sets PHALANX_HAS_CUDA. Included from the top of a project, as enable_language asks.
include(${CMAKE_CURRENT_LIST_DIR}/detect_cuda.cmake)

if(PHALANX_HAS_CUDA)
  set(CMAKE_CUDA_COMPILER ${PHALANX_NVCC})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # Machine code for Ampere (which Ada runs, too) and Hopper, and PTX for what comes after.
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
  endif()
  # Linked statically, so that the same binary starts on a machine without a driver.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  message(STATUS "CUDA backend: yes (${PHALANX_NVCC}, ${CMAKE_CUDA_COMPILER_VERSION}; "
                 "architectures ${CMAKE_CUDA_ARCHITECTURES})")
elseif(PHALANX_CUDA STREQUAL "OFF")
  message(STATUS "CUDA backend: no (PHALANX_CUDA=OFF)")
elseif(PHALANX_CUDA STREQUAL "ON")
  message(FATAL_ERROR "PHALANX_CUDA=ON, but no whole CUDA toolkit was found; missing: "
                      "${PHALANX_CUDA_MISSING}. Install it, name its folder in CUDA_PATH, or "
                      "configure with -DPHALANX_CUDA=OFF.")
else()
  message(STATUS "CUDA backend: no (PHALANX_CUDA=${PHALANX_CUDA}; missing: ${PHALANX_CUDA_MISSING})")
endif()
