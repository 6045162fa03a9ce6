#!/usr/bin/env bash
# Configures, builds and runs the tests on a GPU: needs CMake, a C++20 compiler, CUDA, Abseil,
# GoogleTest and nlohmann/json alone. Where no device is present everything is skipped, saying so.
#   tests/gpu/run.sh [--sanitize] [--timing] [--dir FOLDER] [--build FOLDER] [-- CMAKE_OPTION ...]
# --sanitize  the op tests and a part of the decoder's under compute-sanitizer's memcheck, racecheck
#             and initcheck, too
# --timing    the figures of RESULTS.md, as timing.json in the folder of the build
# --dir       where --timing makes its checkpoints, of 16 GB at most, and removes them: best in memory
#             (/dev/shm); else the folder for temporary files
# CMake options: -DCMAKE_PREFIX_PATH=... where the libraries lie elsewhere.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/gpu
sanitize=0
timing=0
timing_options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --sanitize) sanitize=1 ;;
    --timing) timing=1 ;;
    --dir)
      timing_options=(--dir "${2:?--dir wants a folder}")
      shift
      ;;
    --build)
      build=${2:?--build wants a folder}
      shift
      ;;
    --)
      shift
      break
      ;;
    *)
      echo "$0: unknown option $1; see the head of this file" >&2
      exit 2
      ;;
  esac
  shift
done

generator=()
if command -v ninja >/dev/null && [[ ! -e $build/CMakeCache.txt ]]; then generator=(-G Ninja); fi
cmake -S "$here" -B "$build" "${generator[@]}" "$@"
cmake --build "$build" --parallel "$(nproc)" --target gpu_ops_test gpu_decoder_test gpu_engine_test gpu_timing
ctest --test-dir "$build" -L gpu --output-on-failure

if ((sanitize)); then
  if "$build/gpu_ops_test" --gtest_list_tests | grep '^skipped: '; then
    echo "compute-sanitizer: skipped, too"
  elif ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer: not in PATH; it comes with the CUDA toolkit" >&2
    exit 1
  else
    # Without cuBLASLt's kernels, which aren't ours to check.
    for tool in memcheck racecheck initcheck; do
      echo "compute-sanitizer $tool"
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/gpu_ops_test" \
        --gtest_filter='-*Invariance*:*EveryNumberOfRows*:*/cuda_fast'
      compute-sanitizer --tool "$tool" --error-exitcode 1 "$build/gpu_decoder_test" \
        --gtest_filter='*/DecoderOnDevice.GraphsDoNotMatter/llama_gqa_tied_bf16:*/DecoderOnDevice.GraphsDoNotMatter/qwen3_moe'
    done
  fi
fi

if ((timing)); then
  "$build/gpu_timing" "${timing_options[@]}" >"$build/timing.json"
  [[ ! -s $build/timing.json ]] || echo "figures: $build/timing.json"
fi
