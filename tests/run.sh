#!/usr/bin/env bash
# Installs what is missing, builds and runs the tests.
#   ./tests/run.sh                 every test; where CI is set, also what CI adds (below)
#   ./tests/run.sh release -L unit a preset (release, debug, asan, tsan); the rest goes to ctest
#   ./tests/run.sh asan            unit and multirank tests under ASan and UBSan
#   ./tests/run.sh tsan            those of them that link neither gRPC nor MPI under TSan
#   ./tests/run.sh all             release, asan and tsan
# CI adds lint.sh. tests/README.md has the times.
set -euo pipefail
cd "$(dirname "$0")/.."
launcher/install-dependencies.sh --tests
# The tests of Slurm need root as their daemons do, and are skipped without.
if [[ $(id -u) -eq 0 && ($# -eq 0 || "$1" == all || "$*" == *slurm*) ]]; then
  launcher/install-dependencies.sh --slurm || echo "no Slurm here: its tests will be skipped" >&2
fi

launcher=()
command -v ccache >/dev/null &&
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
jobs=$(nproc)

configure() {
  # Several files as one take half the time; the sanitizers' builds show what a file forgot to include.
  local unity=OFF
  [[ "$1" != release ]] || unity=ON
  # quickstart.sh has left OFF in the same folder where there is no driver; a toolkit is enough here.
  cmake --preset "$1" -DPHALANX_TESTS=ON -DPHALANX_CUDA=AUTO -DCMAKE_UNITY_BUILD=$unity "${launcher[@]}" >"/tmp/phalanx-configure-$1.log" 2>&1 ||
    { cat "/tmp/phalanx-configure-$1.log"; return 1; }
}

failed=0
ran=()
# run PRESET [CTEST ARGUMENT ...]
run() {
  local preset=$1
  shift
  local targets=()
  echo "== build $preset"
  configure "$preset"
  if [[ "$preset" == asan || "$preset" == tsan ]]; then
    if [[ "$preset" == asan ]]; then set -- -L 'unit|multirank' "$@"; else set -- -L tsan "$@"; fi
    # Only the tests that are to run: each has the name of its executable.
    mapfile -t targets < <(ctest --test-dir "build/$preset" -N "$@" | sed -n 's/^ *Test *#[0-9]*: //p')
    [[ ${#targets[@]} -gt 0 ]] || { echo "no test matches: $*" >&2; return 1; }
    targets=(--target "${targets[@]}")
  fi
  cmake --build --preset "$preset" -j "$jobs" "${targets[@]}"
  echo "== test $preset $*"
  # What takes minutes (links cut, nodes that fail) is run by its label: -L hosts, -L slurm.
  [[ $# -gt 0 || "$preset" != release ]] || set -- -LE long
  ctest --test-dir "build/$preset" --output-on-failure -j "$jobs" --no-tests=error "$@" |
    tee "/tmp/phalanx-ctest-$preset.log" || failed=1
  ran+=("$preset")
}

if [[ "${1:-}" == all ]]; then
  run release
  run asan
  run tsan
elif [[ $# -eq 0 && -n "${CI:-}" ]]; then
  tests/lint.sh
  run release
else
  run "${1:-release}" "${@:2}"
fi

passed=0
broken=0
skipped=0
for preset in "${ran[@]}"; do
  log="/tmp/phalanx-ctest-$preset.log"
  passed=$((passed + $(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+:.* Passed ' "$log" || true)))
  broken=$((broken + $(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+:.*(\*\*\*Failed|\*\*\*Timeout|\*\*\*Exception|Not Run)' "$log" || true)))
  skipped=$((skipped + $(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+:.*\*\*\*Skipped' "$log" || true)))
done
echo "$passed passed, $broken failed, $skipped skipped"
exit "$failed"
