"""MaxSim in training, forward and backward, beside the padded einsum on the same batch.

``pytest benchmarks/bench_train.py --benchmark-only`` times every row on one and on all threads;
``python benchmarks/bench_train.py`` prints a table: both take turns in one run, and memory is what
a step adds to its inputs at its peak, in a process of its own.

The baseline is the fastest way tried to write it in torch: einsum over documents padded to the
longest, a mask that is added, and a maximum that keeps its indices. Ours takes the tokens without
padding. The floor is their product with the query's at this machine's GEMM rate, then reading them
once more and writing their gradients; of memory, scores and gradients of the unpadded tokens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from baselines import DIM, QUERY_TOKENS, limited_threads
from machine import Machine

import colbert_fast
from colbert_fast.kernels import autograd

NWAY, LONGEST, QUERIES = 32, 180, 8
CONTESTANTS = ("ours", "padded")
PAIRS = ("own documents", "all documents")
LENGTHS = ("180", "10 to 180")


class Batch(NamedTuple):
    """The same documents in both layouts, and a gradient for the scores."""

    query: torch.Tensor  # (b, QUERY_TOKENS, DIM)
    tokens: torch.Tensor  # (n_tokens, DIM)
    doclens: torch.Tensor  # int32 (b * NWAY,)
    padded: torch.Tensor  # (b * NWAY, longest, DIM)
    bias: torch.Tensor  # (b * NWAY, longest), 0 for tokens and -inf for padding
    grad: torch.Tensor  # (b, NWAY) or (b, b * NWAY)


def make_batch(pairs: str, lengths: str, b: int) -> Batch:
    """Random unit vectors, seeded."""
    torch.manual_seed(2112)
    query = torch.nn.functional.normalize(torch.randn(b, QUERY_TOKENS, DIM), dim=-1)
    shortest = 10 if lengths == "10 to 180" else LONGEST
    doclens = torch.randint(shortest, LONGEST + 1, (b * NWAY,), dtype=torch.int32)
    doclens[0] = LONGEST
    there = torch.arange(LONGEST) < doclens[:, None]
    padded = torch.nn.functional.normalize(torch.randn(b * NWAY, LONGEST, DIM), dim=-1)
    padded *= there[..., None]
    bias = torch.where(there, 0.0, -torch.inf)
    grad = torch.randn(b, NWAY if pairs == "own documents" else b * NWAY)
    return Batch(query, padded[there], doclens, padded, bias, grad)


def ours(batch: Batch, query: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    own = NWAY if batch.grad.shape[1] == NWAY else None
    return autograd.maxsim(query, documents, batch.doclens, documents_per_query=own)


def padded(batch: Batch, query: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    if batch.grad.shape[1] == NWAY:
        by_query = documents.unflatten(0, (-1, NWAY))
        similarities = torch.einsum("bqd,bntd->bntq", query, by_query)
        similarities = similarities + batch.bias.unflatten(0, (-1, NWAY))[..., None]
        return similarities.max(2).values.sum(-1)
    similarities = torch.einsum("bqd,ntd->bqnt", query, documents) + batch.bias
    return similarities.max(-1).values.sum(1)


def step(batch: Batch, contestant: str) -> tuple[torch.Tensor, ...]:
    """Scores and the gradients by query and documents."""
    documents = batch.tokens if contestant == "ours" else batch.padded
    query, documents = (x.detach().requires_grad_() for x in (batch.query, documents))
    scores = (ours if contestant == "ours" else padded)(batch, query, documents)
    return scores.detach(), *torch.autograd.grad(scores, (query, documents), batch.grad)


def check(batch: Batch) -> None:
    """No number without the same answer from both."""
    scores, by_query, by_tokens = step(batch, "ours")
    expected, by_padded_query, by_padded = step(batch, "padded")
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)
    # Two tokens of a document that are equally good up to rounding: either may have the gradient.
    for left, right in ((by_query, by_padded_query), (by_tokens, by_padded[batch.bias == 0])):
        rows = (left - right).abs().amax(-1) > 1e-4
        assert rows.float().mean() < 1e-3


def floor_seconds(batch: Batch) -> float:
    machine = Machine.measure()
    queries_of_a_document = batch.grad.shape[1] // NWAY
    flop = 2 * len(batch.tokens) * QUERY_TOKENS * DIM * queries_of_a_document
    return flop / machine.float32 + 2 * batch.tokens.nbytes / machine.memory


def floor_bytes(batch: Batch) -> int:
    return sum(x.nbytes for x in (batch.query, batch.tokens, batch.grad))


def resident(key: str) -> int:
    """VmHWM or VmRSS of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kib) * 1024


def print_peak(contestant: str, pairs: str, lengths: str, b: int) -> None:
    """What one step adds to the inputs at its peak, by the kernel's high-water mark."""
    small, batch = make_batch(pairs, lengths, 1), make_batch(pairs, lengths, b)
    step(small, contestant)  # what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before = resident("VmRSS")
    results = step(batch, contestant)
    print(resident("VmHWM") - before)
    del results  # until here


def peak_bytes(contestant: str, pairs: str, lengths: str, b: int = QUERIES) -> int:
    command = [sys.executable, __file__, "--peak", contestant, pairs, lengths, "--queries", str(b)]
    # What is freed goes back to the system at once, or the first step's would serve the second.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(run.stdout)


@pytest.fixture(scope="module")
def queries(request: pytest.FixtureRequest) -> int:
    return 2 if request.config.getoption("benchmark_disable") else QUERIES


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_step(
    benchmark: Any, queries: int, pairs: str, lengths: str, contestant: str, threads: int
) -> None:
    batch = make_batch(pairs, lengths, queries)
    check(batch)
    benchmark.group = f"{pairs} of {lengths} tokens, {threads} threads"
    benchmark(step, batch, contestant)
    if benchmark.enabled:
        benchmark.extra_info["isa"] = colbert_fast.backend_info()["isa"]
        benchmark.extra_info["floor, ms"] = round(floor_seconds(batch) / threads * 1e3, 2)
        benchmark.extra_info["floor, MB"] = round(floor_bytes(batch) / 1e6, 1)
        benchmark.extra_info["peak, MB"] = round(peak_bytes(contestant, pairs, lengths) / 1e6, 1)


def take_turns(batch: Batch, rounds: int, clock: Callable[[], float]) -> list[float]:
    """Best seconds of each contestant, timed in turns so that a busy machine hits both alike."""
    times: list[list[float]] = [[] for _ in CONTESTANTS]
    for _ in range(rounds):
        for contestant, seconds in zip(CONTESTANTS, times, strict=True):
            start = clock()
            step(batch, contestant)
            seconds.append(clock() - start)
    return [min(seconds) for seconds in times]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return print_peak(*options.peak, options.queries)
    machine = Machine.measure()
    print(
        f"{options.queries} queries of {QUERY_TOKENS} x {DIM}, {NWAY} documents each, isa "
        f"{colbert_fast.backend_info()['isa']}, {options.threads} thread(s), best of "
        f"{options.rounds}; floor at {machine.float32 / 1e9:.0f} GFLOP/s and "
        f"{machine.memory / 1e9:.0f} GB/s a core"
    )
    heads = ["ours, ms", "padded", "floor", "ratio", "ours, MB", "padded", "floor", "ratio"]
    print(f"{'':30}" + "".join(f"{head:>10}" for head in heads))
    # One thread is timed by the processor's clock, which stops while other programs run.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for pairs in PAIRS:
        for lengths in LENGTHS:
            batch = make_batch(pairs, lengths, options.queries)
            with limited_threads(options.threads):
                check(batch)
                mine, theirs = take_turns(batch, options.rounds, clock)
            floor = floor_seconds(batch) / options.threads
            peaks = [peak_bytes(each, pairs, lengths, options.queries) for each in CONTESTANTS]
            cells = [f"{x * 1e3:10.1f}" for x in (mine, theirs, floor)]
            cells += [f"{mine / theirs:9.2f}x"]
            cells += [f"{x / 1e6:10.1f}" for x in (*peaks, floor_bytes(batch))]
            cells += [f"{peaks[0] / peaks[1]:9.2f}x"]
            print(f"{f'{pairs}, {lengths} tokens':30}" + "".join(cells))
    return None


if __name__ == "__main__":
    main()
