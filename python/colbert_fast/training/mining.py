"""Candidates for hard negatives: what BM25, an index or a model finds for the training queries."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from colbert_fast.index import Index
from colbert_fast.indexing.progress import progress_bar
from colbert_fast.reader import IndexReader
from colbert_fast.search.bm25 import BM25, best
from colbert_fast.training.files import replacing
from colbert_fast.training.sampling import sample_tuples
from colbert_fast.training.texts import Source, StoredTexts, Texts, store_texts
from colbert_fast.training.tuple_files import TupleFile, read_tuples, write_tuples
from colbert_fast.training.tuples import NWay

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from colbert_fast.model import ColBERT
    from colbert_fast.search.params import SearchOptions

__all__ = ["mine", "sample_tuples"]

logger = logging.getLogger(__name__)

_JOB = "job.json"

Ranking = list[tuple[str, float]]
Search = Callable[[list[str]], list[Ranking]]
"""Texts of queries to their documents and scores, best first."""


def mine(
    source: Literal["bm25"] | IndexReader | ColBERT,
    queries: Mapping[str, str],
    documents: Source | None = None,
    *,
    depth: int = 200,
    out: str | os.PathLike[str] | None = None,
    index_path: str | os.PathLike[str] | None = None,
    part_size: int = 1024,
    progress: bool = True,
    **options: Unpack[SearchOptions],
) -> Sequence[NWay]:
    """Rank documents for every training query; `sample_tuples` makes tuples of the rankings.

    Parameters
    ----------
    source
        "bm25"; an index, whose model encodes the queries; or a model, which indexes `documents`
        first.
    queries
        Id to text.
    documents
        As for `Texts.open`. With an index they are not needed. For BM25 over many documents, a
        `Texts` with a cache has the words counted already.
    depth
        Documents of a ranking.
    out
        Write the rankings to this ``.jsonl``, in PyLate's layout. They are kept in parts beside it
        (``<out>.parts``) until all are there; a call that was stopped or killed is made again, and
        searches for what is missing.
    index_path
        Where a model puts its index, or finds it: one that is there must be of this model and of
        these documents, whose digest is kept beside it (``<index_path>.documents``).
        By default it is gone in the end.
    part_size
        Queries searched at once, and written together.
    progress
        Show progress bars on stderr.
    **options
        Of `Index.search`, such as ``exhaustive=True`` or ``recall=0.95``.

    Returns
    -------
    sequence of NWay
        The documents found for each query with their scores, best first, in the order of `queries`;
        a `TupleFile` if `out` is given, else a list. Queries for which nothing was found have none;
        how many is logged.

    Raises
    ------
    ValueError, TypeError
        An argument is missing or out of range, nothing was found for any query, or the parts beside
        `out` are of other queries, documents, models or options.
    FileExistsError
        There is something at `out` already.
    """
    _check(queries, depth, part_size, out)
    _check_source(source, documents, options)
    texts = queries if isinstance(queries, Texts) else Texts(queries, name="queries")
    names = list(texts)
    with ExitStack() as stack:
        if out is None:
            parts = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            parts = Path(f"{os.fspath(out)}.parts")
            parts.mkdir(parents=True, exist_ok=True)
        collection = None if documents is None else Texts.open(documents)
        job = {"depth": depth, "part_size": part_size, "options": repr(sorted(options.items()))}
        job |= {**_identity(source, collection), "queries": _digest(texts.pairs())}
        _claim(parts, job)
        starts = range(0, len(names), part_size)
        files = [parts / f"{start:010d}.jsonl" for start in starts]
        if not all(file.exists() for file in files):
            search = stack.enter_context(
                _searcher(source, collection, depth, index_path, options, progress)
            )
            bar = stack.enter_context(progress_bar("mine", "query", len(names), progress))
            for start, file in zip(starts, files, strict=True):
                batch = names[start : start + part_size]
                if not file.exists():
                    write_tuples(file, _ranked(search, batch, texts), layout="pylate")
                bar.update(len(batch))
        return _gathered(files, len(names), None if out is None else Path(out))


def _check(
    queries: Mapping[str, str], depth: int, part_size: int, out: str | os.PathLike[str] | None
) -> None:
    for name, value in (("depth", depth), ("part_size", part_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
    if len(queries) == 0:
        raise ValueError("`queries` must hold at least one query; got none")
    if out is not None:
        if Path(out).suffix != ".jsonl":
            raise ValueError(f"`out` must be a .jsonl; got {os.fspath(out)!r}")
        if Path(out).exists():
            raise FileExistsError(f"{os.fspath(out)}: there already; read it with TupleFile")


def _check_source(source: Any, documents: Source | None, options: SearchOptions) -> None:
    if isinstance(source, IndexReader):
        if documents is not None:
            raise ValueError("`documents` are in the index already: pass only one of them")
        return
    if not (source == "bm25" if isinstance(source, str) else hasattr(source, "encode_documents")):
        raise TypeError(f"`source` must be 'bm25', an Index or a ColBERT; got {source!r}")
    if documents is None:
        raise ValueError("`documents` are needed unless `source` is an index")
    if options and isinstance(source, str):
        raise TypeError(f"BM25 has no options; got {', '.join(options)}")


def _identity(source: Any, documents: Texts | None) -> dict[str, Any]:
    """What decides the rankings, as JSON."""
    if documents is None:
        manifest = source.manifest
        return {"source": [manifest.lineage, manifest.generation, manifest.num_documents]}
    name = source if isinstance(source, str) else _model_identity(source)
    return {"source": name, "documents": _digest(documents.pairs())}


def _model_identity(model: ColBERT) -> list[str]:
    """Weights, settings of the texts and arithmetic."""
    return [model.fingerprint(), repr(model.config), str(model.backend), str(model.dtype)]


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    """Of ids and texts and their order."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        digest.update(json.dumps(pair).encode())
    return digest.hexdigest()


def _claim(parts: Path, job: dict[str, Any]) -> None:
    """Write down what the parts are of, or see that those that are there are of the same."""
    file = parts / _JOB
    if not file.exists() or not any(parts.glob("*.jsonl")):
        with replacing(file) as partial:
            partial.write_text(json.dumps(job, indent=2), encoding="utf-8")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    changed = [key for key in job if found.get(key) != job[key]]
    if changed:
        raise ValueError(
            f"{parts}: parts of rankings with other {', '.join(changed)}; remove this folder to "
            "mine anew"
        )


def _ranked(search: Search, names: list[str], queries: Texts) -> Iterator[NWay]:
    """The rankings of some queries, without those for which nothing is found."""
    rankings = search(queries.many(names))
    for name, ranking in zip(names, rankings, strict=True):
        if ranking:
            documents, scores = zip(*ranking, strict=True)
            yield NWay(name, documents, scores)
        else:
            logger.info("nothing found for query %r", name)


def _gathered(files: Sequence[Path], total: int, out: Path | None) -> Sequence[NWay]:
    """All parts as one; those beside `out` are removed when it is there."""
    if out is None:
        rankings: Sequence[NWay] = [item for file in files for item in read_tuples(file)]
    else:
        with replacing(out) as partial:
            _join(files, partial)
            if partial.stat().st_size == 0:
                raise ValueError(f"nothing was found for any of {total} queries")
        shutil.rmtree(files[0].parent)
        rankings = TupleFile(out)
    if len(rankings) == 0:
        raise ValueError(f"nothing was found for any of {total} queries")
    if len(rankings) < total:
        logger.warning("nothing was found for %d of %d queries", total - len(rankings), total)
    return rankings


def _join(files: Iterable[Path], out: Path) -> None:
    with out.open("wb") as joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined)


@contextmanager
def _searcher(
    source: Any,
    documents: Texts | None,
    depth: int,
    index_path: str | os.PathLike[str] | None,
    options: SearchOptions,
    progress: bool,
) -> Iterator[Search]:
    if documents is None:
        yield _by_index(source, depth, options)
    elif source == "bm25":
        with _by_bm25(documents, depth) as search:
            yield search
    else:
        with _indexed(source, documents, index_path, progress) as index:
            yield _by_index(index, depth, options)


def _by_index(index: IndexReader, depth: int, options: SearchOptions) -> Search:
    def search(texts: list[str]) -> list[Ranking]:
        answers = index.search(texts, depth, **options)
        return [[(str(hit.id), hit.score) for hit in hits] for hits in answers]

    return search


@contextmanager
def _by_bm25(documents: Texts, depth: int) -> Iterator[Search]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if isinstance(documents, StoredTexts):
            stored = documents
        else:
            stored = store_texts(documents, Path(scratch, "texts"))
            stack.callback(stored.close)
        ids = stored.store.read_ids()
        bm25 = BM25([stored.store.texts])

        def rank(text: str) -> Ranking:
            scores = bm25.score(text)
            found = best(scores, depth)
            names = (str(ids[position]) for position in found.tolist())
            return list(zip(names, scores[found].tolist(), strict=True))

        yield lambda texts: [rank(text) for text in texts]


@contextmanager
def _indexed(
    model: ColBERT,
    documents: Texts,
    index_path: str | os.PathLike[str] | None,
    progress: bool,
) -> Iterator[Index]:
    """An index of the documents: the one at `index_path`, or a new one."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "mining.cf") if index_path is None else Path(index_path)
        keep = index_path is not None
        if keep:
            _claim_index(path, _digest(documents.pairs()))
        if path.exists():
            index = Index.open(path, model=model)
        else:
            index = Index.build(
                path, documents.pairs(), model=model, resume=keep, progress=progress
            )
        with index:
            if len(index) != len(documents):
                raise ValueError(
                    f"{path}: an index of {len(index)} documents, for {len(documents)}; remove it"
                )
            yield index


def _claim_index(path: Path, digest: str) -> None:
    """Write down beside an index what documents it is of, or see that it is of these."""
    record = Path(f"{path}.documents")
    if not path.exists():
        with replacing(record) as partial:
            partial.write_text(digest, encoding="utf-8")
    elif record.exists() and record.read_text(encoding="utf-8") != digest:
        raise ValueError(f"{path}: an index of other documents; remove it")
