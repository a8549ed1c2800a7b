"""The command line: every command a thin layer over the library.

Nothing heavy is imported before a command needs it. An error is one line on standard error with
a cause and a mend, and an exit code other than zero; ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colbert_fast.cli import formats, measure, training, write
from colbert_fast.cli.shell import (
    BackendOption,
    Commands,
    DeviceOption,
    DocumentLengthOption,
    ExhaustiveOption,
    FilterOption,
    FormatOption,
    IndexArgument,
    JsonOption,
    ModelOption,
    ModeOption,
    NbitsOption,
    NdocsOption,
    NprobeOption,
    PoolOption,
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
from colbert_fast.cli.terminal import Terminal, counted, printable

if TYPE_CHECKING:
    from colbert_fast.search.params import SearchOptions
    from colbert_fast.search.results import Hit

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(
    epilog="COLBERT_FAST_NUM_THREADS sets the threads of searches and builds, OMP_NUM_THREADS "
    "those of torch, which encodes; by default all CPUs are used."
)
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what is being done.")] = False,
) -> None:
    """ColBERT late-interaction search: from text to an index to answers."""
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("colbert_fast").setLevel(level)


@app.command()
def search(
    path: IndexArgument,
    query: Annotated[
        str | None, typer.Argument(help="The question; without one, a line each from stdin.")
    ] = None,
    *,
    source: Annotated[
        Path | None,
        typer.Option("--queries", help="Questions with ids: .tsv or .jsonl, as for index."),
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", help="Write the rankings in TREC format instead.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Documents per query.")] = 10,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    nprobe: NprobeOption = None,
    ndocs: NdocsOption = None,
    mode: ModeOption = "default",
    where: FilterOption = None,
    exhaustive: ExhaustiveOption = False,
    recall: RecallOption = None,
    bm25_weight: WeightOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search an index for a question, or for every one of a file or of standard input's lines."""
    from colbert_fast.evaluation import retrieve, write_run
    from colbert_fast.index import Index

    if run_file is not None and as_json:
        raise ValueError("give either --run or --json")
    queries = _queries(query, source)
    check_parent(run_file)
    with Index.open(path, model=given_model(model, device, backend, index=path)) as opened:
        options: SearchOptions = {
            "nprobe": nprobe,
            "ndocs": ndocs,
            "mode": mode,
            "filter": where,
            "exhaustive": exhaustive,
            "recall": recall,
            "bm25_weight": bm25_weight,
        }
        if run_file is not None:
            write_run(run_file, retrieve(opened, queries, k=k, **options))
            typer.echo(f"{run_file}: {counted(len(queries), 'ranking')}")
            return
        answers = opened.search(list(queries.values()), k, **options)
    terminal = Terminal()
    for text, hits in zip(queries.values(), answers, strict=True):
        if as_json:
            terminal.say(dumps({"query": text, "hits": [_plain(hit) for hit in hits]}))
            continue
        if len(queries) > 1:
            terminal.title(text)
        terminal.hits(hits)


@app.command()
def encode(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="As for the command index.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="embeddings, doclens, ids.")],
    *,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    query_length: QueryLengthOption = None,
    document_length: DocumentLengthOption = None,
    queries: Annotated[bool, typer.Option("--queries", help="Encode as queries.")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    pool_factor: PoolOption = 1,
    layout: FormatOption = None,
    progress: ProgressOption = None,
) -> None:
    """Encode texts to token embeddings (float16), for the command index or for other tools."""
    from colbert_fast.corpus import read_corpus, save_embeddings

    if out.suffix != ".npz":
        raise ValueError(f"OUT must end in .npz, got {out}")
    check_parent(out)
    documents = list(read_corpus(source, layout=layout))
    texts = [document["text"] for document in documents]
    encoder = load_model(
        model, device, backend, query_length=query_length, document_length=document_length
    )
    bars = show_progress(progress)
    arrays = (
        encoder.encode_queries(texts, batch_size=batch_size, progress=bars)
        if queries
        else encoder.encode_documents(
            iter(texts), batch_size=batch_size, pool_factor=pool_factor, progress=bars
        )
    )
    half = [array.astype("float16") for array in arrays]
    save_embeddings(out, half, ids=[document["id"] for document in documents])
    tokens = sum(map(len, half))
    typer.echo(f"{out}: {counted(len(half), 'text')}, {counted(tokens, 'token')}")


app.command()(write.index)
app.command()(write.add)
app.command()(write.delete)
app.command()(write.compact)
app.command()(write.merge)
app.command()(write.verify)
app.command()(write.repair)
app.command(name="eval")(measure.evaluate)
app.command()(measure.tune)
app.command()(measure.bench)
app.command()(training.train)
app.command()(training.mine)
app.command()(training.sample)
app.command()(training.score)
app.command()(formats.convert)
app.command()(formats.export)
app.command()(formats.convert_checkpoint)


@app.command()
def info(
    path: Annotated[
        Path | None, typer.Argument(metavar="INDEX", help="An index, or nothing.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Describe an index; without one, what is running: version, ISA, threads, CUDA."""
    facts: dict[str, Any]
    if path is None:
        from colbert_fast.kernels.backend import backend_info

        facts = dict(backend_info())
    else:
        from colbert_fast.index import Index

        with Index.open(path) as opened:
            facts = opened.info()
    if as_json:
        typer.echo(dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {_shown(value)}")


@app.command()
def demo(
    *,
    path: Annotated[
        Path | None, typer.Option(help="Where to keep the index; by default a cache folder.")
    ] = None,
    passages: Annotated[
        int, typer.Option(min=1, help="At most so many; few answer few questions.")
    ] = 6000,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
    nbits: NbitsOption = 2,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Answers per question.")] = 3,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew in any case.")] = False,
    progress: ProgressOption = None,
) -> None:
    """Index the documentation inside this Python installation, and answer questions about it.

    At a terminal it then asks for your own.
    """
    from colbert_fast.cli.demo import run_demo

    run_demo(
        load_model(model, device, backend),
        path=path,
        passages=passages,
        nbits=nbits,
        k=k,
        rebuild=rebuild,
        progress=show_progress(progress),
        terminal=Terminal(),
    )


def _queries(query: str | None, source: Path | None) -> dict[str, str]:
    """Questions by id; ids of those that come without are counted from 1."""
    if query is not None and source is not None:
        raise ValueError("give either a query after the index or --queries")
    if source is not None:
        from colbert_fast.training.texts import Texts

        queries = dict(Texts.open(source))
    else:
        lines = (line.strip() for line in (sys.stdin if query is None else [query]))
        queries = {str(number): text for number, text in enumerate(filter(None, lines), 1)}
    if not queries:
        raise ValueError("no query: give one after the index, lines on standard input or --queries")
    return queries


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return str(round(value, 3))
    return printable(str(value) if isinstance(value, (str, int, NoneType)) else dumps(value))


def _plain(hit: Hit) -> dict[str, Any]:
    return {"id": hit.id, "score": hit.score, "text": hit.text, "metadata": hit.metadata}
