# Looks for a CUDA toolkit as PHALANX_CUDA (ON, OFF, AUTO) says and sets PHALANX_HAS_CUDA, PHALANX_NVCC,
# PHALANX_CUDA_INCLUDE and PHALANX_CUDART, or PHALANX_CUDA_MISSING: what a toolkit lacks, in words.
# It may lie in one folder or come as a distribution's separate packages, with nvcc in /usr/bin and
# headers in /usr/include. PHALANX_CUDA_PLACES: look there and nowhere else.
set(PHALANX_HAS_CUDA OFF)
set(PHALANX_CUDA_MISSING "")

if(NOT PHALANX_CUDA STREQUAL "OFF")
  if(PHALANX_CUDA_PLACES)
    set(phalanx_cuda_places PATHS ${PHALANX_CUDA_PLACES} NO_DEFAULT_PATH)
  else()
    set(phalanx_cuda_places HINTS ${CMAKE_CUDA_COMPILER} ENV CUDACXX PATHS ENV CUDA_PATH ENV CUDA_HOME
                            /usr/local/cuda)
  endif()
  find_program(PHALANX_NVCC nvcc ${phalanx_cuda_places} PATH_SUFFIXES bin)
  if(PHALANX_NVCC)
    get_filename_component(phalanx_nvcc_real ${PHALANX_NVCC} REALPATH)
    get_filename_component(phalanx_cuda_bin ${phalanx_nvcc_real} DIRECTORY)
    get_filename_component(phalanx_cuda_root ${phalanx_cuda_bin} DIRECTORY)
    set(phalanx_cuda_target ${phalanx_cuda_root}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux)
    set(phalanx_cuda_only "")
    if(PHALANX_CUDA_PLACES)
      set(phalanx_cuda_only NO_DEFAULT_PATH)
    endif()
    find_path(PHALANX_CUDA_INCLUDE cuda_runtime.h
              HINTS ${phalanx_cuda_root}/include ${phalanx_cuda_target}/include
                    ${phalanx_cuda_only})
    find_library(
      PHALANX_CUDART
      NAMES libcudart_static.a
      HINTS ${phalanx_cuda_root}/lib64 ${phalanx_cuda_root}/lib ${phalanx_cuda_target}/lib
            ${phalanx_cuda_root}/lib/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu ${phalanx_cuda_only})
  endif()
  if(NOT PHALANX_NVCC)
    list(APPEND PHALANX_CUDA_MISSING nvcc)
  endif()
  if(NOT PHALANX_CUDA_INCLUDE)
    list(APPEND PHALANX_CUDA_MISSING cuda_runtime.h)
  endif()
  if(NOT PHALANX_CUDART)
    list(APPEND PHALANX_CUDA_MISSING libcudart_static.a)
  endif()
  if(NOT PHALANX_CUDA_MISSING)
    set(PHALANX_HAS_CUDA ON)
  endif()
  list(JOIN PHALANX_CUDA_MISSING ", " PHALANX_CUDA_MISSING)
endif()
