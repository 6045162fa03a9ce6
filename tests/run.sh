#!/usr/bin/env bash
# Installs what is missing, builds and runs the tests.
#   ./tests/run.sh                 everything that CI runs: release tests, then the sanitizers
#   ./tests/run.sh release         one preset only (release, debug, asan, tsan)
#   ./tests/run.sh release -L unit further arguments go to ctest
set -euo pipefail
cd "$(dirname "$0")/.."
launcher/install-dependencies.sh --tests

launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
jobs=$(nproc)

# build PRESET [TARGET ...]
build() {
  local preset=$1
  shift
  local targets=()
  [[ $# -eq 0 ]] || targets=(--target "$@")
  echo "== build $preset"
  cmake --preset "$preset" "${launcher[@]}" >"/tmp/phalanx-configure-$preset.log" 2>&1 ||
    { cat "/tmp/phalanx-configure-$preset.log"; return 1; }
  cmake --build --preset "$preset" -j "$jobs" "${targets[@]}"
}

# check PRESET [CTEST ARGUMENT ...]
check() {
  local preset=$1
  shift
  echo "== test $preset $*"
  ctest --test-dir "build/$preset" --output-on-failure -j "$jobs" --no-tests=error "$@" |
    tee "/tmp/phalanx-ctest-$preset.log"
}

failed=0
if [[ $# -gt 0 ]]; then
  preset=$1
  shift
  build "$preset"
  check "$preset" "$@" || failed=1
  ran=("$preset")
else
  build release
  check release || failed=1
  build asan sanitized_tests
  check asan -L 'unit|multirank' || failed=1
  build tsan tsan_tests
  check tsan -L 'tsan' || failed=1
  ran=(release asan tsan)
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
