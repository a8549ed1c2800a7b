"""Print markdown tables of DATA/results/*.jsonl: how the peers do, and how we do beside each.

    report.py DATA

Of repeated builds the last counts. Searches count by runs, in which all took turns: the last run of
each size and number of threads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS = "colbert-fast"

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def ratio(theirs: float, ours: float) -> str:
    """How many times more theirs is."""
    return f"{theirs / ours:.1f}x" if theirs < 10 * ours else f"{theirs / ours:.0f}x"


def milliseconds(row: Row) -> str:
    return f"{row['p50_ms']:.3g} / {row['p95_ms']:.3g}"


def as_good(ours: list[Row], peer: Row, prefix: str = "") -> list[Row]:
    """Return our points whose recall@10 and recall@100 both reach the peer's."""
    keys = f"{prefix}recall10", f"{prefix}recall100"
    return [row for row in ours if all(row[key] >= peer[key] for key in keys)]


def build_table(rows: list[Row]) -> str:
    last = {(r["size"], r["library"], r["nbits"], r["threads"]): r for r in rows}
    lines = []
    for (size, library, nbits, threads), row in last.items():
        line: list[object] = [size, library, nbits, threads]
        ours = last.get((size, OURS, nbits, threads))
        for key in ("seconds", "cpu_seconds", "peak_mb", "bytes_per_token"):
            compared = ours is not None and library != OURS
            line.append(f"{row[key]} ({ratio(row[key], ours[key])})" if compared else row[key])
        lines.append([*line, row["others_cores"]])
    head = ("size", "library", "bits", "threads", "seconds", "CPU seconds", "peak MB")
    return table((*head, "bytes a token", "others' cores"), lines)


def our_answer(ours: list[Row], peer: Row) -> list[object]:
    """Cells: our fastest point as good as the peer's, at one query and in a batch."""
    cells: list[object] = []
    alone = min(as_good(ours, peer), key=lambda row: row["p50_ms"], default=None)
    if alone is None:
        cells += ["none as good", "", ""]
    else:
        cells += [alone["point"], milliseconds(alone), ratio(peer["p50_ms"], alone["p50_ms"])]
    batch = max(as_good(ours, peer, "batch_"), key=lambda row: row["qps"], default=None)
    if batch is None:
        return [*cells, "", ""]
    return [*cells, f"{batch['qps']:.3g}", ratio(batch["qps"], peer["qps"])]


def search_table(run: list[Row]) -> str:
    head = ["library", "bits", "point", "p50 / p95 ms", "QPS", "recall@10", "recall@100"]
    head += ["our point as good", "its p50 / p95 ms", "latency", "our QPS", "batch"]
    lines = []
    for row in run:
        line = [row["library"], row["nbits"], row["point"], milliseconds(row)]
        line += [f"{row['qps']:.3g}", row["recall10"], row["recall100"]]
        ours = [r for r in run if r["library"] == OURS and r["nbits"] == row["nbits"]]
        lines.append(line + ([""] * 5 if row["library"] == OURS else our_answer(ours, row)))
    return table(head, lines)


def bytes_table(run: list[Row]) -> str:
    """Beside each index of a peer, at its best recall, our smallest index that reaches as much."""
    ours = [row for row in run if row["library"] == OURS]
    lines = []
    for library, nbits in dict.fromkeys((r["library"], r["nbits"]) for r in run):
        if library == OURS:
            continue
        points = [r for r in run if (r["library"], r["nbits"]) == (library, nbits)]
        best = max(points, key=lambda row: (row["recall10"], row["recall100"]))
        line = [library, nbits, best["bytes_per_token"], best["recall10"], best["recall100"]]
        least = min(as_good(ours, best), key=lambda row: row["bytes_per_token"], default=None)
        if least is None:
            lines.append([*line, "none as good", "", ""])
        else:
            share = least["bytes_per_token"] / best["bytes_per_token"]
            lines.append([*line, least["nbits"], least["bytes_per_token"], f"{share:.2f}"])
    head = ("library", "bits", "bytes a token", "best recall@10", "recall@100")
    return table((*head, "our bits", "our bytes a token", "share"), lines)


def last_runs(rows: list[Row]) -> Iterable[list[Row]]:
    starts: dict[tuple[str, int], str] = {}
    for row in rows:
        starts[row["size"], row["threads"]] = row["started"]
    for (size, threads), started in starts.items():
        wanted = size, threads, started
        yield [r for r in rows if (r["size"], r["threads"], r["started"]) == wanted]


def versions(rows: list[Row]) -> str:
    """Of each library the last used, with what it stands on."""
    lines = []
    for library, packages in {row["library"]: row["versions"] for row in rows}.items():
        listed = ", ".join(f"{name} {version}" for name, version in packages.items())
        lines.append(f"- {library}: {listed}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    results = parser.parse_args().data / "results"
    builds, searches = read_rows(results / "build.jsonl"), read_rows(results / "search.jsonl")
    if builds:
        print(f"### Builds; in brackets, how many times ours\n\n{build_table(builds)}\n")
    for run in last_runs(searches):
        first = run[0]
        print(f"### Searches: {first['size']}, {first['threads']} threads, {first['started']}\n")
        print(f"{search_table(run)}\n\nBytes at equal recall:\n\n{bytes_table(run)}\n")
    print(versions(builds + searches))


if __name__ == "__main__":
    main()
