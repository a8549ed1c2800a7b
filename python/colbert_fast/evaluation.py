"""How good a search is: BEIR folders in, the usual measures and TREC run files out.

The measures are those of ir_measures (extra ``eval``). No document is left out of a ranking, not
even one whose id equals the query's: in many collections the two have nothing to do with one
another, and dropping it would cost the score of a right answer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from colbert_fast.corpus import find_file, read_corpus, read_json_lines, read_lines
from colbert_fast.errors import MissingDependencyError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from colbert_fast.index import Index
    from colbert_fast.search.params import SearchOptions
    from colbert_fast.sharded import ShardedIndex

__all__ = [
    "DEFAULT_MEASURES",
    "BeirFolder",
    "check_judged_documents",
    "check_measures",
    "evaluate",
    "held_out_split",
    "load_beir",
    "measure",
    "read_qrels",
    "retrieve",
    "write_run",
]

logger = logging.getLogger(__name__)

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "Recall@10", "Recall@100")
_ALIASES = {"MRR": "RR", "Recall": "R", "Precision": "P", "MAP": "AP"}

Qrels = Mapping[str, Mapping[str, int]]
Run = dict[str, list[tuple[str, float]]]


@dataclass(frozen=True)
class BeirFolder:
    """The queries and judgements of one split, and the way to its documents."""

    path: Path
    queries: dict[str, str]
    """The judged queries only: id to text, in the order of the file."""
    qrels: dict[str, dict[str, int]]
    """Query id to {document id: grade}."""

    def documents(self) -> Iterator[dict[str, Any]]:
        """Stream the corpus, from its beginning each time: see `corpus.read_corpus`."""
        return read_corpus(self.path, layout="beir")


def held_out_split(folder: Path) -> str | None:
    """The split of a BEIR folder to measure on: "test", else "dev"; None if it has neither."""
    return next((each for each in ("test", "dev") if any(folder.glob(f"qrels/{each}.tsv*"))), None)


def load_beir(path: str | Path, *, split: str = "test") -> BeirFolder:
    """Read a test collection in BEIR layout.

    Parameters
    ----------
    path : str or Path
        Folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``, each plain or
        with ``.gz``.
    split : str
        Which of the files under ``qrels`` to read.

    Raises
    ------
    FileNotFoundError
        One of the files is missing; for qrels, says which splits there are.
    ValueError
        A line is malformed, a query id comes twice or a judged query has no text; names file and
        line.
    """
    path = Path(path)
    find_file(path, "corpus.jsonl")
    query_file = find_file(path, "queries.jsonl")
    qrels_file = _find_qrels(path, split)
    qrels = read_qrels(qrels_file)
    queries = _read_queries(query_file, wanted=set(qrels))
    missing = [query for query in qrels if query not in queries]
    if missing:
        raise ValueError(
            f"{qrels_file}: {len(missing)} judged queries are not in {query_file.name}, "
            f"the first is {missing[0]!r}"
        )
    return BeirFolder(path, queries, qrels)


def _find_qrels(path: Path, split: str) -> Path:
    try:
        return find_file(path / "qrels", f"{split}.tsv")
    except FileNotFoundError:
        splits = sorted({file.name.split(".tsv")[0] for file in path.glob("qrels/*.tsv*")})
        raise FileNotFoundError(
            f"{path / 'qrels'}: no {split}.tsv; the splits here are: {', '.join(splits) or 'none'}"
        ) from None


def _read_queries(path: Path, *, wanted: set[str]) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, record in read_json_lines(path):
        name, text = record.get("_id", record.get("id")), record.get("text")
        if not isinstance(name, (str, int)) or not isinstance(text, str):
            raise ValueError(f"{path}:{number}: wanted '_id' and a string 'text', got {record!r}")
        if str(name) in queries:
            raise ValueError(f"{path}:{number}: query id {name!r} comes a second time")
        if str(name) in wanted:
            queries[str(name)] = text
    return queries


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read ``query <tab> document <tab> grade`` lines under a header, or four-column TREC ones.

    Returns
    -------
    dict of str to dict of str to int
        Query id to {document id: grade}.

    Raises
    ------
    ValueError
        A line is something else, or there is none; names file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and not fields[-1].strip().lstrip("-").isdigit():
            continue
        try:
            if len(fields) not in (3, 4):
                raise ValueError(f"got {len(fields)} columns")
            grade = int(fields[-1])
        except ValueError as error:
            wanted = "query id, document id and an integer grade with tabs between them"
            raise ValueError(f"{path}:{number}: wanted {wanted}; {error}") from error
        qrels.setdefault(fields[0], {})[fields[-2]] = grade
    if not qrels:
        raise ValueError(f"{path}: no judgements in this file")
    return qrels


def retrieve(
    index: Index | ShardedIndex,
    queries: Mapping[str, str] | Mapping[str, npt.NDArray[np.float32]],
    *,
    k: int = 100,
    **options: Unpack[SearchOptions],
) -> Run:
    """Search an index for every query.

    Parameters
    ----------
    index : Index or ShardedIndex
        The index to search.
    queries : mapping of str to str or to float32 (tokens, dim)
        Query id to its text, or to its token embeddings.
    k : int
        Documents per query.
    options
        Those of `Index.search`.

    Returns
    -------
    dict of str to list of (str, float)
        Query id to its documents and scores, best first; ids are strings in it.
    """
    answers = index.search(list(queries.values()), k, **options)
    return {
        str(query): [(str(hit.id), hit.score) for hit in hits]
        for query, hits in zip(queries, answers, strict=True)
    }


def measure(
    run: Mapping[str, Sequence[tuple[str, float]]],
    qrels: Qrels,
    *,
    measures: str | Sequence[str] = DEFAULT_MEASURES,
) -> dict[str, float]:
    """Average measures over the judged queries; one that `run` lacks counts as zero.

    Parameters
    ----------
    run : mapping
        What `retrieve` returns.
    qrels : mapping
        Query id to {document id: grade}; ids are compared as strings.
    measures : str or sequence of str
        Names as ir_measures writes them, such as ``nDCG@10`` or ``RR(rel=2)@10``; ``MRR``,
        ``Recall``, ``Precision`` and ``MAP`` are understood too.

    Returns
    -------
    dict of str to float
        The mean of each measure, under the name that it was asked for by.
    """
    parsed = _parse_measures(measures)
    import ir_measures

    scored = {str(query): dict(ranking) for query, ranking in run.items()}
    judged = {
        str(query): {str(document): grade for document, grade in grades.items()}
        for query, grades in qrels.items()
    }
    values = ir_measures.calc_aggregate(parsed.values(), judged, scored)
    return {name: float(values[what]) for name, what in parsed.items()}


def evaluate(
    index: Index | ShardedIndex,
    queries: Mapping[str, str] | Mapping[str, npt.NDArray[np.float32]],
    qrels: Qrels,
    *,
    measures: str | Sequence[str] = DEFAULT_MEASURES,
    k: int = 100,
    **options: Unpack[SearchOptions],
) -> dict[str, float]:
    """Search an index for every judged query and average measures of what it finds.

    Parameters
    ----------
    index, queries, k, options
        As for `retrieve`; queries without a judgement are passed over.
    qrels, measures
        As for `measure`.

    Returns
    -------
    dict of str to float
        The mean of each measure over the queries of `qrels`.

    Raises
    ------
    ValueError
        A judged query is missing from `queries`, a measure is unknown or looks deeper than `k`, or
        not one judged document is in the index: then the two do not belong together.

    Examples
    --------
    >>> folder = load_beir("data/cranfield")                       # doctest: +SKIP
    >>> evaluate(Index.open("cran.cf"), folder.queries, folder.qrels)  # doctest: +SKIP
    """
    missing = [query for query in qrels if query not in queries]
    if missing:
        raise ValueError(
            f"`queries` must hold every judged query; {len(missing)} of {len(qrels)} are missing, "
            f"the first is {missing[0]!r}"
        )
    check_measures(measures, k=k)
    check_judged_documents(index, qrels)
    # In the order of the queries, in which options for each of them are given.
    judged: dict[str, Any] = {query: what for query, what in queries.items() if query in qrels}
    return measure(retrieve(index, judged, k=k, **options), qrels, measures=measures)


def check_measures(measures: str | Sequence[str], *, k: int) -> None:
    """Complain of measures that are unknown or need more than `k` documents per query."""
    for name, parsed in _parse_measures(measures).items():
        cutoff = parsed.params.get("cutoff")
        if cutoff is not None and cutoff > k:
            raise ValueError(f"`k` must be at least {cutoff} for the measure {name}; got {k}")


def check_judged_documents(index: Index | ShardedIndex, qrels: Qrels) -> None:
    """Complain if judgements and index speak of different documents; warn if in part."""
    if not qrels:
        raise ValueError("`qrels` must hold at least one judged query; got none")
    known = {str(name) for name in index.ids}
    judged = {str(document) for grades in qrels.values() for document in grades}
    absent = judged - known
    if absent == judged:
        raise ValueError(
            f"none of the {len(judged)} judged documents is in {index!r}, whose ids look "
            f"like {next(iter(known), None)!r}; wanted ids like {next(iter(judged))!r}: "
            "evaluate the index of this very collection"
        )
    if absent:
        logger.warning("%d of %d judged documents are not in the index", len(absent), len(judged))


def write_run(
    path: str | Path,
    run: Mapping[str, Sequence[tuple[str, float]]],
    *,
    tag: str = "colbert_fast",
) -> None:
    """Write a run in TREC format: ``query Q0 document rank score tag``, ranks from 1."""
    lines = []
    for query, ranking in run.items():
        for rank, (document, score) in enumerate(ranking, 1):
            fields = (query, "Q0", document, str(rank), f"{score:.9g}", tag)
            if any(not field or field.split() != [field] for field in fields):
                raise ValueError(
                    f"{path}: a TREC run cannot hold ids that are empty or have white space in "
                    f"them; got query {query!r}, document {document!r}, tag {tag!r}"
                )
            lines.append(" ".join(fields))
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _parse_measures(names: str | Sequence[str]) -> dict[str, Any]:
    """Each measure by the name that it was asked for by."""
    return {name: _parse_measure(name) for name in ([names] if isinstance(names, str) else names)}


def _parse_measure(name: str) -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(
            "evaluation needs the package ir_measures; install it with: "
            'pip install "colbert-fast[eval]"'
        ) from error
    stem = name.replace("(", "@").split("@")[0]
    try:
        return ir_measures.parse_measure(_ALIASES.get(stem, stem) + name[len(stem) :])
    except (NameError, ValueError) as error:
        raise ValueError(
            f"`measures` must be names that ir_measures knows, such as {DEFAULT_MEASURES[0]!r}; "
            f"got {name!r} ({error})"
        ) from error
