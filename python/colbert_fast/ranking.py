"""Texts in the order of their MaxSim with a query, without an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from colbert_fast.kernels import ops

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = ["rerank"]


def rerank(
    query: str, texts: Sequence[str], *, model: ColBERT, batch_size: int = 32
) -> list[tuple[int, float]]:
    """Rank what another search has found by exact MaxSim (ColBERT, arXiv 2004.12832, section 3.2).

    Texts are encoded anew with every call: what is asked often belongs in an index, whose `rerank`
    takes ids.

    Parameters
    ----------
    query
        One query.
    texts
        What it is to be compared with.
    model
        Encodes both, as `ColBERT.from_pretrained()` loads it.
    batch_size
        As for `ColBERT.encode_documents`.

    Returns
    -------
    list of (int, float)
        Place in `texts` and float32 score of each, best first; ties by place.

    Raises
    ------
    TypeError
        `query` is no str, `texts` is one, or holds something else.
    """
    for name, value, wanted in (("query", query, True), ("texts", texts, False)):
        if isinstance(value, str) is not wanted:
            kind = "one text" if wanted else "a sequence of texts"
            raise TypeError(f"{name}: expected {kind}, got {type(value).__name__}")
    if not texts:
        return []
    [asked] = model.encode_queries(query, progress=False)
    rows = model.encode_documents(list(texts), batch_size=batch_size, progress=False)
    doclens = np.array([len(each) for each in rows], np.int32)
    scores: Any = ops.maxsim(asked, np.concatenate(rows), doclens)
    order = np.argsort(-scores, kind="stable")
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))
