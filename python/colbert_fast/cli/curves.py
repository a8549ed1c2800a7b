"""The recall-latency curves of an index: measured, as a table, and drawn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from colbert_fast.cli.shell import check_parent
from colbert_fast.errors import MissingDependencyError
from colbert_fast.index import Index
from colbert_fast.kernels.backend import backend_info
from colbert_fast.search.params import DenseMode, SearchParams
from colbert_fast.search.tune import check_not_empty, pseudo_queries

__all__ = ["Asked", "Report", "Row", "bench_queries", "check_plot", "draw", "measure", "table"]

_FACTORS = (0.25, 0.5, 1, 2, 4)  # on the defaults of nprobe and ndocs
_TARGETS = (0.9, 0.95, 0.99)  # of a tuned index
_ROUNDS = 3  # every query, and all in one call, are timed so often, and the best time counts
_PLOTS = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Query embeddings, and the ids that each leaves out of account: those it was made from."""

    vectors: Sequence[Any]
    own: Sequence[set[Any]]
    source: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of searching, and what it came to.

    `recall` is the mean share of the best k of exhaustive search; `p50` and `p95` are milliseconds
    of single queries, `qps` queries a second of all in one call.
    """

    k: int
    way: str
    nprobe: int | None
    ndocs: int | None
    recall: float
    p50: float
    p95: float
    qps: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows, and what they were measured on."""

    title: str
    rows: list[Row]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def bench_queries(index: Index, given: Sequence[Any] | None, num_queries: int, seed: int) -> Asked:
    """The queries given, texts encoded; or else some made from the index's documents."""
    check_not_empty(index._snapshot)
    if given is None:
        made = pseudo_queries(index._snapshot, num_queries, seed)
        ids = index._snapshot.library.ids  # by position, which deleted documents have too
        own = [{ids[position] for position in row} for row in made.own.tolist()]
        return Asked(made.vectors, own, "pseudo-queries")
    if not given:
        raise ValueError("queries: there are none")
    vectors = index.model.encode_queries(given) if isinstance(given[0], str) else given
    return Asked(vectors, [set() for _ in vectors], "queries")


def measure(index: Index, asked: Asked, ks: Sequence[int], *, progress: bool) -> Report:
    """Search for all queries in every way, for every k."""
    info, backend = index.info(), backend_info()
    title = (
        f"{info['documents']} documents, {info['tokens']} tokens, codec {info['codec']} with "
        f"{info['nbits']} bits, {info['vector_bytes_per_token']:.1f} bytes/token\n"
        f"{len(asked.vectors)} {asked.source}, {backend['threads']} "
        f"thread{'s' if backend['threads'] > 1 else ''}, {backend['isa']}"
    )
    extra = max(map(len, asked.own))
    rows = []
    for k in ks:
        truth = _found(index.search(asked.vectors, k + extra, exhaustive=True), asked, k)
        ways = list(_ways(index, k, extra))
        times = _time(index, asked, [(k + extra, options) for *_, options in ways], progress)
        for (way, params, options), (*single, batch) in zip(ways, times.tolist(), strict=True):
            hits = index.search(asked.vectors, k + extra, **options)
            qps = 1000 * len(asked.vectors) / batch
            pairs = zip(_found(hits, asked, k), truth, strict=True)
            recall = float(np.mean([len(a & b) / len(b) for a, b in pairs if b]))
            p50, p95 = np.percentile(single, [50, 95]).tolist()
            nprobe, ndocs = (None, None) if params.exhaustive else (params.nprobe, params.ndocs)
            rows.append(Row(k, way, nprobe, ndocs, recall, p50, p95, qps))
    return Report(title, rows)


def _ways(index: Index, k: int, extra: int) -> Iterator[tuple[str, SearchParams, dict[str, Any]]]:
    """Name, parameters and options of every search to measure."""
    for mode in get_args(DenseMode):
        usual = SearchParams.resolve(k, mode=mode, num_documents=len(index))
        points = {
            (max(1, round(usual.nprobe * factor)), max(k + extra, round(usual.ndocs * factor)))
            for factor in _FACTORS
        }
        for nprobe, ndocs in sorted(points):
            options = {"nprobe": nprobe, "ndocs": ndocs, "mode": mode}
            yield mode, SearchParams.resolve(k, **options), options
    if index.tuning is not None and k + extra <= index.tuning.curves[-1].k:
        for target in _TARGETS:
            options = {"recall": target}
            params = SearchParams.resolve(k + extra, recall=target, tuning=index.tuning)
            yield f"recall={target:g}", params, options
    options = {"exhaustive": True}
    yield "exhaustive", SearchParams.resolve(k, exhaustive=True), options


def _found(hits: Sequence[Sequence[Any]], asked: Asked, k: int) -> list[set[Any]]:
    rows = zip(hits, asked.own, strict=True)
    return [set([hit.id for hit in row if hit.id not in own][:k]) for row, own in rows]


def _time(
    index: Index, asked: Asked, ways: Sequence[tuple[int, dict[str, Any]]], progress: bool
) -> np.ndarray[Any, Any]:
    """Milliseconds (ways, queries + 1): of each query and, last, of all in one call.

    They are the best of some rounds, each of which takes every way.
    """
    best = np.full((len(ways), len(asked.vectors) + 1), np.inf)
    steps = [
        (row, k, options)
        for turn in range(_ROUNDS)
        for row, (k, options) in enumerate(ways)
        if turn == 0 or "exhaustive" not in options  # which is slow, and steady
    ]
    for row, k, options in tqdm(steps, desc="bench", disable=not progress):
        for column, query in enumerate([*asked.vectors, asked.vectors]):
            start = time.perf_counter()
            index.search(query, k, **options)
            spent = 1000 * (time.perf_counter() - start)
            best[row, column] = min(best[row, column], spent)
    return best


def table(report: Report) -> str:
    """The report as lines for a terminal."""
    lines = [report.title, ""]
    lines.append(
        f"{'k':>5}  {'search':12} {'nprobe':>6} {'ndocs':>6} {'recall':>7} "
        f"{'p50 ms':>8} {'p95 ms':>8} {'batch QPS':>10}"
    )
    for row in report.rows:
        nprobe = "" if row.nprobe is None else row.nprobe
        ndocs = "" if row.ndocs is None else row.ndocs
        lines.append(
            f"{row.k:5}  {row.way:12} {nprobe:>6} {ndocs:>6} {row.recall:7.4f} "
            f"{row.p50:8.3f} {row.p95:8.3f} {row.qps:10.0f}"
        )
    return "\n".join(lines)


def check_plot(path: Path) -> None:
    """Refuse what cannot be drawn before anything is measured.

    Raises
    ------
    ValueError
        The suffix is not one of .png, .svg and .pdf.
    FileNotFoundError
        The folder does not exist.
    MissingDependencyError
        matplotlib is not installed.
    """
    if path.suffix not in _PLOTS:
        raise ValueError(f"--plot must end in one of {', '.join(_PLOTS)}, got {path}")
    check_parent(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            'plots need the package matplotlib: pip install "colbert-fast[bench]"'
        ) from error


# Colour, marker and where to write beside the points, which crowd at the right.
_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("C0o-", {"xytext": (5, -9), "ha": "left"}),
    "plaid": ("C1s-", {"xytext": (-5, 5), "ha": "right"}),
    "exhaustive": ("C3*", {"xytext": (0, 0)}),
    "recall=": ("k+", {"xytext": (0, 0)}),
}


def draw(report: Report, path: Path) -> None:
    """Draw latency over recall, a panel for each k, a line for each mode."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    ks = sorted({row.k for row in report.rows})
    figure = Figure(figsize=(1.5 + 4.5 * len(ks), 4.8), layout="constrained")
    panels = figure.subplots(1, len(ks), squeeze=False, sharey=True)[0]
    for panel, k in zip(panels, ks, strict=True):
        for way in _STYLES:
            _draw_way(panel, [row for row in report.rows if row.k == k], way)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel(f"recall@{k} against exhaustive search")
        panel.grid(visible=True, which="both", alpha=0.25)
        panel.margins(x=0.14, y=0.1)
    panels[0].set_ylabel("one query, median [ms]")
    panels[-1].legend(loc="best", title="beside the points: nprobe, ndocs", title_fontsize=8)
    figure.suptitle(report.title, fontsize=10)
    figure.savefig(path, dpi=150)


def _draw_way(panel: Any, rows: Sequence[Row], way: str) -> None:
    shown = [row for row in rows if row.way.startswith(way)]
    if not shown:
        return
    style, beside = _STYLES[way]
    label = "tuned: recall=" + ", ".join(row.way[7:] for row in shown) if way == "recall=" else way
    size = 5 if way in get_args(DenseMode) else 11
    panel.plot(
        [row.recall for row in shown], [row.p50 for row in shown], style,
        markersize=size, label=label,
    )  # fmt: skip
    for row in shown if way in get_args(DenseMode) else ():
        panel.annotate(
            f"{row.nprobe}, {row.ndocs}", (row.recall, row.p50), **beside,
            textcoords="offset points", fontsize=6.5, color="0.35",
        )  # fmt: skip
