"""Random changes of an index beside a dict that says what it must hold: state by state.

    python committed.py INDEX SEED LOG

changes the index for ever and notes every change in LOG before it begins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colbert_fast.index import Index
from colbert_fast.reader import IndexReader
from synthetic import unit

DIM, NUM_IDS = 32, 60
_OF_A_BATCH = 8

State = Mapping[int, int]
"""Id to version: all else about a document follows from its version."""

Change = tuple[str, dict[int, int]]
"""What is done, and the documents it is done with."""


def vectors(version: int) -> np.ndarray:
    """The document's vectors: near one of 20 directions, as its number says."""
    rng = np.random.default_rng(version)
    centres = unit(np.random.default_rng(7).standard_normal((20, DIM)))
    home = centres[rng.integers(20, size=1 + version % 9)]
    return unit(home + 0.5 * unit(rng.standard_normal(home.shape)))


def documents(versions: Mapping[int, int]) -> list[dict[str, Any]]:
    """As `Index.build` and `Index.add` take them."""
    return [
        {"id": key, "text": f"text {version}", "embeddings": vectors(version), "version": version}
        for key, version in versions.items()
    ]


def build(path: Path, state: State, **options: Any) -> Index:
    return Index.build(path, documents(state), num_centroids=32, progress=False, **options)


def first_state() -> dict[int, int]:
    return {key: key for key in range(40)}


def random_change(rng: np.random.Generator, state: State, kinds: Sequence[str]) -> Change:
    """A change that the index accepts in this state."""
    kind = str(rng.choice(kinds))
    free = sorted(set(range(NUM_IDS)) - set(state))
    if kind in ("compact", "retrain"):
        return kind, {}
    if (kind == "add" and not free) or (kind == "delete" and len(state) < 20):
        kind = "upsert"
    pool = {"add": free, "delete": sorted(state)}.get(kind, range(NUM_IDS))
    count = 40 if kind == "build" else rng.integers(1, _OF_A_BATCH)
    chosen = rng.permutation(pool)[:count].tolist()
    return kind, {key: int(rng.integers(1 << 30)) for key in chosen}


def apply(index: Index, change: Change) -> None:
    kind, versions = change
    if kind == "add":
        index.add(documents(versions), progress=False)
    elif kind == "upsert":
        index.upsert(documents(versions), progress=False)
    elif kind == "delete":
        index.delete(list(versions))
    elif kind == "build":
        build(index.path, versions, overwrite=True)
        index.refresh()
    else:
        index.compact(retrain=kind == "retrain", progress=False)


def after(state: State, change: Change) -> dict[int, int]:
    """The state that `change` leads to."""
    kind, versions = change
    if kind == "delete":
        return {key: version for key, version in state.items() if key not in versions}
    return dict(versions) if kind == "build" else {**state, **versions}


def content(index: IndexReader) -> dict[int, int]:
    """The state that the index shows, after checking every document of it against its version."""
    versions = {}
    stored = index.get_embeddings(index.ids)
    library = index._snapshot.library
    found = library.fetch(index._snapshot.positions.tolist())
    for each, rows in zip(found.values(), stored, strict=True):
        assert each.metadata is not None
        version = each.metadata["version"]
        assert each.text == f"text {version}"
        wanted = vectors(version)
        assert rows.shape == wanted.shape
        assert (rows * wanted).sum(axis=1).min() > 0.7
        versions[int(each.id)] = version
    return versions


def check(path: Path, states: Sequence[State]) -> dict[int, int]:
    """The index opens, is undamaged, holds one of these states (returned) and finds all of it."""
    with IndexReader.open(path) as index:
        index.verify()
        found = content(index)
        assert found in states
        hits = index.search(vectors(next(iter(found.values()))), k=100, exhaustive=True)
        assert {hit.id for hit in hits} == set(found)
    return found


def check_goes_on(path: Path, state: State) -> None:
    """A further change works and leaves nothing behind of what came before."""
    index = Index.open(path)
    index.upsert(documents({0: 5}), progress=False)
    check(path, [{**state, 0: 5}])
    manifest = index.manifest
    named = {manifest.codec_folder, *(each.name for each in manifest.segments)}
    named |= {each.deleted for each in manifest.segments if each.deleted}
    assert {each.name for each in path.iterdir()} == named | {"manifest.json", "writer.lock"}


KINDS = ("add", "upsert", "delete", "compact", "retrain", "build")


def change_for_ever(path: Path, seed: int, log: Path) -> None:
    rng = np.random.default_rng(seed)
    index = Index.open(path)
    state = content(index)
    with log.open("w") as file:
        while True:
            change = random_change(rng, state, KINDS)
            file.write(json.dumps(change) + "\n")
            file.flush()
            apply(index, change)
            state = after(state, change)


def logged(log: Path) -> list[Change]:
    """The changes noted, of which the last may or may not have happened."""
    changes = []
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may have been cut short, and then did not begin
            kind, versions = json.loads(line)
            changes.append((kind, {int(key): version for key, version in versions.items()}))
    return changes


if __name__ == "__main__":
    change_for_ever(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
