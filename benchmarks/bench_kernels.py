"""Kernels against torch and numpy on the same inputs, beside the floor of the machine.

``pytest benchmarks/bench_kernels.py --benchmark-only`` times every row on one and on all threads;
``python benchmarks/bench_kernels.py`` prints a table: ours, torch and numpy take turns in one run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import baselines as base
import numpy as np
import pytest
import torch
from baselines import DIM, DOCUMENT_TOKENS, QUERY_TOKENS, Inputs, NumpyBaseline, TorchBaseline
from machine import Machine

import colbert_fast
from colbert_fast.kernels import ops

NPROBE = 4
CONTESTANTS = ("ours", "torch", "numpy")


class Row(NamedTuple):
    """One operation: who does it, how results may differ, how much work it is."""

    ours: Callable[[], Any]
    torch: Callable[[], Any]
    numpy: Callable[[], Any]
    agree: Callable[[np.ndarray, np.ndarray], bool]
    units: int  # tokens, points or centroids worked on
    floor_ns: float  # per unit, one core, from the rates of this machine
    flop: int = 0  # per unit; 0 where arithmetic is not the limit
    # What ours does once a call, and a search once an index or query; `main` takes its time off.
    once: Callable[[], Any] | None = None


def close(tolerance: float) -> Callable[[np.ndarray, np.ndarray], bool]:
    return lambda left, right: bool(np.abs(left - right).max() <= tolerance)


def mostly_equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Choices may differ where two scores are equal up to rounding."""
    return left.shape == right.shape and bool((left == right).mean() > 0.999)


def nearly_all_equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Two levels miss the nearest centroid of one point in a hundred."""
    return left.shape == right.shape and bool((left == right).mean() > 0.98)


def make_rows(inputs: Inputs, n_points: int, machine: Machine) -> dict[str, Row]:
    """Every row of the benchmark by name."""
    with_torch, with_numpy = TorchBaseline(inputs), NumpyBaseline(inputs)
    at_once = len(inputs.doclens)
    torch_at_once, numpy_at_once = TorchBaseline(inputs, at_once), NumpyBaseline(inputs, at_once)
    query, documents, doclens, centroids = inputs[:4]
    vectors = (inputs.codes, inputs.residuals, centroids, inputs.weights)
    fused = (query, inputs.codes, inputs.residuals, doclens, centroids, inputs.weights)
    n, num_centroids = len(documents), len(centroids)
    points, half = documents[:n_points], documents.astype(np.float16)
    torch_documents, torch_half = torch.from_numpy(documents), torch.from_numpy(half)
    torch_points = torch_documents[:n_points]
    scores = ops.centroid_scores(query, centroids)
    torch_scores, candidates = torch.from_numpy(scores), np.arange(len(doclens), dtype=np.int32)
    uneven = base.uneven_doclens(len(documents))
    token_flop, point_flop = 2 * DIM * QUERY_TOKENS, 2 * DIM * num_centroids
    token_bytes, score_bytes = 4 * DIM, 4 * QUERY_TOKENS
    gemm_ns, int8_ns = token_flop / machine.float32 * 1e9, token_flop / machine.int8 * 1e9
    assign_ns = point_flop / machine.float32 * 1e9

    def int8(n_docs: int | None = None) -> np.ndarray:
        lens = doclens[:n_docs]
        span = slice(int(lens.sum()))
        return ops.residual_maxsim(
            query, inputs.codes[span], inputs.residuals[span], lens, centroids, inputs.weights,
            precision="int8", inverse_norms=inputs.inverse_norms[span],
        )  # fmt: skip

    return {
        "residual_maxsim int8": Row(
            int8, torch_at_once.residual_maxsim, numpy_at_once.residual_maxsim,
            close(0.02 * QUERY_TOKENS), n, int8_ns, token_flop, once=lambda: int8(1),
        ),
        "  against cached blocks": Row(
            int8, with_torch.residual_maxsim, with_numpy.residual_maxsim,
            close(0.02 * QUERY_TOKENS), n, int8_ns, token_flop, once=lambda: int8(1),
        ),
        "residual_maxsim float32": Row(
            lambda: ops.residual_maxsim(*fused),
            with_torch.residual_maxsim, with_numpy.residual_maxsim,
            close(2e-5), n, gemm_ns, token_flop,
        ),
        "decompress": Row(
            lambda: ops.decompress(*vectors),
            with_torch.decompress, with_numpy.decompress, close(1e-6),
            n, (token_bytes + inputs.residuals.shape[1] + 4) / machine.memory * 1e9,
        ),
        "maxsim float32": Row(
            lambda: ops.maxsim(query, documents, doclens),
            lambda: with_torch.maxsim(torch_documents), lambda: with_numpy.maxsim(documents),
            close(2e-5), n, gemm_ns, token_flop,
        ),
        "  of uneven documents": Row(
            lambda: ops.maxsim(query, documents, uneven),
            lambda: with_torch.maxsim_uneven(torch_documents, torch.from_numpy(uneven)),
            lambda: with_numpy.maxsim_uneven(documents, uneven),
            close(2e-5), n, gemm_ns, token_flop,
        ),
        "maxsim float16": Row(
            lambda: ops.maxsim(query, half, doclens),
            lambda: with_torch.maxsim(torch_half), lambda: with_numpy.maxsim(half),
            close(2e-5), n, gemm_ns, token_flop,
        ),
        "centroid_scores": Row(
            lambda: ops.centroid_scores(query, centroids),
            with_torch.centroid_scores, with_numpy.centroid_scores, close(1e-5),
            num_centroids, gemm_ns, token_flop,
        ),
        "top_centroids": Row(
            lambda: ops.top_centroids(scores, NPROBE),
            lambda: with_torch.top_centroids(torch_scores, NPROBE),
            lambda: with_numpy.top_centroids(scores, NPROBE),
            mostly_equal, num_centroids, score_bytes / machine.cache * 1e9,
        ),
        "approximate_maxsim": Row(
            lambda: ops.approximate_maxsim(scores, inputs.codes, doclens, candidates),
            lambda: with_torch.approximate_maxsim(torch_scores),
            lambda: with_numpy.approximate_maxsim(scores),
            close(2e-5), n, score_bytes / machine.cache * 1e9,
        ),
        "assign": Row(
            lambda: ops.assign(points, centroids)[0],
            lambda: with_torch.assign(torch_points), lambda: with_numpy.assign(points),
            mostly_equal, n_points, assign_ns, point_flop,
        ),
        "  in two levels": Row(  # beside the int8 floor of looking at all centroids
            lambda: ops.assign(points, centroids, exact=False)[0],
            lambda: with_torch.assign(torch_points), lambda: with_numpy.assign(points),
            nearly_all_equal, n_points, point_flop / machine.int8 * 1e9, point_flop,
        ),
        "compress": Row(
            lambda: ops.compress(points, centroids, inputs.cutoffs)[1],
            lambda: with_torch.compress(torch_points), lambda: with_numpy.compress(points),
            nearly_all_equal, n_points, assign_ns, point_flop,
        ),
        "compress_trellis": Row(
            lambda: ops.compress_trellis(points, centroids, inputs.trellis, base.NBITS)[1],
            lambda: with_torch.compress_trellis(torch_points),
            lambda: with_numpy.compress_trellis(points),
            mostly_equal, n_points, assign_ns, point_flop,
        ),
        "accumulate": Row(
            lambda: ops.accumulate(documents, inputs.codes, num_centroids)[0],
            with_torch.accumulate, with_numpy.accumulate, close(1e-4),
            n, token_bytes / machine.memory * 1e9,
        ),
    }  # fmt: skip


def check(row: Row) -> None:
    """No number without the same answer from all three."""
    ours = np.asarray(row.ours())
    for other in (row.torch, row.numpy):
        assert row.agree(ours, np.asarray(other()))


NAMES = (
    "residual_maxsim int8", "  against cached blocks", "residual_maxsim float32", "decompress",
    "maxsim float32", "  of uneven documents", "maxsim float16", "centroid_scores", "top_centroids",
    "approximate_maxsim", "assign", "  in two levels", "compress", "compress_trellis", "accumulate",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> dict[str, Row]:
    small = request.config.getoption("benchmark_disable")
    inputs = base.make_inputs(*((64, 256) if small else (2048, 8192)))
    rows = make_rows(inputs, n_points=2048, machine=Machine.measure())
    assert tuple(rows) == NAMES
    return rows


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_kernel(
    benchmark: Any, rows: dict[str, Row], name: str, contestant: str, threads: int
) -> None:
    row = rows[name]
    check(row)
    benchmark.group = f"{name}, {threads} threads"
    benchmark(getattr(row, contestant))
    if benchmark.enabled:
        describe(benchmark.extra_info, row, benchmark.stats.stats.median, threads)


def describe(info: dict[str, Any], row: Row, seconds: float, threads: int) -> None:
    """Put rates and floors beside a time."""
    info["isa"], info["threads"] = colbert_fast.backend_info()["isa"], threads
    info["ns per unit"] = round(seconds / row.units * 1e9, 2)
    info["floor, ns per unit"] = round(row.floor_ns / threads, 2)
    if row.flop:
        info["GFLOP/s"] = round(row.flop * row.units / seconds / 1e9, 1)


def take_turns(row: Row, rounds: int, threads: int) -> list[float]:
    """Best seconds of each contestant, timed in turns so that a busy machine hits all alike.

    Of ours without what it does `once` a call, timed after it so that both find the same caches.
    One thread is timed by the processor's clock, which stops while other programs run.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    contestants = [row.ours, row.once or (lambda: None), row.torch, row.numpy]
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, seconds in zip(contestants, times, strict=True):
            start = clock()
            contestant()
            seconds.append(clock() - start)
    ours, once, *others = (min(seconds) for seconds in times)
    return [ours - once, *others]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--documents", type=int, default=2048)
    parser.add_argument("--centroids", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    machine = Machine.measure()
    inputs = base.make_inputs(options.documents, options.centroids)
    rows = make_rows(inputs, n_points=2048, machine=machine)
    print(
        f"{options.documents} documents of {DOCUMENT_TOKENS} tokens, K {options.centroids}, query "
        f"{QUERY_TOKENS} x {DIM}, isa {colbert_fast.backend_info()['isa']}, "
        f"{options.threads} thread(s), best of {options.rounds}; ns per token, point or centroid; "
        f"floors of matrix products, {machine.float32 / 1e9:.0f} GFLOP/s float32 and "
        f"{machine.int8 / 1e9:.0f} GOP/s int8, and of {machine.memory / 1e9:.0f} GB/s from memory "
        f"and {machine.cache / 1e9:.0f} from the cache"
    )
    spoiled = sorted(name for name in os.environ if name.startswith(("OPENBLAS_", "MKL_", "OMP_")))
    if spoiled:
        print(f"the baselines may be slowed by {', '.join(spoiled)}: unset them for a fair run")
    heads = ("ours", "torch", "numpy", "floor", "vs torch", "vs numpy", "vs floor")
    print(f"{'':24}" + "".join(f"{head:>10}" for head in heads))
    with base.limited_threads(options.threads):
        for name, row in rows.items():
            if options.only not in name:
                continue
            check(row)
            ours, *others = (
                t / row.units * 1e9 for t in take_turns(row, options.rounds, options.threads)
            )
            floor = row.floor_ns / options.threads
            ratios = [f"{other / ours:9.1f}x" for other in others] + [f"{ours / floor:9.1f}x"]
            times = "".join(f"{t:10.2f}" for t in (ours, *others, floor))
            print(f"{name:24}{times}{''.join(ratios)}")


if __name__ == "__main__":
    main()
