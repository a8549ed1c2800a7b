"""Teachers, their scores of tuples, and the cache that survives a kill."""

from __future__ import annotations

import errno
import json
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("sentence_transformers", reason="sentence-transformers is an extra")

from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from transformers import BertForSequenceClassification  # noqa: E402

from colbert_fast.errors import CheckpointError, UnknownDocumentError  # noqa: E402
from colbert_fast.kernels import reference  # noqa: E402
from colbert_fast.model import ColBERT  # noqa: E402
from colbert_fast.model.streaming import Embedding  # noqa: E402
from colbert_fast.search.bm25 import BM25  # noqa: E402
from colbert_fast.storage.documents import Document, DocumentStore, DocumentWriter  # noqa: E402
from colbert_fast.training import teacher_cache  # noqa: E402
from colbert_fast.training.cross_encoder import CrossEncoderTeacher, resolve_teacher_dtype  # noqa: E402
from colbert_fast.training.data import NWay, read_tuples, write_tuples  # noqa: E402
from colbert_fast.training.teacher import CombinedTeacher, score_with_teacher  # noqa: E402
from colbert_fast.training.teacher_cache import Pair, ScoreCache  # noqa: E402
from colbert_fast.training.teachers import (  # noqa: E402
    BiEncoderTeacher,
    BM25Teacher,
    JudgementsTeacher,
    MaxSimTeacher,
)
from tiny_models import WORDS, make_backbone, make_tokenizer, write_plain, write_pylate  # noqa: E402

QUERIES = {"q0": "why is the sky blue", "q1": "fast search engine"}
DOCUMENTS = {
    "d0": "the sky is blue",
    "d1": "the color of plaid is blue blue blue",
    "d2": "a fast engine",
    "d3": "late interaction search index the the search of the index of the color",
}
TUPLES = [
    NWay("q0", ("d0", "d1", "d2")),
    NWay("q1", ("d2", "d3")),
    NWay("q1", ("d3", "d0", "d1", "d2")),
]
PAIRS = [(query, document) for query in QUERIES.values() for document in DOCUMENTS.values()]


class Counting:
    """A teacher that tells apart all pairs and remembers what it was asked."""

    fingerprint = "counting"

    def __init__(self) -> None:
        self.calls: list[list[Pair]] = []

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        self.calls.append(list(pairs))
        return np.array([self.score(*pair) for pair in pairs], np.float32)

    @staticmethod
    def score(query: str, document: str) -> float:
        return len(query) + len(document) / 128  # exact in float32


def write_classifier(folder: Path, num_labels: int = 1) -> Path:
    """A tiny sequence classifier, in Hugging Face's layout."""
    backbone = make_backbone()
    backbone.config.num_labels = num_labels
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertForSequenceClassification(backbone.config)
    model.bert.load_state_dict(backbone.state_dict())
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def score(
    tuples: Sequence[NWay] | Path, teacher: object, out: Path, **options: object
) -> list[NWay]:
    options = {"queries": QUERIES, "documents": DOCUMENTS, "progress": False, **options}
    assert score_with_teacher(tuples, teacher, out=out, **options) == out  # type: ignore[arg-type]
    return list(read_tuples(out))


def test_scores_stand_beside_their_documents_in_the_order_of_the_tuples(tmp_path: Path) -> None:
    teacher = Counting()
    found = score(TUPLES, teacher, tmp_path / "scored.jsonl")
    assert [each[:2] for each in found] == [each[:2] for each in TUPLES]
    for each in found:
        texts = [DOCUMENTS[key] for key in each.document_ids]
        assert each.scores == tuple(teacher.score(QUERIES[each.query_id], text) for text in texts)


def test_each_pair_is_scored_once_longest_first(tmp_path: Path) -> None:
    teacher = Counting()
    score(TUPLES, teacher, tmp_path / "scored.jsonl")
    [call] = teacher.calls
    assert len(call) == len(set(call)) == 7
    lengths = [len(query) + len(document) for query, document in call]
    assert lengths == sorted(lengths, reverse=True)


def test_windows_do_not_change_scores_and_are_asked_for_no_pair_again(tmp_path: Path) -> None:
    whole = score(TUPLES, Counting(), tmp_path / "whole.jsonl")
    teacher = Counting()
    assert score(TUPLES, teacher, tmp_path / "parts.jsonl", window=1) == whole
    assert [len(call) for call in teacher.calls] == [3, 2, 2]


def test_a_path_of_tuples_and_pylates_layout(tmp_path: Path) -> None:
    write_tuples(tmp_path / "in.jsonl", TUPLES)
    found = score(tmp_path / "in.jsonl", Counting(), tmp_path / "out.jsonl", layout="pylate")
    assert found == score(TUPLES, Counting(), tmp_path / "other.jsonl")
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert sorted(first) == ["document_ids", "query_id", "scores"]


def test_cached_scores_are_shared_by_runs_but_not_by_teachers(tmp_path: Path) -> None:
    cache = tmp_path / "scores.sqlite"
    first = score(TUPLES, Counting(), tmp_path / "a.jsonl", cache=cache)
    again = Counting()
    assert score(TUPLES, again, tmp_path / "b.jsonl", cache=cache) == first
    assert again.calls == []
    other = Counting()
    other.fingerprint = "another"
    score(TUPLES, other, tmp_path / "c.jsonl", cache=cache)
    assert len(other.calls) == 1


def test_a_changed_text_under_the_same_id_is_scored_again(tmp_path: Path) -> None:
    cache = tmp_path / "scores.sqlite"
    score(TUPLES, Counting(), tmp_path / "a.jsonl", cache=cache)
    teacher = Counting()
    changed = {**DOCUMENTS, "d1": "plaid"}
    score(TUPLES, teacher, tmp_path / "b.jsonl", cache=cache, documents=changed)
    assert {document for call in teacher.calls for _, document in call} == {"plaid"}


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_teacher import Counting, DOCUMENTS, QUERIES, TUPLES
    from colbert_fast.training.teacher import score_with_teacher

    class Mortal(Counting):
        def __call__(self, pairs):
            if len(self.calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(pairs)

    score_with_teacher(
        TUPLES, Mortal(), queries=QUERIES, documents=DOCUMENTS, out={out!r}, window=1,
        progress=False,
    )
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    code = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    teacher = Counting()
    found = score(TUPLES, teacher, out, window=1)
    assert [len(call) for call in teacher.calls] == [2], "only the third window is left"
    assert found == score(TUPLES, Counting(), tmp_path / "whole.jsonl")


def test_ctrl_c_loses_no_scores(tmp_path: Path) -> None:
    class Interrupted(Counting):
        def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(pairs)

    out = tmp_path / "scored.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score(TUPLES, Interrupted(), out, window=1)
    assert [each.name for each in tmp_path.iterdir()] == ["scored.jsonl.scores.sqlite"]
    teacher = Counting()
    score(TUPLES, teacher, out, window=1)
    assert [len(call) for call in teacher.calls] == [2], "only the third window is left"


def test_a_full_disk_is_named_and_loses_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    pairs = {(f"query {number}", "document"): 0.5 for number in range(500)}
    first = dict(list(pairs.items())[:5])
    with ScoreCache(path) as cache:
        cache.put("teacher", first)
        [(pages,)] = cache._connection.execute("PRAGMA page_count")
        cache._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="full") as caught:
            cache.put("teacher", pairs)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with ScoreCache(path) as cache:
        assert cache.get("teacher", pairs) == first
        cache.put("teacher", pairs)
        assert cache.get("teacher", pairs) == pairs


def test_a_failing_teacher_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    out.write_text("old")

    class Failing(Counting):
        def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
            raise RuntimeError(f"no memory for {len(pairs)} pairs")

    with pytest.raises(RuntimeError, match="no memory for 7 pairs"):
        score(TUPLES, Failing(), out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scored.jsonl",
        "scored.jsonl.scores.sqlite",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda n: np.zeros(n + 1, np.float32), r"want float \(7,\) for 7 pairs, got float32 \(8"),
        (lambda n: np.zeros((n, 1), np.float32), r"got float32 \(7, 1\)"),
        (lambda n: np.zeros(n, np.int64), r"got int64 \(7,\)"),
        (lambda n: np.full(n, np.nan, np.float32), "nan for the query 'fast search engine'"),
    ],
)
def test_what_are_no_scores_is_refused(tmp_path: Path, bad: object, message: str) -> None:
    class Bad(Counting):
        def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
            return bad(len(pairs))  # type: ignore[no-any-return,operator]

    with pytest.raises(ValueError, match=message):
        score(TUPLES, Bad(), tmp_path / "scored.jsonl")


def test_errors_name_the_argument(tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl"
    write_tuples(tmp_path / "in.jsonl", TUPLES)
    with pytest.raises(UnknownDocumentError, match=r"documents: .* 'd3' of tuple 2 \(query 'q1'\)"):
        score(TUPLES, Counting(), out, documents=dict.fromkeys(("d0", "d1", "d2"), "x"))
    with pytest.raises(UnknownDocumentError, match=r"queries: .* 'q1' of tuple 2 of .*in.jsonl"):
        score(tmp_path / "in.jsonl", Counting(), out, queries={"q0": "x"})
    with pytest.raises(TypeError, match=r"teacher: want a callable .* got function"):
        score(TUPLES, lambda pairs: np.zeros(len(pairs)), out)
    with pytest.raises(ValueError, match="window: want an int of at least 1, got 0"):
        score(TUPLES, Counting(), out, window=0)
    (tmp_path / "other.sqlite").write_text("no database, but as long as the header of one" * 9)
    with pytest.raises(ValueError, match=r"other.sqlite: not a cache of teacher scores"):
        score(TUPLES, Counting(), out, cache=tmp_path / "other.sqlite")


def test_the_cache_keeps_every_bit_and_refuses_other_databases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(50).astype(np.float32).astype(float).tolist()
    known = {(f"q{n % 7}", f"d\ud800{n}"): each for n, each in enumerate(scores)}
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        cache.put("t", known)
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        assert cache.get("t", [*known, ("q0", "unknown")]) == known
        assert cache.get("u", known) == {}
    with DocumentWriter(tmp_path / "documents.sqlite") as writer:
        writer.add(Document("a", "text", None))
        writer.close()
    with pytest.raises(ValueError, match="a database of something else"):
        ScoreCache(tmp_path / "documents.sqlite")


def test_a_cache_that_cannot_be_opened_is_not_called_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "c.sqlite"
    ScoreCache(path).__exit__(None, None, None)
    monkeypatch.setattr(teacher_cache, "_BUSY_SECONDS", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match=r"c.sqlite: .*locked"):
            ScoreCache(path)
    with pytest.raises(OSError, match="unable to open"):
        ScoreCache(tmp_path)


def test_combined_scores_are_weighted_sums_of_z_scores_in_each_tuple(tmp_path: Path) -> None:
    length, words = Counting(), BM25Teacher(DOCUMENTS)
    combined = CombinedTeacher([(length, 2.0), (words, 0.5)])
    cache = tmp_path / "scores.sqlite"
    found = score(TUPLES, combined, tmp_path / "a.jsonl", cache=cache)
    for each in found:
        pairs = [(QUERIES[each.query_id], DOCUMENTS[key]) for key in each.document_ids]
        wanted = np.zeros(len(pairs))
        for teacher, weight in ((length, 2.0), (words, 0.5)):
            scores = teacher(pairs).astype(float)
            wanted += weight * (scores - scores.mean()) / scores.std()
        np.testing.assert_allclose(each.scores, wanted, rtol=1e-6, atol=1e-6)
    again = Counting()
    score(TUPLES, CombinedTeacher([(again, 1.0)]), tmp_path / "b.jsonl", cache=cache)
    assert again.calls == [], "each part's own scores are what is cached"


def test_equal_scores_add_nothing(tmp_path: Path) -> None:
    class Flat(Counting):
        fingerprint = "flat"

        def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
            return np.full(len(pairs), 7, np.float32)

    [found] = score([TUPLES[0]], CombinedTeacher([(Flat(), 1.0)]), tmp_path / "a.jsonl")
    assert found.scores == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="parts: want teachers with finite weights"):
        CombinedTeacher([])


def test_bm25_scores_as_searches_do(tmp_path: Path) -> None:
    teacher = BM25Teacher(DOCUMENTS)
    with DocumentWriter(tmp_path / "documents.sqlite") as writer:
        for key, text in DOCUMENTS.items():
            writer.add(Document(key, text, None))
        writer.close()
    store = DocumentStore(tmp_path / "documents.sqlite", len(DOCUMENTS))
    bm25 = BM25([store.texts])
    wanted = np.concatenate([bm25.score(query) for query in QUERIES.values()])
    store.close()
    np.testing.assert_allclose(teacher(PAIRS), wanted, rtol=1e-6)
    assert wanted.max() > 0
    assert teacher.fingerprint == BM25Teacher(iter(DOCUMENTS.values())).fingerprint
    assert teacher.fingerprint != BM25Teacher(["the sky"]).fingerprint


def test_judgements_are_the_grades_of_positives() -> None:
    queries = {"q": "sky", "r": "plaid"}
    documents = {"a": "blue sky", "b": "plaid", "copy": "blue sky"}
    teacher = JudgementsTeacher(queries, documents, {"q": {"a": 2, "copy": 1}, "r": {"b": 1}})
    pairs = [("sky", "blue sky"), ("sky", "plaid"), ("plaid", "plaid")]
    assert teacher(pairs).tolist() == [2, 0, 1]
    other = JudgementsTeacher(queries, documents, {"q": {"a": 1}, "r": {"b": 1}})
    assert other.fingerprint != teacher.fingerprint


def test_maxsim_scores_by_the_definition_and_encodes_each_text_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pylate(tmp_path / "model")
    model = ColBERT.from_pretrained(folder, dtype="float32", document_length=60)
    Q = dict(zip(QUERIES.values(), model.encode_queries(list(QUERIES.values())), strict=True))
    D = dict(zip(DOCUMENTS.values(), model.encode_documents([*DOCUMENTS.values()]), strict=True))
    wanted = [
        reference.maxsim(Q[query], D[document], np.array([len(D[document])], np.int32))[0]
        for query, document in PAIRS
    ]
    seen: list[str] = []
    encode = model.encode_documents

    def watched(texts: list[str], *, batch_size: int, progress: bool) -> list[Embedding]:
        seen.extend(texts)
        return encode(texts, batch_size=batch_size, progress=progress)

    monkeypatch.setattr(model, "encode_documents", watched)
    teacher = MaxSimTeacher(model)
    np.testing.assert_allclose(teacher(PAIRS[::-1])[::-1], wanted, rtol=1e-5)
    assert sorted(seen) == sorted(DOCUMENTS.values())
    shorter = ColBERT.from_pretrained(folder, dtype="float32", document_length=7)
    assert MaxSimTeacher(shorter).fingerprint != teacher.fingerprint


def test_bi_encoder_is_the_cosine_of_mean_vectors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_plain(tmp_path / "model")
    teacher = BiEncoderTeacher(tmp_path / "model", dtype="float32")
    assert caplog.messages == []
    wanted = []
    tokenizer, backbone = make_tokenizer(), make_backbone()
    for pair in PAIRS:
        means = []
        for text in pair:
            ids = torch.tensor([tokenizer(text, truncation=False, padding=False)["input_ids"]])
            with torch.inference_mode():
                means.append(backbone(ids).last_hidden_state[0].mean(0))
        wanted.append(torch.cosine_similarity(*means, dim=0).item())
    np.testing.assert_allclose(teacher(PAIRS), wanted, atol=1e-5)
    again = BiEncoderTeacher(tmp_path / "model", dtype="float32")
    assert again.fingerprint == teacher.fingerprint
    assert BiEncoderTeacher(teacher.model, dtype="bfloat16").fingerprint != teacher.fingerprint
    assert isinstance(teacher.model, SentenceTransformer)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_cross_encoder_scores_are_logits_or_log_odds(tmp_path: Path, num_labels: int) -> None:
    folder = write_classifier(tmp_path / "model", num_labels)
    teacher = CrossEncoderTeacher(folder, dtype="float32", batch_size=3)
    plain = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = make_tokenizer()
    wanted = []
    for query, document in PAIRS:
        inputs = tokenizer(query, document, truncation=False, padding=False, return_tensors="pt")
        with torch.inference_mode():
            logits = plain(**inputs).logits[0]
        wanted.append((logits[0] if num_labels == 1 else logits[1] - logits[0]).item())
    np.testing.assert_allclose(teacher(PAIRS), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.01, "a head that tells nothing apart tests nothing"


def test_cross_encoder_of_sentence_transformers_and_its_arithmetic(tmp_path: Path) -> None:
    write_classifier(tmp_path / "model")
    model = CrossEncoder(str(tmp_path / "model"), device="cpu", max_length=24)
    exact = CrossEncoderTeacher(model, dtype="float32")
    wanted = model.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(exact(PAIRS), wanted, atol=1e-6)
    fast = CrossEncoderTeacher(model, dtype="bfloat16")
    np.testing.assert_allclose(fast(PAIRS), wanted, atol=0.05)
    assert not np.array_equal(fast(PAIRS), exact(PAIRS)), "bfloat16 was asked for"
    shorter = CrossEncoderTeacher(model, dtype="float32", max_length=8)
    long = [("sky", " ".join(WORDS * 3)), ("sky", " ".join(WORDS * 2))]
    assert np.ptp(shorter(long)) == 0, "both are cut to the same tokens"
    assert np.ptp(exact(long)) == 0
    assert len({each.fingerprint for each in (exact, fast, shorter)}) == 3
    assert exact.fingerprint == CrossEncoderTeacher(model, dtype="float32").fingerprint


def change(folder: Path, name: str, *keys: str, value: object) -> None:
    """Set a value in a JSON file of a model."""
    whole = part = json.loads((folder / name).read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / name).write_text(json.dumps(whole))


LOWERCASE = ("tokenizer.json", "normalizer", "lowercase")


@pytest.mark.parametrize(
    ("kind", "write"), [(CrossEncoderTeacher, write_classifier), (BiEncoderTeacher, write_plain)]
)
def test_settings_and_tokenizers_have_fingerprints(tmp_path: Path, kind: Any, write: Any) -> None:
    for name, changed in (
        ("a", None),
        ("heads", ("config.json", "num_attention_heads", 4)),
        ("case", (*LOWERCASE, False)),
    ):
        write(tmp_path / name)
        if changed:
            change(tmp_path / name, *changed[:-1], value=changed[-1])
    teachers = [kind(tmp_path / name, dtype="float32") for name in ("a", "heads", "case")]
    before = [each.fingerprint for each in teachers]
    assert len(set(before)) == 3
    assert len({tuple(each([*PAIRS, ("THE SKY", "BLUE")]).tolist()) for each in teachers}) == 3
    for name, fingerprint in zip(("a", "heads", "case"), before, strict=True):
        again = kind(tmp_path / name, dtype="float32")
        again(PAIRS)
        assert again.fingerprint == fingerprint


def test_the_default_prompt_has_a_fingerprint(tmp_path: Path) -> None:
    write_plain(tmp_path / "model")
    prompts = {"x": "sky ", "y": "plaid "}
    one, other = (
        SentenceTransformer(
            str(tmp_path / "model"), device="cpu", prompts=prompts, default_prompt_name=name
        )
        for name in prompts
    )
    assert BiEncoderTeacher(one).fingerprint != BiEncoderTeacher(other).fingerprint


def test_the_tokenizer_of_a_maxsim_teacher_has_a_fingerprint(tmp_path: Path) -> None:
    found = []
    for name in ("a", "case"):
        folder = write_pylate(tmp_path / name)
        if name == "case":
            change(folder, *LOWERCASE, value=False)
        model = ColBERT.from_pretrained(folder, dtype="float32", document_length=60)
        found.append(MaxSimTeacher(model).fingerprint)
    assert found[0] != found[1]


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no cross-encoder \(BertModel\)"):
        CrossEncoderTeacher(write_plain(tmp_path / "plain"))
    with pytest.raises(CheckpointError, match="one class or two, got 3 classes"):
        CrossEncoderTeacher(write_classifier(tmp_path / "three", 3))
    with pytest.raises(CheckpointError, match="no such folder"):
        CrossEncoderTeacher(tmp_path / "nothing")
    folder = write_classifier(tmp_path / "own")
    settings = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    settings.update(model_type="own", auto_map=own)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="Python code that comes with it, which is not run"):
        CrossEncoderTeacher(folder)
    folder = write_classifier(tmp_path / "one")
    with pytest.raises(ValueError, match="batch_size: want an int of at least 1, got 0"):
        CrossEncoderTeacher(folder, batch_size=0)
    with pytest.raises(ValueError, match="CPUs do not multiply float16"):
        CrossEncoderTeacher(folder, dtype="float16")
    with pytest.raises(ValueError, match=r"dtype: want .* got 'int8'"):
        resolve_teacher_dtype("int8", torch.device("cpu"))  # type: ignore[arg-type]
