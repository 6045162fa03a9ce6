# Finds a CUDA toolkit and enables the language CUDA, as PHALANX_CUDA says:
#   OFF   never
#   ON    or the configuration fails, naming what is missing
#   AUTO  where a whole toolkit is found: nvcc, cuda_runtime.h and cudart_static
# A toolkit may lie in one folder (/usr/local/cuda, CUDA_PATH, CUDA_HOME) or come as a
# distribution's separate packages, with nvcc in /usr/bin and headers in /usr/include.
# Sets PHALANX_HAS_CUDA. Included from the top of a project, as enable_language asks.
set(PHALANX_HAS_CUDA OFF)
set(PHALANX_CUDA_MISSING "")

if(NOT PHALANX_CUDA STREQUAL "OFF")
  find_program(
    PHALANX_NVCC nvcc
    HINTS ${CMAKE_CUDA_COMPILER} ENV CUDACXX
    PATHS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda
    PATH_SUFFIXES bin)
  if(PHALANX_NVCC)
    get_filename_component(phalanx_nvcc_real ${PHALANX_NVCC} REALPATH)
    get_filename_component(phalanx_cuda_bin ${phalanx_nvcc_real} DIRECTORY)
    get_filename_component(phalanx_cuda_root ${phalanx_cuda_bin} DIRECTORY)
    set(phalanx_cuda_target ${phalanx_cuda_root}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux)
    find_path(PHALANX_CUDA_INCLUDE cuda_runtime.h
              HINTS ${phalanx_cuda_root}/include ${phalanx_cuda_target}/include)
    find_library(
      PHALANX_CUDART cudart_static
      HINTS ${phalanx_cuda_root}/lib64 ${phalanx_cuda_root}/lib ${phalanx_cuda_target}/lib)
  endif()
  foreach(part PHALANX_NVCC PHALANX_CUDA_INCLUDE PHALANX_CUDART)
    if(NOT ${part})
      list(APPEND PHALANX_CUDA_MISSING ${part})
    endif()
  endforeach()
  string(REPLACE "PHALANX_NVCC" "nvcc" PHALANX_CUDA_MISSING "${PHALANX_CUDA_MISSING}")
  string(REPLACE "PHALANX_CUDA_INCLUDE" "cuda_runtime.h" PHALANX_CUDA_MISSING
                 "${PHALANX_CUDA_MISSING}")
  string(REPLACE "PHALANX_CUDART" "libcudart_static.a" PHALANX_CUDA_MISSING
                 "${PHALANX_CUDA_MISSING}")
  if(NOT PHALANX_CUDA_MISSING)
    set(PHALANX_HAS_CUDA ON)
  elseif(PHALANX_CUDA STREQUAL "ON")
    list(JOIN PHALANX_CUDA_MISSING ", " PHALANX_CUDA_MISSING)
    message(FATAL_ERROR "PHALANX_CUDA=ON, but no whole CUDA toolkit was found; missing: "
                        "${PHALANX_CUDA_MISSING}. Install it, name its folder in CUDA_PATH, or "
                        "configure with -DPHALANX_CUDA=OFF.")
  endif()
endif()

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
else()
  list(JOIN PHALANX_CUDA_MISSING ", " PHALANX_CUDA_MISSING)
  message(STATUS "CUDA backend: no (PHALANX_CUDA=${PHALANX_CUDA}; missing: ${PHALANX_CUDA_MISSING})")
endif()
