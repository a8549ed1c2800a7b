#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, compute-sanitizer, benchmarks. No internet is needed if
# scikit-build-core, pybind11, pytest and torch (CUDA) are installed and nvcc is on PATH. Below 9
# minutes; a part that has passed is not run again.
#
#   benchmarks/gpu.sh [build] [tests] [sanitizer] [bench]     by default all, in this order
#
# Logs, the table of results and a mark for each finished part go to GPU_RESULTS (build-gpu).
set -euo pipefail
cd "$(dirname "$0")/.."

readonly results=${GPU_RESULTS:-$PWD/build-gpu} python=${PYTHON:-python3}
mkdir -p "$results"
export PYTHONUNBUFFERED=1 COLBERT_FAST_REQUIRE_CUDA=1

build() {
  "$python" -m pip install --no-build-isolation --no-deps --no-index . \
    -Cbuild-dir="$results/build" -Ccmake.define.COLBERT_FAST_CUDA=ON \
    -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-native}"
  (cd / && "$python" -c 'from colbert_fast.kernels.backend import backend_info as i; print(i())')
}

tests() {
  "$python" -m pytest -q tests/test_cuda.py tests/test_cuda_search.py tests/test_build_cuda.py \
    tests/test_cuda_binary.py
}

sanitizer() { # a few of the tests: the tools slow kernels down a hundredfold
  local tool
  for tool in memcheck racecheck; do
    timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q tests/test_cuda.py tests/test_cuda_search.py \
      -k "8-96 or 15-128 or test_pack_and_unpack or 2-100"
  done
}

bench() { "$python" benchmarks/bench_cuda.py | tee "$results/table.md"; }

[[ $# -gt 0 ]] || set -- build tests sanitizer bench
for part in "$@"; do
  [[ $part =~ ^(build|tests|sanitizer|bench)$ ]] || { echo "no part '$part'" >&2; exit 2; }
  if [[ -e $results/$part.passed ]]; then
    echo "== $part: passed before"
    continue
  fi
  echo "== $part"
  start=$SECONDS
  "$part" 2>&1 | tee "$results/$part.log"
  touch "$results/$part.passed"
  echo "== $part: $((SECONDS - start)) s"
done
