#!/usr/bin/env bash
# From a fresh Debian 12 machine to a streamed answer: installs what is missing, builds, starts two
# ranks under mpirun with the demo model and lets them tell a story. Arguments go to `phalanx run`.
set -euo pipefail
cd "$(dirname "$0")/.."
launcher/install-dependencies.sh

# The CUDA part is built only where a driver can use it, so that the first minutes stay short.
cuda=OFF
[[ -e /proc/driver/nvidia/version ]] && cuda=AUTO
ccache=()
if command -v ccache >/dev/null; then
  ccache=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  # As a variable of the environment: a flag is warned of where CUDA is not built.
  export CMAKE_CUDA_COMPILER_LAUNCHER=ccache
fi
if [[ ! -f build/release/build.ninja ]]; then
  # The tests need more packages; tests/run.sh brings them and configures again. Several files as one
  # take half the time.
  cmake --preset release -DPHALANX_TESTS=OFF -DPHALANX_CUDA="$cuda" -DCMAKE_UNITY_BUILD=ON "${ccache[@]}" >/dev/null
fi
cmake --build --preset release --target phalanx

if [[ $# -gt 0 ]]; then
  exec build/release/phalanx run --model launcher/demo-model --layout tp=2 "$@"
fi
exec build/release/phalanx run --model launcher/demo-model --layout tp=2 \
  --prompt "Once upon a time" --temperature 0.7 --seed 7 --max-tokens 200
