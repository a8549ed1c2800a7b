"""Commands between this library and others: convert, export, convert-checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from colbert_fast.cli.shell import (
    DeviceOption,
    FormatOption,
    IndexArgument,
    ModelOption,
    OverwriteOption,
    ProgressOption,
    given_model,
    show_progress,
)
from colbert_fast.cli.terminal import counted

__all__ = ["convert", "convert_checkpoint", "export"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOREIGN",
            help="Index folder of Stanford ColBERT, fast-plaid, next-plaid or WARP.",
        ),
    ],
    path: IndexArgument,
    *,
    documents: Annotated[
        Path | None,
        typer.Option(help="The collection that was indexed, for texts and ids; as for index."),
    ] = None,
    layout: FormatOption = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    progress: ProgressOption = None,
) -> None:
    """Take over the index of another library, with its codes and residuals as they are."""
    from colbert_fast.corpus import read_corpus
    from colbert_fast.index import Index

    start = time.perf_counter()
    with Index.import_from(
        source,
        path,
        documents=None if documents is None else read_corpus(documents, layout=layout),
        model=given_model(model, device),
        overwrite=overwrite,
        progress=show_progress(progress),
    ) as imported:
        facts = imported.info()
    typer.echo(
        f"{path}: {counted(facts['documents'], 'document')}, {counted(facts['tokens'], 'token')}, "
        f"{counted(facts['nbits'], 'bit')}, in {time.perf_counter() - start:.1f} s"
    )


def export(
    path: IndexArgument,
    target: Annotated[Path, typer.Argument(metavar="FOREIGN", help="Folder to create.")],
    *,
    layout: Annotated[Literal["stanford"], typer.Option(help="Whose index.")] = "stanford",
    recode: Annotated[
        bool, typer.Option("--recode", help="Encode another codec than plaid anew, with a loss.")
    ] = False,
    progress: ProgressOption = None,
) -> None:
    """Write an index as one that Stanford ColBERT opens; texts stay behind."""
    from colbert_fast.index import Index

    with Index.open(path) as opened:
        opened.export(target, layout, recode=recode, progress=show_progress(progress))
        typer.echo(f"{target}: {counted(len(opened), 'document')}")


def convert_checkpoint(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.")],
    *,
    layout: Annotated[Literal["stanford", "pylate"], typer.Option(help="Who is to read it.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin, without running it.")
    ] = False,
) -> None:
    """Write a model in the layout of Stanford ColBERT, or of PyLate and sentence-transformers."""
    from colbert_fast.model.checkpoint import convert_checkpoint as write

    write(source, target, layout, allow_pickle=allow_pickle)
    typer.echo(f"{target}: {source} in the layout of {layout}")
