"""The documents of all segments as one collection."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from colbert_fast.errors import UnknownDocumentError
from colbert_fast.storage.documents import Document
from colbert_fast.storage.library import Library
from test_documents import write


def library(tmp_path: Path, groups: list[list[Document]], dead: tuple[int, ...] = ()) -> Library:
    stores = [write(tmp_path / f"{i}.sqlite", group) for i, group in enumerate(groups)]
    sizes = [len(group) for group in groups]
    live = np.ones(sum(sizes), np.bool_)
    live[list(dead)] = False
    return Library(stores, sizes, live if dead else None)


@pytest.fixture
def three(tmp_path: Path) -> Library:
    """Positions 0 to 5; "b" is deleted at 1 and there again at 4."""
    groups = [["a", "b", 7], ["7"], ["b", "c"]]
    return library(tmp_path, [[Document(i, f"text {i}") for i in group] for group in groups], (1,))


def test_positions_count_through_the_segments(three: Library) -> None:
    assert three.positions(["c", 7, "a", "7", "b"], name="ids") == [5, 2, 0, 3, 4]
    assert [three.ids[at] for at in range(6)] == ["a", "b", 7, "7", "b", "c"]
    found = three.fetch([5, 0, 3, 0])
    assert {at: each.id for at, each in found.items()} == {0: "a", 3: "7", 5: "c"}
    assert three.fetch([]) == {}


def test_unknown_ids_are_named(three: Library, tmp_path: Path) -> None:
    with pytest.raises(UnknownDocumentError, match=r"^subset: not in the index: 'x', 3$"):
        three.positions(["a", "x", 3], name="subset")
    with pytest.raises(UnknownDocumentError, match=r"10, 11, 12, 13, 14 and 15 more"):
        three.positions(range(10, 30), name="ids")
    with pytest.raises(TypeError, match=r"ids\[1\]: an id must be a str or an int, got float"):
        three.positions(["a", 1.5], name="ids")  # type: ignore[list-item]
    with pytest.raises(UnknownDocumentError, match=r"ids: not in the index: '\\ud800', 'x'"):
        three.positions(["a", "\ud800", "x"], name="ids")
    with pytest.raises(ValueError, match=r"ids\[1\]: 9223372036854775808 does not fit"):
        three.positions(["a", 2**63], name="ids")
    (tmp_path / "dead").mkdir()
    dead = library(tmp_path / "dead", [[Document("a")]], (0,))
    with pytest.raises(UnknownDocumentError, match="not in the index: 'a'"):
        dead.positions(["a"], name="ids")


def test_default_ids_take_no_memory(tmp_path: Path) -> None:
    given = [Document(position) for position in range(5)]
    assert library(tmp_path, [given[:3], given[3:]]).ids == range(5)
    (tmp_path / "other").mkdir()
    assert list(library(tmp_path / "other", [given[3:], given[:3]]).ids) == [3, 4, 0, 1, 2]


def test_readers_read_before_it_closes(three: Library) -> None:
    class Reader:
        def read(self) -> None:
            found.append(three.fetch([0])[0].id)

    found: list[object] = []
    kept, dropped = Reader(), Reader()
    three.before_close(kept)
    three.before_close(dropped)
    del dropped
    gc.collect()
    three.close()
    three.close()
    assert found == ["a"]
    with pytest.raises(ValueError, match="the index is closed"):
        three.fetch([0])
