"""The commands that measure: quality on judgements, and what recall costs on an index."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colbert_fast.cli.shell import (
    BackendOption,
    CodecOption,
    DeviceOption,
    DocumentLengthOption,
    ExhaustiveOption,
    FilterOption,
    IndexArgument,
    JsonOption,
    ModelOption,
    ModeOption,
    NbitsOption,
    NdocsOption,
    NprobeOption,
    ProgressOption,
    QueryLengthOption,
    RecallOption,
    WeightOption,
    check_parent,
    dumps,
    given_model,
    load_model,
    show_progress,
)

if TYPE_CHECKING:
    from colbert_fast.index import Index
    from colbert_fast.model import ColBERT
    from colbert_fast.storage.manifest import CodecName

__all__ = ["bench", "evaluate", "tune"]

QueriesOption = Annotated[
    Path | None,
    typer.Option(
        "--queries",
        help="Typical queries: texts as for the command index, .npz of the command encode, or "
        ".npy (n, tokens, dim). By default they are made from the index's documents.",
    ),
]
KsOption = Annotated[str, typer.Option("-k", "--k", help="Hits per query, as in 10,100.")]
CountOption = Annotated[
    int, typer.Option("--num-queries", min=1, help="Queries to make, or to take of the file.")
]


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Collection in BEIR layout.")],
    *,
    path: Annotated[
        Path | None,
        typer.Option("--index", help="Its index; by default one is built and thrown away."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels to use.")] = "test",
    measure: Annotated[
        list[str] | None, typer.Option(help="Such as nDCG@10; may be given several times.")
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", help="Write the rankings in TREC format.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Documents per query.")] = 100,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    query_length: QueryLengthOption = None,
    document_length: DocumentLengthOption = None,
    nbits: NbitsOption = 2,
    codec: CodecOption = "default",
    nprobe: NprobeOption = None,
    ndocs: NdocsOption = None,
    mode: ModeOption = "default",
    where: FilterOption = None,
    exhaustive: ExhaustiveOption = False,
    recall: RecallOption = None,
    bm25_weight: WeightOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = None,
) -> None:
    """Measure the quality of a search on a judged collection."""
    from colbert_fast import evaluation

    measures = tuple(measure or evaluation.DEFAULT_MEASURES)
    evaluation.check_measures(measures, k=k)
    check_parent(run_file)
    if recall is not None and path is None:
        raise ValueError("--recall needs --index: an index that the command tune has measured")
    beir = evaluation.load_beir(folder, split=split)
    lengths = {"query_length": query_length, "document_length": document_length}
    loaded = (
        load_model(model, device, backend, **lengths)
        if path is None
        else given_model(model, device, backend, index=path, **lengths)
    )
    with _opened_or_built(path, beir, loaded, nbits, codec, progress) as opened:
        evaluation.check_judged_documents(opened, beir.qrels)
        start = time.perf_counter()
        run = evaluation.retrieve(
            opened,
            beir.queries,
            k=k,
            nprobe=nprobe,
            ndocs=ndocs,
            mode=mode,
            filter=where,
            exhaustive=exhaustive,
            recall=recall,
            bm25_weight=bm25_weight,
        )
        seconds = time.perf_counter() - start
    if run_file is not None:
        evaluation.write_run(run_file, run)
    _say_measures(
        evaluation.measure(run, beir.qrels, measures=measures), len(run), seconds, as_json
    )


def _say_measures(values: dict[str, float], queries: int, seconds: float, as_json: bool) -> None:
    if as_json:
        typer.echo(dumps({"queries": queries, "seconds": seconds, **values}))
        return
    for name, value in values.items():
        typer.echo(f"{name:12} {value:.4f}")
    typer.echo(f"{queries} queries, {1000 * seconds / queries:.1f} ms each with their encoding")


def tune(
    path: IndexArgument,
    *,
    recall: Annotated[float, typer.Option(help="Highest recall that will be asked for.")] = 0.99,
    k: KsOption = "10,100",
    queries: QueriesOption = None,
    num_queries: CountOption = 256,
    seed: int = 42,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    progress: ProgressOption = None,
) -> None:
    """Measure what recall costs on an index, for searches with --recall."""
    from colbert_fast.index import Index

    ks = _numbers(k)
    with Index.open(path, model=given_model(model, device, backend, index=path)) as opened:
        tuning = opened.tune(
            recall,
            k=ks,
            queries=None if queries is None else _read_queries(queries)[:num_queries],
            num_queries=num_queries,
            seed=seed,
            progress=show_progress(progress),
        )
    typer.echo(str(tuning))


def bench(
    path: IndexArgument,
    *,
    queries: QueriesOption = None,
    k: KsOption = "10,100",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the curves: .png, .svg or .pdf.")
    ] = None,
    num_queries: CountOption = 100,
    seed: int = 42,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    as_json: JsonOption = False,
    progress: ProgressOption = None,
) -> None:
    """Measure recall against exhaustive search, latency and throughput of an index."""
    from colbert_fast.cli.curves import bench_queries, check_plot, draw, measure, table
    from colbert_fast.index import Index

    ks = _numbers(k)
    if plot is not None:
        check_plot(plot)
    with Index.open(path, model=given_model(model, device, backend, index=path)) as opened:
        given = None if queries is None else _read_queries(queries)[:num_queries]
        asked = bench_queries(opened, given, num_queries, seed)
        report = measure(opened, asked, ks, progress=show_progress(progress))
    if plot is not None:
        draw(report, plot)
    typer.echo(dumps(report.plain()) if as_json else table(report))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--k: expected integers with commas, as in 10,100, got {text!r}"
        ) from None


def _read_queries(path: Path) -> list[Any]:
    """The texts, or the (tokens, dim) arrays, of a file."""
    import numpy as np

    from colbert_fast.corpus import load_embeddings, read_corpus

    if path.suffix == ".npz":
        return list(load_embeddings(path).texts())
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != 3:
            raise ValueError(f"{path}: expected shape (n, tokens, dim), got {array.shape}")
        return list(array)
    return [document["text"] for document in read_corpus(path)]


@contextmanager
def _opened_or_built(
    path: Path | None,
    beir: Any,
    model: ColBERT | None,
    nbits: int,
    codec: CodecName,
    progress: bool | None,
) -> Iterator[Index]:
    """Open the index of a collection, or build one in a folder that goes away again."""
    from colbert_fast.index import Index

    if path is not None:
        with Index.open(path, model=model) as opened:
            yield opened
        return
    with (
        tempfile.TemporaryDirectory(prefix="colbert-fast-", ignore_cleanup_errors=True) as folder,
        Index.build(
            Path(folder) / "eval.cf",
            beir.documents(),
            model=model,
            nbits=nbits,
            codec=codec,
            progress=show_progress(progress),
        ) as built,
    ):
        yield built
