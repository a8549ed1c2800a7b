"""manifest.json: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colbert_fast._version import __version__
from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.files import check_checksums, check_sizes, record_files
from colbert_fast.storage.manifest import Manifest, SegmentRecord, library_version

NAMES = [
    "codec-000001/weights.npy",
    "deleted-000002.npy",
    "segment-000000/codes.npy",
    "segment-000000/documents.sqlite",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "segment-000000").mkdir()
    (tmp_path / "codec-000001").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(b"123456789")
    (tmp_path / "segment-000000" / "codes.npy").write_bytes(b"codes" * 500_000)
    manifest(tmp_path).write(tmp_path)
    return tmp_path


def manifest(folder: Path) -> Manifest:
    return Manifest(
        lineage="0123456789abcdef",
        generation=3,
        next_number=3,
        next_id=10,
        codec="plaid",
        nbits=2,
        dim=128,
        num_centroids=64,
        codec_folder="codec-000001",
        residual_norm=0.5,
        segments=(SegmentRecord("segment-000000", 10, 100, 60, 0.5, 4, "deleted-000002.npy"),),
        model=None,
        files=record_files(folder, NAMES),
        created_at="2026-01-02T03:04:05+00:00",
        library_version="1.2.3",
    )


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the contents, under a checksum that is right."""
    path = folder / "manifest.json"
    contents = json.loads(path.read_text())
    change(contents)
    head = {key: contents.pop(key) for key in ("format", "version", "crc32") if key in contents}
    body = json.dumps(contents)[1:].encode()
    head["crc32"] = f"{zlib.crc32(body):08x}"
    path.write_bytes(json.dumps(head)[:-1].encode() + b",\n" + body)


def test_round_trip(folder: Path) -> None:
    assert Manifest.read(folder) == manifest(folder)
    json.loads((folder / "manifest.json").read_text())


def test_without_the_settings_of_a_model(folder: Path) -> None:
    """As they were written before settings were recorded."""
    rewrite(folder, lambda c: c.pop("model_settings"))
    assert Manifest.read(folder) == manifest(folder)


def test_totals(folder: Path) -> None:
    found = Manifest.read(folder)
    assert (found.num_rows, found.num_documents, found.num_tokens) == (10, 6, 100)


def test_the_version_is_that_of_the_code() -> None:
    assert library_version() == __version__


def test_records_size_and_crc32(folder: Path) -> None:
    files = manifest(folder).files
    record = files["segment-000000/documents.sqlite"]
    assert (record.size, record.crc32) == (9, (0xCBF43926,))  # the check value of CRC-32
    record = files["segment-000000/codes.npy"]
    assert (record.size, len(record.crc32)) == (2_500_000, 3)


def segment(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: c["segments"][0].update(values)


CHANGES = {
    "foreign": (lambda c: c.update(format="other"), "not the manifest of a colbert_fast index"),
    "no format": (lambda c: c.pop("format"), "not the manifest of a colbert_fast index"),
    "newer": (lambda c: c.update(version=4), "reads up to 3; upgrade"),
    "version 1": (lambda c: c.update(version=1), "version 1 was never released"),
    "version type": (lambda c: c.update(version="1"), "not the manifest of"),
    "old codec": (lambda c: c.update(codec="residual"), "unknown codec 'residual'"),
    "missing": (lambda c: c.pop("dim"), r"missing keys \['dim'\]"),
    "unknown": (lambda c: c.update(extra=1), r"unknown keys \['extra'\]"),
    "type": (lambda c: c.update(dim="128"), '"dim" must be int'),
    "bool": (lambda c: c.update(nbits=True), '"nbits" must be int'),
    "model": (lambda c: c.update(model=3), '"model" must be str or null'),
    "fingerprint": (lambda c: c.update(model_fingerprint=3), "must be str or null, got 3"),
    "settings": (lambda c: c.update(model_settings=3), "must be dict or null, got 3"),
    "zero": (lambda c: c.update(num_centroids=0), '"num_centroids" must be at least 1'),
    "no store": (
        lambda c: c["files"].pop("segment-000000/documents.sqlite"),
        "does not list segment-000000/documents.sqlite",
    ),
    "no marks": (lambda c: c["files"].pop("deleted-000002.npy"), "does not list deleted-000002"),
    "bad segment": (lambda c: c["segments"][0].pop("name"), "missing keys"),
    "segment path": (segment(name="../x"), "not a path inside"),
    "no documents": (segment(num_documents=0), "has 0 documents of 100 tokens"),
    "fewer tokens": (segment(num_tokens=9), "has 10 documents of 9 tokens"),
    "more centroids": (segment(num_centroids=65), "codes of 65 centroids, there are 64"),
    "all deleted": (segment(num_deleted=11), "cannot have 11 deleted"),
    "none deleted": (segment(num_deleted=0), "cannot have 0 deleted"),
    "unmarked": (segment(deleted=None), "cannot have 4 deleted"),
    "codec path": (lambda c: c.update(codec_folder="/etc"), "not a path inside"),
    "file path": (lambda c: c["files"].update({"/x": {"size": 1, "crc32": [1]}}), "not a path"),
    "file entry": (lambda c: c["files"].update({"x": 3}), "expected an object"),
    "checksums": (
        lambda c: c["files"].update({"x": {"size": 5, "crc32": []}}),
        "0 checksums for 5",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_refuses_what_it_did_not_write(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        Manifest.read(folder)
    assert str(folder / "manifest.json") in str(caught.value)


def test_any_flipped_byte_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(IndexFormatError, match=r"manifest\.json"):
            Manifest.read(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff\xfe", "[" * 100_000])
def test_refuses_what_is_not_a_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IndexFormatError, match=r"manifest\.json"):
        Manifest.read(folder)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"manifest\.json: no such file"):
        Manifest.read(tmp_path)
    with pytest.raises(IndexFormatError, match=r"manifest\.json: no such file"):
        Manifest.read(tmp_path / "nowhere")


def test_sizes_and_checksums(folder: Path) -> None:
    recorded = Manifest.read(folder).files
    check_checksums(folder, recorded)
    path = folder / "segment-000000" / "codes.npy"
    data = path.read_bytes()

    path.write_bytes(data[:-1] + b"x")
    check_sizes(folder, recorded)
    with pytest.raises(IndexFormatError, match=r"codes\.npy: corrupt within bytes 2097152\.\."):
        check_checksums(folder, recorded)

    path.write_bytes(data[:-1])
    with pytest.raises(IndexFormatError, match=r"codes\.npy: 2499999 bytes, .* says 2500000"):
        check_sizes(folder, recorded)

    path.unlink()
    with pytest.raises(IndexFormatError, match=r"codes\.npy: No such file"):
        check_sizes(folder, recorded)
