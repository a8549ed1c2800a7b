"""Damaged and malicious index files: the right content or IndexFormatError, never anything else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import committed
from colbert_fast.errors import IndexFormatError
from colbert_fast.reader import IndexReader
from colbert_fast.storage.files import record_files
from colbert_fast.storage.manifest import NAME

LONG = os.environ.get("COLBERT_FAST_LONG_TESTS") == "1"
SEEDS = range(5000 if LONG else 60)

Mutation = Callable[[np.random.Generator, bytearray, list[bytes]], bytes]


def flip_bits(rng: np.random.Generator, data: bytearray, _: list[bytes]) -> bytes:
    for _unused in range(rng.integers(1, 5)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def set_word(rng: np.random.Generator, data: bytearray, _: list[bytes]) -> bytes:
    """An extreme number in place of one, where sizes, offsets and codes are."""
    width = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(len(data))) // width * width
    values = (0, 1, -1, 1 << (8 * width - 2), -1 << (8 * width - 1), (1 << (8 * width - 1)) - 1)
    value = values[rng.integers(len(values))]
    data[at : at + width] = value.to_bytes(width, "little", signed=True)
    return bytes(data)


def truncate(rng: np.random.Generator, data: bytearray, _: list[bytes]) -> bytes:
    return bytes(data[: rng.integers(len(data))])


def extend(rng: np.random.Generator, data: bytearray, _: list[bytes]) -> bytes:
    return bytes(data) + rng.bytes(int(rng.integers(1, 5000)))


def zero_block(rng: np.random.Generator, data: bytearray, _: list[bytes]) -> bytes:
    start = int(rng.integers(len(data)))
    end = min(start + int(rng.integers(1, 4096)), len(data))
    data[start:end] = bytes(end - start)
    return bytes(data)


def swap(rng: np.random.Generator, _: bytearray, others: list[bytes]) -> bytes:
    return others[rng.integers(len(others))]


def mix(rng: np.random.Generator, data: bytearray, others: list[bytes]) -> bytes:
    """The header of one file and the rest of another."""
    other = others[rng.integers(len(others))]
    cut = int(rng.choice([16, 128, 512, 4096]))
    return bytes(data[:cut]) + other[cut:]


MUTATIONS: list[Mutation] = [flip_bits, set_word, truncate, extend, zero_block, swap, mix]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with two segments, tombstones and texts."""
    path = tmp_path_factory.mktemp("fuzz") / "a"
    index = committed.build(path, committed.first_state())
    index.delete([39, 3])
    index.add(committed.documents({50: 50, 51: 51}), progress=False)
    assert index.info()["segments"] == 2
    return path


def sealed(path: Path) -> None:
    """Make the manifest agree with the files again, as whoever wrote them on purpose would."""
    head, _, body = (path / NAME).read_bytes().partition(b"\n")
    contents = json.loads(b"{" + body)
    for name, record in record_files(path, contents["files"]).items():
        contents["files"][name] = {"size": record.size, "crc32": record.crc32}
    body = (json.dumps(contents, indent=1, ensure_ascii=False)[2:] + "\n").encode()
    seal(path, head, body)


def seal(path: Path, head: bytes, body: bytes) -> None:
    """Write the manifest under a checksum of its own that is right."""
    start = head.rindex(b'"crc32": "') + len(b'"crc32": "')
    fresh = head[:start] + f"{zlib.crc32(body):08x}".encode() + head[start + 8 :]
    (path / NAME).write_bytes(fresh + b"\n" + body)


def mutate(rng: np.random.Generator, path: Path, *, malicious: bool) -> str:
    names = sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())
    names.remove("writer.lock")
    name = str(rng.choice(names))
    others = [(path / each).read_bytes() for each in names if each != name]
    mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
    data = (path / name).read_bytes()
    head, _, body = data.partition(b"\n")
    if name == NAME and malicious:
        seal(path, head, mutation(rng, bytearray(body), others))
    else:
        (path / name).write_bytes(mutation(rng, bytearray(data), others))
        if malicious:
            sealed(path)
    return f"{mutation.__name__} {name}"


def read_all(path: Path) -> None:
    """Everything that a reader can ask for, without `verify` before it."""
    with IndexReader.open(path) as index:
        for options in ({}, {"mode": "plaid"}, {"exhaustive": True}, {"filter": "version >= 0"}):
            for hit in index.search(committed.vectors(5), k=50, **options):
                assert hit.text is None or isinstance(hit.text, str)
        index._snapshot.bm25.score("text")
        index.get_embeddings(index.ids)


def outcome(read: Callable[[], object], malicious: bool, what: str) -> str:
    """Whether `read` opened the index or refused it; anything else is an error."""
    try:
        read()
    except IndexFormatError:
        return "refused"
    except AssertionError as error:
        if not malicious:  # whoever wrote the checksums decides on the content
            raise AssertionError(f"{what}: wrong content") from error
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    return "opened"


@pytest.mark.parametrize("malicious", [False, True], ids=["damaged", "malicious"])
def test_mutated_files(tmp_path: Path, origin: Path, malicious: bool) -> None:
    expected = {**committed.first_state(), 50: 50, 51: 51}
    del expected[39], expected[3]
    path = tmp_path / "a"
    outcomes = {"refused": 0, "opened": 0}
    for seed in SEEDS:
        rng = np.random.default_rng([seed, malicious])
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        what = mutate(rng, path, malicious=malicious)
        for read in (read_all, lambda at: committed.check(at, [expected])):
            outcomes[outcome(lambda read=read: read(path), malicious, f"{seed}: {what}")] += 1
    assert outcomes["refused"] > len(SEEDS) // 2


def test_the_seal_is_what_the_library_writes(tmp_path: Path, origin: Path) -> None:
    shutil.copytree(origin, tmp_path / "a")
    sealed(tmp_path / "a")
    assert (tmp_path / "a" / NAME).read_bytes() == (origin / NAME).read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE lengths SET data = NULL",
        "UPDATE postings SET block = 9",
        "UPDATE postings SET block = -1",
        "UPDATE postings SET data = 'words'",
        "UPDATE keys SET name = x'00'",
        "UPDATE fields SET pid = -1 WHERE pid = 0",
        "UPDATE documents SET id = 1.5 WHERE pid = 0",
        "UPDATE documents SET id = x'00' WHERE pid = 0",
        "UPDATE documents SET text = x'00' WHERE pid = 0",
        "UPDATE documents SET metadata = 5",
        "UPDATE documents SET metadata = '[1]'",
        "UPDATE documents SET pid = 1000 WHERE pid = 20",
        "DELETE FROM documents WHERE pid = 20",
    ],
)
def test_tables_that_hold_something_else(tmp_path: Path, origin: Path, statement: str) -> None:
    path = tmp_path / "a"
    shutil.copytree(origin, path)
    store = next(each for each in sorted(path.glob("segment-*/documents.sqlite")))
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(statement)
    sealed(path)
    with pytest.raises(IndexFormatError):
        read_all(path)
