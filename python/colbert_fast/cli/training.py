"""The commands that train a model: a whole recipe, or its stages by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from colbert_fast.cli.shell import DeviceOption, JsonOption, ProgressOption, dumps, show_progress
from colbert_fast.cli.terminal import counted, printable

__all__ = ["mine", "sample", "score", "train"]

QueriesOption = Annotated[
    Path, typer.Option("--queries", help="Questions: .jsonl or .tsv, perhaps .gz.")
]
DocumentsOption = Annotated[
    Path, typer.Option("--documents", help="Passages: a BEIR folder, .jsonl, .tsv, .txt.")
]


def train(
    recipe: Annotated[
        str,
        typer.Argument(help="A .yaml file, or the name of one that comes along, as mini."),
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Train on this BEIR folder's train split; measured on its test split, or dev."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run, instead of the recipe's.")
    ] = None,
    device: DeviceOption = "cpu",
    processes: Annotated[
        int, typer.Option(min=1, help="Of training; with --device cuda one for each GPU.")
    ] = 1,
    as_json: JsonOption = False,
    progress: ProgressOption = None,
) -> None:
    """Run a recipe from mining to evaluation; what a stopped run has done is kept."""
    from colbert_fast.evaluation import held_out_split
    from colbert_fast.training.recipe import Collection, find_recipe, read_recipe
    from colbert_fast.training.run import run_recipe

    given = None if data is None else [Collection(data.resolve().name, data)]
    values = read_recipe(find_recipe(recipe), collections=given)
    folders = [each.folder for each in values.collections if each.folder is not None]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; --data FOLDER names another")
    if output is not None:
        values = replace(values, output=output)
    if data is not None and held_out_split(data) is not None:
        values = replace(values, evaluate=(data,))
    model, evaluations = run_recipe(
        values, device=device, processes=processes, progress=show_progress(progress)
    )
    if as_json:
        measured = {name: each._asdict() for name, each in evaluations.items()}
        typer.echo(dumps({"model": str(model), "evaluation": measured}))
        return
    typer.echo(f"model: {model}")
    if not evaluations:
        typer.echo("not measured: no folder with a split test or dev to measure on")
    for name, each in evaluations.items():
        title = printable(f"{name}, split {each.split}")
        typer.echo(f"{title:28}{'start':>8}{'trained':>9}{'gain':>8}")
        for measure, after in each.trained.items():
            before = each.start[measure]
            typer.echo(f"{measure:28}{before:8.3f}{after:9.3f}{after - before:+8.3f}")


def mine(
    source: Annotated[str, typer.Argument(help="bm25, an index, or a model's folder or id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Rankings, PyLate's layout.")],
    *,
    queries: QueriesOption,
    documents: Annotated[
        Path | None, typer.Option("--documents", help="Passages, unless SOURCE is an index.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Documents of a ranking.")] = 200,
    device: DeviceOption = "cpu",
    progress: ProgressOption = None,
) -> None:
    """Rank passages for training questions; hard negatives are drawn from the rankings."""
    from colbert_fast.index import Index
    from colbert_fast.model import ColBERT
    from colbert_fast.training.data import Texts
    from colbert_fast.training.mining import mine as mine_rankings

    ranker: Literal["bm25"] | Index | ColBERT
    if source == "bm25":
        ranker = "bm25"
    elif (Path(source) / "manifest.json").is_file():
        ranker = Index.open(source)
    else:
        ranker = ColBERT.from_pretrained(source, device=device)
    rankings = mine_rankings(
        ranker,
        Texts.open(queries),
        documents,
        depth=depth,
        out=out,
        progress=show_progress(progress),
    )
    typer.echo(f"{out}: {counted(len(rankings), 'ranking')}")


def sample(
    rankings: Annotated[Path, typer.Argument(help="What the command mine has written.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Tuples of ids.")],
    *,
    positives: Annotated[
        Path, typer.Option("--positives", help="Judgements: query, document, grade; or TREC's.")
    ],
    nway: Annotated[int, typer.Option(min=2, help="Documents of a tuple, the positive first.")] = 8,
    first: Annotated[int, typer.Option(min=0, help="The first rank to draw from.")] = 0,
    last: Annotated[int, typer.Option(min=1, help="The rank after the last.")] = 200,
    seed: int = 0,
) -> None:
    """Draw tuples of a positive and hard negatives from rankings; then score them, or train."""
    from colbert_fast.evaluation import read_qrels
    from colbert_fast.training.data import TupleFile, write_tuples
    from colbert_fast.training.sampling import sample_tuples

    tuples = sample_tuples(
        TupleFile(rankings),
        read_qrels(positives),
        nway=nway,
        bands=[(first, last, 1.0)],
        seed=seed,
    )
    typer.echo(f"{out}: {counted(write_tuples(out, tuples), 'tuple')}")


def score(
    tuples: Annotated[Path, typer.Argument(help="Tuples of ids: .jsonl, .tsv, .parquet.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The same with scores.")],
    *,
    teacher: Annotated[str, typer.Option(help="A cross-encoder's folder or Hub id.")],
    queries: QueriesOption,
    documents: DocumentsOption,
    device: DeviceOption = "cpu",
    progress: ProgressOption = None,
) -> None:
    """Score training tuples with a cross-encoder, for distillation."""
    from colbert_fast.training.cross_encoder import CrossEncoderTeacher
    from colbert_fast.training.data import Texts
    from colbert_fast.training.teacher import score_with_teacher

    score_with_teacher(
        tuples,
        CrossEncoderTeacher(teacher, device=device),
        queries=Texts.open(queries),
        documents=Texts.open(documents),
        out=out,
        progress=show_progress(progress),
    )
    typer.echo(f"{out}: scored by {teacher}")
