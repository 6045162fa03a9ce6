#!/usr/bin/env bash
# Installs what Phalanx builds with, on Debian 12. Does nothing, and needs no privileges, where it is
# all there. With --tests: also what the tests use (GoogleTest, clang-format, Python with grpcio).
# With --slurm: also Slurm and munge, for tests/slurm alone, which starts its own daemons.
# CUDA's toolkit comes from NVIDIA and is left to whoever wants the GPU backend; it is used where it is.
set -euo pipefail

packages=(g++ cmake ninja-build ccache pkg-config libgrpc++-dev protobuf-compiler
  protobuf-compiler-grpc libprotobuf-dev libabsl-dev libopenmpi-dev openmpi-bin libcli11-dev
  libyaml-cpp-dev nlohmann-json3-dev libspdlog-dev libicu-dev libpcre2-dev libsentencepiece-dev
  libhwloc-dev libxxhash-dev)
for option in "$@"; do
  case "$option" in
    --tests)
      packages+=(clang-format libgtest-dev libgmock-dev python3 python3-grpcio python3-protobuf
        iproute2)
      ;;
    --slurm) packages+=(slurm-wlm munge libpmix2) ;;
    *) echo "install-dependencies: unknown option $option; there are --tests and --slurm" >&2
      exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ "$status" == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "install-dependencies: this machine has no apt-get; install by hand: ${missing[*]}" >&2
  exit 1
fi
sudo=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "install-dependencies: not root and no sudo; ask an administrator for: ${missing[*]}" >&2
    exit 1
  fi
  sudo=(sudo)
fi
echo "install-dependencies: installing ${#missing[@]} packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq >&2
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
