"""tuning.json: what recall costs on one index, and which parameters buy it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from colbert_fast.errors import IndexFormatError
from colbert_fast.storage.lock import writer_lock
from colbert_fast.storage.manifest import TUNING, Manifest

__all__ = ["Curve", "OperatingPoint", "Tuning"]

FORMAT = "colbert_fast tuning"
VERSION = 2
_OUTGROWN = 2  # times as many documents as were measured
_MEND = "call tune() again (colbert-fast tune INDEX)"


class OperatingPoint(NamedTuple):
    """Parameters of a search, what they find and what they cost.

    `recall` is the share of the true best k, what the queries measured and chance allow (the lower
    end of a 95 % interval); `microseconds` one query's, alone, on the machine that measured.
    """

    nprobe: int
    ndocs: int
    recall: float
    microseconds: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """The operating points for one k that no other beats in both recall and time, cheapest first.

    `exhaustive_microseconds` is what scoring every document takes; no point is slower.
    """

    k: int
    points: tuple[OperatingPoint, ...]
    exhaustive_microseconds: float

    @classmethod
    def of(
        cls, k: int, measured: Iterable[OperatingPoint], exhaustive_microseconds: float
    ) -> Curve:
        """The curve through the best of all points measured."""
        points: list[OperatingPoint] = []
        for point in sorted(measured, key=lambda each: (each.microseconds, -each.recall)):
            better = not points or point.recall > points[-1].recall
            if better and point.microseconds < exhaustive_microseconds:
                points.append(point)
        return cls(k, tuple(points), exhaustive_microseconds)

    def choose(self, recall: float) -> OperatingPoint | None:
        """The cheapest point with this recall; None if only an exhaustive search has it."""
        return next((point for point in self.points if point.recall >= recall), None)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What `Index.tune` measured; printed, it is a table.

    Attributes
    ----------
    curves
        One for each k, in ascending order.
    recall
        Up to which the curves were followed.
    num_documents
        How many there were.
    num_queries, seed
        The queries that measured them.
    pseudo
        Whether these were made from the index.
    threads, isa
        What a query ran on.
    """

    curves: tuple[Curve, ...]
    recall: float
    num_documents: int
    num_queries: int
    seed: int
    pseudo: bool
    threads: int
    isa: str

    def choose(self, k: int, recall: float) -> OperatingPoint | None:
        """The cheapest point for `k`, or for the next larger k that is tuned.

        Returns
        -------
        OperatingPoint or None
            None: only an exhaustive search finds as much.

        Raises
        ------
        ValueError
            `k` is larger than every k that is tuned.
        """
        for curve in self.curves:
            if curve.k >= k:
                return curve.choose(recall)
        raise ValueError(
            f"k={k}: the index is tuned for k up to {self.curves[-1].k}; tune it for this k too"
        )

    def check_growth(self, num_documents: int) -> None:
        """Raise ValueError if the index has outgrown what was measured."""
        if num_documents > _OUTGROWN * self.num_documents:
            raise ValueError(
                f"the index was tuned with {self.num_documents} documents and has {num_documents} "
                f"now: {_MEND}"
            )

    def __str__(self) -> str:
        lines = [f"{'k':>5} {'nprobe':>7} {'ndocs':>7} {'recall':>7} {'us/query':>9}"]
        for curve in self.curves:
            chosen = curve.choose(self.recall)
            for point in curve.points:
                mark = f"  <- recall={self.recall:g}" if point is chosen else ""
                lines.append(
                    f"{curve.k:5} {point.nprobe:7} {point.ndocs:7} {point.recall:7.4f} "
                    f"{point.microseconds:9.0f}{mark}"
                )
            mark = f"  <- recall={self.recall:g}" if chosen is None else ""
            lines.append(
                f"{curve.k:5} {'exhaustive':>15} {1:7.4f} "
                f"{curve.exhaustive_microseconds:9.0f}{mark}"
            )
        source = "pseudo-queries from the index" if self.pseudo else "queries given"
        lines.append(
            f"recall: least to expect, by {self.num_queries} {source}; {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}, {self.isa}"
        )
        return "\n".join(lines)

    def write(self, folder: Path, manifest: Manifest) -> None:
        """Write tuning.json into the index `folder`, complete or not at all, after other writers.

        Raises
        ------
        ValueError
            The index has been encoded anew since `manifest`.
        """
        with writer_lock(folder, timeout=math.inf):
            if Manifest.read(folder).lineage != manifest.lineage:
                raise ValueError(
                    f"{folder}: was encoded anew since it was opened, so the tuning is not its "
                    "own; call refresh(), then tune() again"
                )
            self._write(folder, manifest)

    def _write(self, folder: Path, manifest: Manifest) -> None:
        contents = {"format": FORMAT, "version": VERSION, "index": manifest.lineage}
        text = json.dumps(contents | dataclasses.asdict(self), indent=2)
        path = folder / TUNING
        fresh = path.with_name(f"{TUNING}.{os.urandom(4).hex()}")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, folder: Path, manifest: Manifest) -> Tuning | None:
        """Read tuning.json of the index in `folder`; None if there is none.

        Raises
        ------
        IndexFormatError
            The file is damaged, of a newer version, or of another index; the message names it.
        """
        path = folder / TUNING
        try:
            contents = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise IndexFormatError(f"{path}: cannot be read as JSON ({error}); {_MEND}") from error
        if not isinstance(contents, dict) or contents.pop("format", None) != FORMAT:
            raise IndexFormatError(f'{path}: "format" is not "{FORMAT}"; {_MEND}')
        version = contents.pop("version", None)
        if version != VERSION:
            raise IndexFormatError(
                f"{path}: version {version!r}, this library reads {VERSION}; {_MEND}"
            )
        if contents.pop("index", None) != manifest.lineage:
            raise IndexFormatError(f"{path}: was measured on another index; {_MEND}")
        try:
            return cls._from_json(contents)
        except (TypeError, ValueError, KeyError) as error:
            raise IndexFormatError(f"{path}: damaged ({error}); {_MEND}") from error

    @classmethod
    def _from_json(cls, contents: dict[str, Any]) -> Tuning:
        curves = []
        for entry in contents.pop("curves"):
            points = tuple(_point(values) for values in entry["points"])
            exhaustive = _number(entry, "exhaustive_microseconds")
            curves.append(Curve(_count(entry, "k"), points, exhaustive))
        if not curves or curves != sorted(curves, key=lambda each: each.k):
            raise ValueError('"curves" must be there and ascend in "k"')
        for name in ("num_documents", "num_queries", "threads"):
            _count(contents, name)
        _number(contents, "recall")
        return cls(tuple(curves), **contents)


def _point(values: Any) -> OperatingPoint:
    nprobe, ndocs, recall, microseconds = values
    entry = OperatingPoint(nprobe, ndocs, recall, microseconds)._asdict()
    return OperatingPoint(
        _count(entry, "nprobe"),
        _count(entry, "ndocs"),
        _number(entry, "recall"),
        _number(entry, "microseconds"),
    )


def _count(entry: Mapping[str, Any], name: str) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'"{name}" must be a positive integer, got {value!r}')
    return value


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
        raise ValueError(f'"{name}" must be a number of at least 0, got {value!r}')
    return float(value)
