"""The commands that write an index, and those that see whether it is sound."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colbert_fast.cli.shell import (
    BackendOption,
    CodecOption,
    DeviceOption,
    DocumentLengthOption,
    FilterOption,
    FormatOption,
    IndexArgument,
    ModelOption,
    NbitsOption,
    OverwriteOption,
    PoolOption,
    ProgressOption,
    QueryLengthOption,
    given_model,
    load_model,
    show_progress,
)
from colbert_fast.cli.terminal import counted
from colbert_fast.errors import UnknownDocumentError

if TYPE_CHECKING:
    from colbert_fast.corpus import TextLayout

__all__ = ["add", "compact", "delete", "index", "merge", "repair", "verify"]

SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="BEIR folder, .jsonl, .tsv, .txt (each perhaps .gz), or embeddings: .npz, .npy.",
    ),
]
DoclensOption = Annotated[
    Path | None, typer.Option(help="Doclens of an .npy; by default NAME.doclens.npy.")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Take only the first so many documents.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to wait for another writer.")
]


def index(
    source: SourceArgument,
    path: IndexArgument,
    *,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    query_length: QueryLengthOption = None,
    document_length: DocumentLengthOption = None,
    nbits: NbitsOption = 2,
    codec: CodecOption = "default",
    num_centroids: Annotated[
        int | None, typer.Option(min=1, help="By default from the collection's size.")
    ] = None,
    kmeans_iterations: Annotated[int, typer.Option(min=1)] = 4,
    seed: int = 42,
    codec_from: Annotated[
        Path | None, typer.Option(help="Take centroids and codec of this index, to merge later.")
    ] = None,
    pool_factor: PoolOption = 1,
    layout: FormatOption = None,
    doclens: DoclensOption = None,
    limit: LimitOption = None,
    overwrite: OverwriteOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is encoded; go on if it was stopped.")
    ] = False,
    memory_budget: Annotated[
        int | None, typer.Option(min=1, help="Bytes the build may take besides the model.")
    ] = None,
    progress: ProgressOption = None,
) -> None:
    """Build an index from a text collection or from token embeddings."""
    from colbert_fast.index import Index

    documents, ids = _read(source, layout, doclens, limit)
    # A model told to an index of embeddings is for its queries.
    load = given_model if _is_embeddings(source) else load_model
    encoder = load(
        model, device, backend, query_length=query_length, document_length=document_length
    )
    start = time.perf_counter()
    with Index.build(
        path,
        documents,
        model=encoder,
        ids=ids,
        nbits=nbits,
        codec=codec,
        num_centroids=num_centroids,
        kmeans_iterations=kmeans_iterations,
        seed=seed,
        codec_from=codec_from,
        pool_factor=pool_factor,
        overwrite=overwrite,
        resume=resume,
        memory_budget=memory_budget,
        progress=show_progress(progress),
    ) as built:
        _say_built(path, built.info(), time.perf_counter() - start)


def _say_built(path: Path, facts: dict[str, Any], seconds: float) -> None:
    typer.echo(
        f"{path}: {counted(facts['documents'], 'document')}, "
        f"{counted(facts['tokens'], 'token')}, {facts['bytes_per_token']:.1f} bytes/token with "
        f"texts, in {seconds:.1f} s"
    )


def add(
    path: IndexArgument,
    source: SourceArgument,
    *,
    upsert: Annotated[
        bool, typer.Option("--upsert", help="Replace documents whose ids are there.")
    ] = False,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    pool_factor: PoolOption = 1,
    layout: FormatOption = None,
    doclens: DoclensOption = None,
    limit: LimitOption = None,
    timeout: TimeoutOption = 0.0,
    progress: ProgressOption = None,
) -> None:
    """Add documents to an index, all of them or none."""
    from colbert_fast.index import Index

    documents, ids = _read(source, layout, doclens, limit)
    with Index.open(path, model=given_model(model, device, backend, index=path)) as opened:
        put = opened.upsert if upsert else opened.add
        count = put(
            documents,
            ids=ids,
            pool_factor=pool_factor,
            timeout=timeout,
            progress=show_progress(progress),
        )
        typer.echo(f"{path}: {counted(count, 'document')} put in, {len(opened)} in all")


def delete(
    path: IndexArgument,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Of documents; or give --filter.")
    ] = None,
    *,
    where: FilterOption = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="The ids are numbers, not texts.")
    ] = False,
    timeout: TimeoutOption = 0.0,
) -> None:
    """Delete documents from an index, by their ids or by a filter."""
    from colbert_fast.index import Index

    if bool(ids) == (where is not None):
        raise ValueError("delete: give either ids of documents or --filter")
    wanted: list[int] | list[str] | None = ids or None
    if ids and numbers:
        wanted = [_number(each) for each in ids]
    with Index.open(path) as opened:
        try:
            count = opened.delete(wanted, filter=where, timeout=timeout)
        except UnknownDocumentError as error:
            if numbers or not any(each.isdecimal() for each in ids or ()):
                raise
            raise UnknownDocumentError(f"{error}; ids that are numbers need --numbers") from error
        typer.echo(f"{path}: {counted(count, 'document')} deleted, {len(opened)} left")


def compact(
    path: IndexArgument,
    *,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Fit the centroids anew to what is there now.")
    ] = False,
    seed: int = 42,
    timeout: TimeoutOption = 0.0,
    progress: ProgressOption = None,
) -> None:
    """Merge the segments of an index and give back the room of deleted documents."""
    from colbert_fast.index import Index

    with Index.open(path) as opened:
        before = opened.info()["bytes"]
        opened.compact(
            retrain=retrain, seed=seed, timeout=timeout, progress=show_progress(progress)
        )
        typer.echo(f"{path}: {before} bytes before, {opened.info()['bytes']} now")


def merge(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    indexes: Annotated[
        list[Path], typer.Argument(metavar="INDEX...", help="Built with --codec-from the first.")
    ],
    *,
    overwrite: OverwriteOption = False,
) -> None:
    """Put indexes with the same centroids together, without encoding anything."""
    from colbert_fast.index import Index

    with Index.merge(path, indexes, overwrite=overwrite) as merged:
        typer.echo(f"{path}: {counted(len(merged), 'document')}")


def verify(path: IndexArgument) -> None:
    """Read every file of an index and compare it with its checksums."""
    from colbert_fast.index import Index

    with Index.open(path) as opened:
        opened.verify()
    typer.echo(f"{path}: every file matches its checksums")


def repair(path: IndexArgument, *, timeout: TimeoutOption = 0.0) -> None:
    """Save what is sound of a damaged index; exit code 1 if documents are lost."""
    from colbert_fast.index import Index

    report = Index.repair(path, timeout=timeout)
    for line in report.damage:
        typer.echo(line, err=True)
    typer.echo(
        f"{path}: {counted(len(report.damage), 'damaged file')}, {len(report.rebuilt)} rebuilt; "
        f"{counted(report.lost, 'document')} lost; {counted(report.restored, 'deleted document')} "
        "found again, whose marks are lost"
    )
    if report.lost:
        raise typer.Exit(1)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"delete: {text!r} is no number, as --numbers says") from None


def _is_embeddings(source: Path) -> bool:
    return source.suffix in (".npz", ".npy")


def _read(
    source: Path, layout: TextLayout | None, doclens: Path | None, limit: int | None
) -> tuple[Iterable[Any], Iterable[Any] | None]:
    """Documents, and ids for those that carry none."""
    from colbert_fast.corpus import load_embeddings, read_corpus

    if not _is_embeddings(source):
        return islice(_not_empty(read_corpus(source, layout=layout), source), limit), None
    loaded = load_embeddings(source, doclens=doclens)
    ids = None if loaded.ids is None else loaded.ids[:limit]
    return islice(loaded.texts(), limit), ids


def _not_empty(documents: Iterator[Any], source: Path) -> Iterator[Any]:
    """Read the first document now: a bad file should be refused before a model is loaded."""
    for first in documents:
        return chain([first], documents)
    raise ValueError(f"{source}: there are no documents in it")
