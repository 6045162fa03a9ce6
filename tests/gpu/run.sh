#!/usr/bin/env bash
# Configures, builds and runs the tests on a GPU: needs CMake, a C++20 compiler, CUDA, Abseil,
# GoogleTest and nlohmann/json alone. Where no device is present everything is skipped, saying so.
#   tests/gpu/run.sh [--no-tests] [--sanitize] [--timing] [--dir FOLDER] [--build FOLDER]
#                    [-- CMAKE_OPTION ...]
# --no-tests  builds, and runs no more than what else is asked for
# --sanitize  the op tests and a part of the decoder's under compute-sanitizer's memcheck, racecheck
#             and initcheck, too
# --timing    the figures of RESULTS.md, as timing.json in the folder of the build
# --dir       where --timing makes its checkpoints, of 16 GB at most, and removes them: best in memory
#             (/dev/shm); else the folder for temporary files
# CMake options: -DCMAKE_PREFIX_PATH=... where the libraries lie elsewhere;
# -DCMAKE_CUDA_ARCHITECTURES=90a-real for one card alone, in a third of the time;
# -DPHALANX_WERROR=OFF where another compiler warns of more.
# What fails keeps nothing after it from running; the end says what failed. Outputs are in the build's
# folder as they come: tests.log, decoder.*.log, sanitize.*.log, timing.log.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build/gpu
tests=1
sanitize=0
timing=0
timing_options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --no-tests) tests=0 ;;
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

failed=()
# note NAME COMMAND ...: its output to the screen and to NAME.log.
note() {
  local name=$1
  shift
  "$@" 2>&1 | tee "$build/$name.log" || failed+=("$name")
}

# An empty filter would be a test that can't fail.
lists() { [[ $("$1" --gtest_list_tests --gtest_filter="$2" | grep -c '^  ') -ge $3 ]]; }

device=1
if "$build/gpu_ops_test" --gtest_list_tests | grep '^skipped: '; then
  device=0
elif ! lists "$build/gpu_ops_test" '*/cuda_fast*' 1; then
  echo "profile fast is left out of the op tests: libcublasLt.so.13 isn't where the linker looks (LD_LIBRARY_PATH)" >&2
fi

if ((tests)); then
  note tests ctest --test-dir "$build" -L gpu -E gpu_decoder_test --output-on-failure --verbose
  # Most of the decoder's time is the host's: in processes that share the device.
  shards=$(($(nproc) < 8 ? $(nproc) : 8))
  ((device)) || shards=1
  pids=()
  # Jobs behind a script's back don't hear Ctrl-C.
  trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
  trap 'exit 130' INT TERM
  rm -f "$build"/decoder.*.log
  for ((i = 0; i < shards; ++i)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i timeout -k 30 3600 "$build/gpu_decoder_test" \
      >"$build/decoder.$i.log" 2>&1 &
    pids+=($!)
  done
  for ((i = 0; i < shards; ++i)); do
    wait "${pids[i]}" || failed+=("decoder.$i")
    grep -E '^\[  (PASSED|FAILED)|^skipped: ' "$build/decoder.$i.log" || true
  done
  trap - EXIT INT TERM
fi

if ((sanitize)); then
  if ((!device)); then
    echo "compute-sanitizer: skipped, too"
  elif ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer: not in PATH; it comes with the CUDA toolkit" >&2
    failed+=("sanitize")
  else
    # Without cuBLASLt's kernels, which aren't ours to check.
    ops='-*Invariance*:*EveryNumberOfRows*:*/cuda_fast'
    steps='*/DecoderOnDevice.NeitherGraphsNorEarlyStartsMatter/llama_gqa_tied_bf16'
    steps+=':*/DecoderOnDevice.NeitherGraphsNorEarlyStartsMatter/qwen3_moe'
    lists "$build/gpu_ops_test" "$ops" 50 || failed+=("sanitize: the op tests' filter")
    lists "$build/gpu_decoder_test" "$steps" 2 || failed+=("sanitize: the decoder's filter")
    for tool in memcheck racecheck initcheck; do
      echo "compute-sanitizer $tool"
      note "sanitize.$tool.ops" compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$build/gpu_ops_test" --gtest_filter="$ops"
      note "sanitize.$tool.decoder" compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$build/gpu_decoder_test" --gtest_filter="$steps"
    done
  fi
fi

if ((timing)); then
  "$build/gpu_timing" "${timing_options[@]}" 2>&1 >"$build/timing.json" | tee "$build/timing.log" ||
    failed+=("timing")
  [[ ! -s $build/timing.json ]] || echo "figures: $build/timing.json"
fi

if ((${#failed[@]} > 0)); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
