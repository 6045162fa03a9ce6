#!/usr/bin/env bash
# Installs what is missing, builds and runs the tests.
#   ./tests/run.sh                 every test, as CI runs them
#   ./tests/run.sh release -L unit a preset (release, debug, asan, tsan); the rest goes to ctest
#   ./tests/run.sh asan            unit and multirank tests under ASan and UBSan
#   ./tests/run.sh tsan            those of them that link neither gRPC nor MPI under TSan
#   ./tests/run.sh all             release, asan and tsan
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
ran=()
# run PRESET [CTEST ARGUMENT ...]
run() {
  local preset=$1
  shift
  case "$preset" in
    asan)
      build asan sanitized_tests
      check asan -L 'unit|multirank' "$@" || failed=1
      ;;
    tsan)
      build tsan tsan_tests
      check tsan -L tsan "$@" || failed=1
      ;;
    *)
      build "$preset"
      check "$preset" "$@" || failed=1
      ;;
  esac
  ran+=("$preset")
}

if [[ "${1:-}" == all ]]; then
  run release
  run asan
  run tsan
else
  [[ -z "${CI:-}" ]] || tests/lint.sh
  preset=${1:-release}
  run "$preset" "${@:2}"
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
