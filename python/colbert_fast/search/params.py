"""What a search may be asked to do, with the defaults of each mode."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.documents import DocumentId
from colbert_fast.storage.filters import Filter
from colbert_fast.storage.manifest import MAX_DOCUMENTS

if TYPE_CHECKING:
    from colbert_fast.search.tuning import Tuning

__all__ = [
    "TEXT_MODES",
    "DenseMode",
    "Mode",
    "SearchOptions",
    "SearchParams",
    "check_positive",
    "check_recall",
]

DenseMode = Literal["default", "plaid"]
"""Ways to search by vectors alone."""
TextMode = Literal["rerank", "hybrid"]
"""Those that rank the stored texts by BM25 as well."""
Mode = Literal[DenseMode, TextMode]
TEXT_MODES: tuple[TextMode, ...] = get_args(TextMode)
_BM25_WEIGHT = 0.3
_GROWING: tuple[Mode, ...] = ("default", "hybrid")
# From where they find .99 of the best ten, the defaults grow with this power of the number of
# documents: .965 at 250,000, .958 at a million (benchmarks/RESULTS.md, "Growth").
_GROWTH, _GROWS_FROM = 0.3, 25_000


class SearchOptions(TypedDict, total=False):
    """The options of `Index.search`, for type checkers."""

    nprobe: int | None
    ndocs: int | None
    centroid_score_threshold: float | None
    subset: Iterable[DocumentId] | npt.NDArray[np.bool_] | None
    filter: Filter | None
    candidates: Iterable[Any] | None
    mode: Mode
    exhaustive: bool
    recall: float | None
    bm25_weight: float | None
    texts: str | Sequence[str] | None


class SearchParams(NamedTuple):
    """Resolved search parameters.

    Attributes
    ----------
    k
        Hits wanted.
    nprobe
        Centroids whose documents become candidates, per query token.
    ndocs
        Candidates kept after the approximate (centroids only) scores. In mode "default" they are
        scored in int8, best first, until the next can hardly be among the k best, and exactly
        where their int8 score leaves them a chance (with the codec "float16" all ndocs exactly);
        where there are at most 1.5 ndocs documents, all are. In mode "plaid" the best
        max(ndocs // 4, k) are scored exactly. In mode "rerank" the candidates are the best by BM25,
        and all of them are scored exactly.
    centroid_score_threshold
        In mode "plaid", document tokens whose centroid scores below it for every query token are
        left out of the first approximate score. None: none is. Mode "default" takes no other.
    mode
        "plaid": the four stages of PLAID (Santhanam et al. 2022); "default": ours; "rerank": MaxSim
        of the best by BM25; "hybrid": fusion of BM25 and "default".
    exhaustive
        Score every document exactly; all of the above but `k` is ignored. In mode "hybrid" that is
        the ranking which is fused with BM25's.
    bm25_weight
        In mode "hybrid": the share of BM25 in the fused score.
    """

    k: int
    nprobe: int
    ndocs: int
    centroid_score_threshold: float | None
    mode: Mode
    exhaustive: bool
    bm25_weight: float = _BM25_WEIGHT

    @classmethod
    def resolve(
        cls,
        k: int = 10,
        *,
        nprobe: int | None = None,
        ndocs: int | None = None,
        centroid_score_threshold: float | None = None,
        mode: Mode = "default",
        exhaustive: bool = False,
        bm25_weight: float | None = None,
        recall: float | None = None,
        tuning: Tuning | None = None,
        num_documents: int = 0,
    ) -> SearchParams:
        """Check the values given and fill the others with the defaults.

        These depend on `mode`, `k` and `num_documents`. In modes "default" and "hybrid" nprobe and
        ndocs grow with the number of documents: for k up to 100 they are 4 and 1024 up to 25,000
        documents, and about twice that for ten times as many.

        With `recall`, nprobe and ndocs are those of the cheapest point of `tuning` that finds this
        share of the true `k` best, or the search is exhaustive where none does.

        Raises
        ------
        TypeError, ValueError
            A value is of the wrong type or out of range; the message names it.
        """
        k = _check_count("k", k)
        if mode not in _DEFAULTS:
            raise ValueError(f"mode must be one of {tuple(_DEFAULTS)}, got {mode!r}")
        if recall is not None:
            others = {
                "nprobe": nprobe,
                "ndocs": ndocs,
                "centroid_score_threshold": centroid_score_threshold,
                "exhaustive": exhaustive or None,
                "bm25_weight": bm25_weight,
            }
            return _tuned(k, recall, tuning, mode, others)
        if mode == "rerank" and (nprobe is not None or exhaustive):
            raise ValueError(
                'mode "rerank" probes nothing: leave out nprobe and exhaustive (ndocs says how '
                "many documents are reranked)"
            )
        defaults = _DEFAULTS[mode](k)
        if mode in _GROWING:
            defaults = _grown(defaults, num_documents)
        if ndocs is not None and (ndocs := _check_count("ndocs", ndocs)) < k:
            raise ValueError(f"ndocs must be at least k={k}, got {ndocs}")
        threshold = defaults.centroid_score_threshold
        if centroid_score_threshold is not None:
            threshold = float(centroid_score_threshold)
            if math.isnan(threshold):
                raise ValueError("centroid_score_threshold is NaN")
            if mode != "plaid":
                raise ValueError(
                    f"centroid_score_threshold={threshold} means nothing in mode {mode!r}; leave "
                    'it out, or pass mode="plaid"'
                )
        return cls(
            k,
            defaults.nprobe if nprobe is None else _check_count("nprobe", nprobe),
            defaults.ndocs if ndocs is None else ndocs,
            threshold,
            mode,
            bool(exhaustive),
            _check_weight(bm25_weight, mode),
        )


def _check_weight(weight: float | None, mode: Mode) -> float:
    if weight is None:
        return _BM25_WEIGHT
    if mode != "hybrid":
        raise ValueError(f"bm25_weight={weight} means nothing in mode {mode!r}; leave it out")
    if not 0 <= _check_real("bm25_weight", weight) <= 1:
        raise ValueError(f"bm25_weight must be from 0 to 1, got {weight}")
    return float(weight)


def check_recall(recall: float) -> float:
    """`recall` if it is a share, above 0 and up to 1.

    Raises
    ------
    TypeError, ValueError
        It is not.
    """
    if not 0 < _check_real("recall", recall) <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {recall}")
    return float(recall)


def _check_real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    return float(value)


def _tuned(
    k: int, recall: float, tuning: Tuning | None, mode: Mode, others: dict[str, float | None]
) -> SearchParams:
    recall = check_recall(recall)
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            f"recall={recall} chooses nprobe and ndocs itself: leave out {' and '.join(given)}"
        )
    if mode != "default":
        raise ValueError(f'recall={recall} is tuned for mode "default", got mode={mode!r}')
    if tuning is None:
        raise ValueError(
            f"recall={recall} needs an index that is tuned: call tune() on it once (on the command "
            "line: colbert-fast tune INDEX)"
        )
    point = tuning.choose(k, recall)
    if point is None:
        return _default(k)._replace(exhaustive=True)
    return _default(k)._replace(nprobe=point.nprobe, ndocs=point.ndocs)


def _plaid(k: int) -> SearchParams:
    """Table of the PLAID paper and of Stanford's searcher."""
    if k <= 10:
        return SearchParams(k, 1, 256, 0.5, "plaid", False)
    if k <= 100:
        return SearchParams(k, 2, 1024, 0.45, "plaid", False)
    return SearchParams(k, 4, max(4 * k, 4096), 0.4, "plaid", False)


def _default(k: int) -> SearchParams:
    return SearchParams(k, 4 if k <= 100 else 8, max(1024, 8 * k), None, "default", False)


def _grown(usual: SearchParams, num_documents: int) -> SearchParams:
    growth: float = max(1.0, num_documents / _GROWS_FROM) ** _GROWTH
    return usual._replace(nprobe=round(growth * usual.nprobe), ndocs=round(growth * usual.ndocs))


def _rerank(k: int) -> SearchParams:
    return _default(k)._replace(ndocs=max(100, 2 * k), mode="rerank")


def _hybrid(k: int) -> SearchParams:
    return _default(k)._replace(mode="hybrid")


_DEFAULTS = {"default": _default, "plaid": _plaid, "rerank": _rerank, "hybrid": _hybrid}


def _check_count(name: str, value: int) -> int:
    """`value` as `check_positive` takes it, or as many documents as an index can hold."""
    return min(check_positive(name, value), MAX_DOCUMENTS)


def check_positive(name: str, value: int, *, least: int = 1) -> int:
    """`value` as an int of at least 1, or `least`; NumPy's are taken.

    Raises
    ------
    TypeError, ValueError
        It is not one; the message names it.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number
