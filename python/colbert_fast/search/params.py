"""What a search may be asked to do, with the defaults of each mode."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from colbert_fast.storage.documents import DocumentId

if TYPE_CHECKING:
    from colbert_fast.search.tuning import Tuning

__all__ = ["Mode", "SearchOptions", "SearchParams", "check_positive", "check_recall"]

Mode = Literal["default", "plaid"]


class SearchOptions(TypedDict, total=False):
    """The options of `Index.search`, for type checkers."""

    nprobe: int | None
    ndocs: int | None
    centroid_score_threshold: float | None
    subset: Iterable[DocumentId] | npt.NDArray[np.bool_] | None
    mode: Mode
    exhaustive: bool
    recall: float | None


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
        max(ndocs // 4, k) are scored exactly.
    centroid_score_threshold
        In mode "plaid", document tokens whose centroid scores below it for every query token are
        left out of the first approximate score. None: none is. Mode "default" takes no other.
    mode
        "plaid": the four stages of PLAID (Santhanam et al. 2022); "default": ours.
    exhaustive
        Score every document exactly; all of the above but `k` is ignored.
    """

    k: int
    nprobe: int
    ndocs: int
    centroid_score_threshold: float | None
    mode: Mode
    exhaustive: bool

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
        recall: float | None = None,
        tuning: Tuning | None = None,
    ) -> SearchParams:
        """Check the values given and fill the others with the defaults for `mode` and `k`.

        With `recall`, nprobe and ndocs are those of the cheapest point of `tuning` that finds this
        share of the true `k` best, or the search is exhaustive where none does.

        Raises
        ------
        TypeError, ValueError
            A value is of the wrong type or out of range; the message names it.
        """
        k = check_positive("k", k)
        if mode not in _DEFAULTS:
            raise ValueError(f"mode must be one of {tuple(_DEFAULTS)}, got {mode!r}")
        if recall is not None:
            others = {
                "nprobe": nprobe,
                "ndocs": ndocs,
                "centroid_score_threshold": centroid_score_threshold,
                "exhaustive": exhaustive or None,
            }
            return _tuned(k, recall, tuning, mode, others)
        defaults = _DEFAULTS[mode](k)
        if ndocs is not None and check_positive("ndocs", ndocs) < k:
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
            defaults.nprobe if nprobe is None else check_positive("nprobe", nprobe),
            defaults.ndocs if ndocs is None else int(ndocs),
            threshold,
            mode,
            bool(exhaustive),
        )


def check_recall(recall: float) -> float:
    """`recall` if it is a share, above 0 and up to 1.

    Raises
    ------
    TypeError, ValueError
        It is not.
    """
    if isinstance(recall, bool) or not isinstance(recall, (int, float)):
        raise TypeError(f"recall must be a float, got {type(recall).__name__}")
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {recall}")
    return float(recall)


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


_DEFAULTS = {"default": _default, "plaid": _plaid}


def check_positive(name: str, value: int) -> int:
    """`value` as an int of at least 1.

    Raises
    ------
    TypeError, ValueError
        It is not one; the message names it.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number
