#!/usr/bin/env bash
# Everything that needs a GPU: build, tests, compute-sanitizer, benchmarks. No internet is needed if
# scikit-build-core, pybind11, pytest and torch (CUDA) are installed and nvcc is on PATH. Below 9
# minutes where nothing hangs; what fails keeps nothing from running after it, but for the build.
#
#   benchmarks/gpu.sh [build] [tests] [sanitizer] [bench]     by default all, in this order
#
# A log for each part and the table of results go to GPU_RESULTS (build-gpu/results). Building again
# compiles only what has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly results=${GPU_RESULTS:-$PWD/build-gpu/results} python=${PYTHON:-python3}
mkdir -p "$results"
export PYTHONUNBUFFERED=1 COLBERT_FAST_REQUIRE_CUDA=1
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" # make's is 1

build() {
  "$python" -m pip install --no-build-isolation --no-deps --no-index . \
    -Cbuild-dir="$PWD/build-gpu/cmake" -Ccmake.define.COLBERT_FAST_CUDA=ON \
    -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-native}" \
    && (cd / && "$python" -c \
      'from colbert_fast.kernels.backend import backend_info as i; print(i())')
}

# Warnings of versions of torch and numpy that nobody has tried are no failures here. A kernel that
# hangs or spoils the device's context must not take the other parts' time or tests with it.
run_pytest() { timeout -k 5 180 "$@" -q -W default; }

tests() {
  local file status=0
  for file in tests/test_cuda.py tests/test_cuda_search.py tests/test_build_cuda.py; do
    run_pytest "$python" -m pytest "$file" || status=1
  done
  return $status
}

# A few of the tests: the tools slow kernels down a hundredfold. Without torch's cache each tensor
# is an allocation of its own, so that memcheck sees what lies beyond it.
sanitizer() {
  local tool status=0
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 run_pytest compute-sanitizer --tool "$tool" \
      --error-exitcode 9 "$python" -m pytest tests/test_cuda.py tests/test_cuda_search.py \
      -k "8-96 or 15-128 or test_pack_and_unpack or 2-100 or (test_compress and 8-2)" || status=1
  done
  return $status
}

bench() { timeout -k 5 180 "$python" benchmarks/bench_cuda.py | tee "$results/table.md"; }

[[ $# -gt 0 ]] || set -- build tests sanitizer bench
failed=()
for part in "$@"; do
  [[ $part =~ ^(build|tests|sanitizer|bench)$ ]] || { echo "no part '$part'" >&2; exit 2; }
  echo "== $part"
  start=$SECONDS
  "$part" 2>&1 | tee "$results/$part.log" || failed+=("$part")
  echo "== $part: $((SECONDS - start)) s"
  [[ " ${failed[*]} " != *" build "* ]] || break
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" >&2; exit 1; }
