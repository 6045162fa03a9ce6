#!/usr/bin/env bash
# clang-format over every source; with --tidy also clang-tidy (minutes a core), for which it configures a
# folder of its own and makes the generated headers there: tests/lint.sh --tidy [FILE ...].
set -euo pipefail
cd "$(dirname "$0")/.."
# The files of the repository, and those that are to be, that match.
files_like() {
  git ls-files -co --exclude-standard "$@" | while IFS= read -r file; do
    [[ ! -e "$file" ]] || echo "$file"
  done
}
mapfile -t sources < <(files_like '*.h' '*.cc' '*.inc' '*.cu' '*.cuh' | grep -v '^tests/goldens/')
# The files that are lists of numbers keep their own form.
clang-format --dry-run --Werror "${sources[@]}"
echo "clang-format: ${#sources[@]} files clean"
[[ "${1:-}" == --tidy ]] || exit 0
shift
files=("$@")
build=build/tidy
# Each file with a command of its own: CMAKE_UNITY_BUILD has none.
cmake --preset release -B "$build" -DCMAKE_UNITY_BUILD=OFF >/dev/null
cmake --build "$build" -j "$(nproc)" --target phalanx_generated
[[ ${#files[@]} -gt 0 ]] || mapfile -t files < <(files_like '*.cc' | grep -v '^tests/')
# GCC's precompiled headers are not for clang.
commands=$(mktemp -d)
trap 'rm -rf "$commands"' EXIT
sed -E 's# -Winvalid-pch| -fpch-preprocess| -include [^ ]*cmake_pch\.hxx##g' \
  "$build/compile_commands.json" >"$commands/compile_commands.json"
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy --quiet -p "$commands" --extra-arg=-Wno-unknown-warning-option
echo "clang-tidy: ${#files[@]} files clean"
