"""What the commands share: their options, and how an error leaves them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from colbert_fast.cli.terminal import printable
from colbert_fast.corpus import TextLayout
from colbert_fast.errors import ColbertFastError
from colbert_fast.search.params import Mode
from colbert_fast.storage.manifest import CodecName

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = [
    "BackendOption",
    "CodecOption",
    "Commands",
    "DeviceOption",
    "DocumentLengthOption",
    "ExhaustiveOption",
    "FilterOption",
    "FormatOption",
    "IndexArgument",
    "JsonOption",
    "ModeOption",
    "ModelOption",
    "NbitsOption",
    "NdocsOption",
    "NprobeOption",
    "OverwriteOption",
    "PoolOption",
    "ProgressOption",
    "QueryLengthOption",
    "RecallOption",
    "WeightOption",
    "check_parent",
    "dumps",
    "given_model",
    "load_model",
    "show_progress",
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Checkpoint folder, Hub id, or 'default' for the offline model; without it the "
        "index's own, else the offline one.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to encode: cpu, cuda, ...")]
BackendOption = Annotated[
    Literal["torch", "openvino"],
    typer.Option("--backend", help="What encodes; openvino, in int8, is the faster one."),
]
QueryLengthOption = Annotated[
    int | None,
    typer.Option("--query-length", help="Most tokens of a query; by default the model's own."),
]
DocumentLengthOption = Annotated[
    int | None,
    typer.Option(
        "--document-length",
        help="Tokens after which documents are cut; by default the model's own.",
    ),
]
NbitsOption = Annotated[
    int, typer.Option("--nbits", help="Bits per residual dimension: 1, 2, 3, 4 or 8.")
]
CodecOption = Annotated[
    CodecName,
    typer.Option("--codec", help="plaid: the buckets of PLAID; float16: uncompressed vectors."),
]
NprobeOption = Annotated[
    int | None,
    typer.Option(
        "--nprobe",
        min=1,
        help="Centroids per query token whose documents become candidates; by default (but in mode "
        "plaid) more of them from 25,000 documents on.",
    ),
]
NdocsOption = Annotated[
    int | None,
    typer.Option(
        "--ndocs",
        min=1,
        help="Candidates kept by their centroids; by default (in modes default and hybrid) more of "
        "them from 25,000 documents on. Mode default scores them in int8 and exactly where that "
        "leaves a chance (codec float16: all exactly); mode plaid scores the best max(ndocs / 4, "
        "k) exactly.",
    ),
]
RecallOption = Annotated[
    float | None,
    typer.Option(
        "--recall",
        help="Instead of --nprobe and --ndocs: the share of the best documents to find, as the "
        "command tune has measured.",
    ),
]
WeightOption = Annotated[
    float | None,
    typer.Option("--bm25-weight", help="In mode hybrid: the share of BM25, by default 0.3."),
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode",
        help="default; plaid: PLAID's stages; rerank: MaxSim of the best by BM25; hybrid: BM25 and "
        "default, fused.",
    ),
]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", help="SQL over the metadata's keys, as \"year >= 2020 and lang = 'de'\"."
    ),
]
ExhaustiveOption = Annotated[
    bool, typer.Option("--exhaustive", help="Score every document: slow, and the truth.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an index.")]
PoolOption = Annotated[
    int, typer.Option("--pool-factor", min=1, help="Merge tokens down to one in so many.")
]
FormatOption = Annotated[
    TextLayout | None,
    typer.Option("--format", help="What INPUT is; by default its suffix tells."),
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress bars; by default on a terminal."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
_SAID_HERE = {
    "recode=True": "--recode",
    "overwrite=True": "--overwrite",
    "upsert()": "--upsert",
    "codec_from=": "--codec-from",
    "timeout=": "--timeout",
    "Index.import_from": "colbert-fast convert",
}
_ESCAPES = {code: f"\\u{code:04x}" for code in range(127, 160)}

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]


class Commands(typer.core.TyperGroup):
    """The commands, with every error turned into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(130) from None
        except Exception as error:
            # Usage errors belong to the parser, which prints them with the command's usage.
            if ctx.params.get("debug") or hasattr(error, "format_message"):
                raise
            _complain(_one_line(error))
            raise typer.Exit(1) from None


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    for python, here in _SAID_HERE.items():  # the library tells callers of Python
        text = text.replace(python, here)
    if isinstance(error, (ColbertFastError, OSError, ValueError, TypeError)):
        return text
    return (
        f"unexpected {type(error).__name__}: {text}; please report what "
        "`colbert-fast --debug ...` shows"
    )


def _complain(text: str) -> None:
    typer.echo(f"colbert-fast: {printable(text)}", err=True)


def load_model(
    model: str | None, device: str, backend: Literal["torch", "openvino"] = "torch", **settings: Any
) -> ColBERT:
    """Load a checkpoint, or the offline default for None; settings of None are its own."""
    from colbert_fast.model import ColBERT

    return ColBERT.from_pretrained(model, device=device, backend=backend, **settings)


def given_model(
    model: str | None,
    device: str,
    backend: Literal["torch", "openvino"] = "torch",
    *,
    index: Path | None = None,
    **lengths: int | None,
) -> ColBERT | None:
    """Load the checkpoint that was asked for, with the settings of an index's own model.

    For None the index loads its own, as it does.
    """
    wanted: dict[str, Any] = {name: value for name, value in lengths.items() if value is not None}
    if model is not None:
        from colbert_fast.search.queries import model_settings
        from colbert_fast.storage.manifest import Manifest

        settings = {} if index is None else model_settings(Manifest.read(index))
        return load_model(model, device, backend, **{**settings, **wanted})
    if device != "cpu":
        wanted["device"] = device
    if backend != "torch":
        wanted["backend"] = backend
    if wanted:
        name, value = next(iter(wanted.items()))
        raise ValueError(
            f"--{name.replace('_', '-')} {value} needs --model: by itself an index loads its own "
            "model with torch, on the CPU, with the lengths that it was built with"
        )
    return None


def check_parent(path: Path | None) -> None:
    """Refuse a file whose folder is not there before any work is done for it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent}: no such folder; make it first")


def dumps(value: object) -> str:
    """JSON in which nothing commands a terminal: it escapes only the characters below 32 itself."""
    return json.dumps(value, ensure_ascii=False, default=str).translate(_ESCAPES)


def show_progress(asked: bool | None) -> bool:
    """Tell whether to show progress bars: as asked, else if somebody is there to see them."""
    return sys.stderr.isatty() if asked is None else asked
