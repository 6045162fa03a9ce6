# PHALANX_CUDA=AUTO takes a toolkit that is whole, in one folder or as separate packages, and names
# what is missing of one that isn't. Runs kernels/cuda/detect_cuda.cmake on made-up folders:
# cmake -DSOURCE_DIR=... -DWORK_DIR=... -P find_cuda_test.cmake
file(REMOVE_RECURSE ${WORK_DIR})

# expect(NAME WANTED "FILES" FOUND "MISSING"): a folder of FILES gives FOUND and MISSING.
function(expect name wanted files found missing)
  set(root ${WORK_DIR}/${name})
  file(MAKE_DIRECTORY ${root})
  foreach(file IN LISTS files)
    get_filename_component(folder ${root}/${file} DIRECTORY)
    file(MAKE_DIRECTORY ${folder})
    file(WRITE ${root}/${file} "#!/bin/sh\n")
    file(CHMOD ${root}/${file} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endforeach()
  foreach(variable PHALANX_NVCC PHALANX_CUDA_INCLUDE PHALANX_CUDART)
    unset(${variable} CACHE)
    unset(${variable})
  endforeach()
  set(PHALANX_CUDA ${wanted})
  set(PHALANX_CUDA_PLACES ${root})
  set(CMAKE_SYSTEM_PROCESSOR x86_64)
  include(${SOURCE_DIR}/kernels/cuda/detect_cuda.cmake)
  if(NOT "${PHALANX_HAS_CUDA}" STREQUAL "${found}" OR NOT "${PHALANX_CUDA_MISSING}" STREQUAL
                                                      "${missing}")
    message(SEND_ERROR "${name}: found ${PHALANX_HAS_CUDA}, missing '${PHALANX_CUDA_MISSING}'; "
                       "expected ${found}, '${missing}'")
  endif()
endfunction()

set(whole bin/nvcc include/cuda_runtime.h lib64/libcudart_static.a)
expect(one_folder AUTO "${whole}" ON "")
expect(wanted ON "${whole}" ON "")
expect(refused OFF "${whole}" OFF "")
expect(packages AUTO "bin/nvcc;include/cuda_runtime.h;lib/x86_64-linux-gnu/libcudart_static.a" ON "")
expect(targets AUTO
       "bin/nvcc;targets/x86_64-linux/include/cuda_runtime.h;targets/x86_64-linux/lib/libcudart_static.a"
       ON "")
expect(no_headers AUTO "bin/nvcc;lib64/libcudart_static.a" OFF "cuda_runtime.h")
expect(compiler_alone AUTO "bin/nvcc" OFF "cuda_runtime.h, libcudart_static.a")
expect(nothing AUTO "" OFF "nvcc, cuda_runtime.h, libcudart_static.a")
