"""manifest.json: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colbert_fast._version import __version__
from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.manifest import Manifest, SegmentRecord, library_version, record_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "segment-000000").mkdir()
    (tmp_path / "segment-000000" / "codes.npy").write_bytes(b"codes" * 1000)
    (tmp_path / "documents.sqlite").write_bytes(b"123456789")
    manifest(tmp_path).write(tmp_path)
    return tmp_path


def manifest(folder: Path) -> Manifest:
    return Manifest(
        codec="plaid",
        nbits=2,
        dim=128,
        num_centroids=64,
        num_documents=10,
        num_tokens=100,
        segments=(SegmentRecord("segment-000000", 10, 100),),
        model=None,
        files=record_files(folder, ["documents.sqlite", "segment-000000/codes.npy"]),
        created_at="2026-01-02T03:04:05+00:00",
        library_version="1.2.3",
    )


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_round_trip(folder: Path) -> None:
    assert Manifest.read(folder) == manifest(folder)


def test_a_manifest_without_a_fingerprint_is_read(folder: Path) -> None:
    rewrite(folder, lambda c: c.pop("model_fingerprint"))
    assert Manifest.read(folder) == manifest(folder)
    rewrite(folder, lambda c: c.update(model_fingerprint="0123"))
    assert Manifest.read(folder).model_fingerprint == "0123"


def test_the_version_is_that_of_the_code() -> None:
    assert library_version() == __version__


def test_records_size_and_crc32(folder: Path) -> None:
    record = manifest(folder).files["documents.sqlite"]
    assert (record.size, record.crc32) == (9, 0xCBF43926)  # the check value of CRC-32


CHANGES = {
    "foreign": (lambda c: c.update(format="other"), "not a colbert_fast index"),
    "no format": (lambda c: c.pop("format"), "not a colbert_fast index"),
    "newer": (lambda c: c.update(version=3), "reads up to 2; upgrade"),
    "version 0": (lambda c: c.update(version=0), '"version" must be'),
    "version 1": (lambda c: c.update(version=1), "version 1 was never released"),
    "old codec": (lambda c: c.update(codec="residual"), "unknown codec 'residual'"),
    "version type": (lambda c: c.update(version="1"), '"version" must be'),
    "missing": (lambda c: c.pop("dim"), r"missing keys \['dim'\]"),
    "unknown": (lambda c: c.update(extra=1), r"unknown keys \['extra'\]"),
    "type": (lambda c: c.update(dim="128"), '"dim" must be int'),
    "bool": (lambda c: c.update(nbits=True), '"nbits" must be int'),
    "model": (lambda c: c.update(model=3), '"model" must be str or null'),
    "fingerprint": (lambda c: c.update(model_fingerprint=3), "must be str or null, got 3"),
    "zero": (lambda c: c.update(num_tokens=0), '"num_tokens" must be at least 1'),
    "codec": (lambda c: c.update(codec="zip"), "unknown codec 'zip'"),
    "totals": (lambda c: c.update(num_documents=11), "do not add up"),
    "no store": (lambda c: c["files"].pop("documents.sqlite"), "does not list documents.sqlite"),
    "no segment": (lambda c: c.update(segments=[]), "one segment, got 0"),
    "bad segment": (lambda c: c["segments"][0].pop("name"), "missing keys"),
    "segment path": (lambda c: c["segments"][0].update(name="../x"), "not a path inside"),
    "file path": (lambda c: c["files"].update({"/etc/x": {"size": 1, "crc32": 1}}), "not a path"),
    "file entry": (lambda c: c["files"].update({"x": 3}), "expected an object"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_refuses_what_it_did_not_write(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        Manifest.read(folder)
    assert str(folder / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff\xfe", "[" * 100_000])
def test_refuses_what_is_not_a_json_object(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IndexFormatError, match=r"manifest\.json"):
        Manifest.read(folder)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"manifest\.json: no such file"):
        Manifest.read(tmp_path)
    with pytest.raises(IndexFormatError, match=r"manifest\.json: no such file"):
        Manifest.read(tmp_path / "nowhere")


def test_sizes_and_checksums(folder: Path) -> None:
    recorded = Manifest.read(folder)
    recorded.check_checksums(folder)
    path = folder / "segment-000000" / "codes.npy"
    data = path.read_bytes()

    path.write_bytes(data[:-1] + b"x")
    recorded.check_sizes(folder)
    with pytest.raises(IndexFormatError, match=r"codes\.npy: checksum .* corrupt"):
        recorded.check_checksums(folder)

    path.write_bytes(data[:-1])
    with pytest.raises(IndexFormatError, match=r"codes\.npy: 4999 bytes, the manifest says 5000"):
        recorded.check_sizes(folder)

    path.unlink()
    with pytest.raises(IndexFormatError, match=r"codes\.npy: No such file"):
        recorded.check_sizes(folder)
