"""Fine-tune a cross-encoder that will teach."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from transformers import PrinterCallback

from colbert_fast.model.device import check_device
from colbert_fast.model.weights import quiet_transformers
from colbert_fast.training.checkpoints import digest_of_ends
from colbert_fast.training.cross_encoder import (
    CrossEncoderTeacher,
    TeacherDType,
    check_batch_size,
    foreign_fingerprint,
    load_cross_encoder,
    resolve_teacher_dtype,
)
from colbert_fast.training.files import require

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from colbert_fast.training.data import Example

__all__ = ["TeacherLoss", "train_teacher"]

TeacherLoss = Literal["listwise", "binary"]

logger = logging.getLogger(__name__)

_PURPOSE = "train_teacher"
_SURE = 100.0  # ListNet's label of a positive: softmax makes it the only one in float32


def train_teacher(
    base: str | Path,
    data: Sequence[Example],
    out: str | Path,
    *,
    loss: TeacherLoss = "listwise",
    epochs: float = 1,
    max_steps: int | None = None,
    batch_size: int = 4,
    accumulation_steps: int = 8,
    learning_rate: float = 3e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    max_length: int = 256,
    dtype: TeacherDType = "auto",
    device: str = "cpu",
    seed: int = 0,
    save_steps: int = 500,
    progress: bool = True,
) -> CrossEncoderTeacher:
    """Make a cross-encoder of an encoder, or a better one of a cross-encoder.

    sentence-transformers' CrossEncoderTrainer does the work. Checkpoints are in the folder `out`
    with ".partial" appended, and a run that was killed goes on from the last one when it is started
    again; on a CPU it ends with the weights that it would have had. It is recognised by its
    settings, the base's weights, the number of examples, and the first and the last of them: of
    those between, nothing is noticed. Then `out` appears, complete.

    Parameters
    ----------
    base : str or Path
        Folder or hub id: a plain encoder, which gets a head of one class, or a cross-encoder that
        has one.
    data : sequence of Example
        `TrainingData`; the first document of each is the positive, scores are not looked at.
    out : str or Path
        Folder of the model, which `CrossEncoderTeacher` and sentence-transformers read. It must not
        exist.
    loss : {"listwise", "binary"}
        Cross-entropy of the positive among its tuple (LCE, arXiv 2101.08751, by ListNetLoss), or of
        every pair for itself (BinaryCrossEntropyLoss).
    epochs : float
    max_steps : int, optional
        Instead of `epochs`.
    batch_size, accumulation_steps : int
        Tuples in one forward pass, and passes in one step.
    learning_rate, weight_decay : float
        Of AdamW.
    warmup : float
        Share of the steps in which the learning rate grows; then it falls linearly to 0.
    max_length : int
        Tokens of a pair.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Arithmetic, by autocast, as for `CrossEncoderTeacher`; weights are float32.
    device : str
        "cpu", or "cuda" for all the CUDA devices that are visible.
    seed : int
        Of the head, the order of the data and dropout. The trainer seeds the process's own random
        generators with it.
    save_steps : int
        Between checkpoints, of which the last is kept.
    progress : bool
        Show a bar, with the loss.

    Returns
    -------
    CrossEncoderTeacher

    Raises
    ------
    FileExistsError
        Something is at `out`.
    ValueError
        There are no data, a setting cannot be, or the checkpoints there are of other settings, data
        or weights.
    CheckpointError
        `base` cannot be read.
    MissingDependencyError
        The extra `train` is not installed.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} already exists; choose another folder")
    if loss not in get_args(TeacherLoss):
        raise ValueError(f"loss: want 'listwise' or 'binary', got {loss!r}")
    if len(data) == 0:
        raise ValueError("data: no examples")
    if check_device(device).index is not None:
        raise ValueError(
            f"device: the trainer takes every visible device of a kind, want 'cuda', got {device!r}"
        )
    arithmetic = resolve_teacher_dtype(dtype, torch.device(device))
    settings: dict[str, Any] = {
        "num_train_epochs": epochs,
        "max_steps": -1 if max_steps is None else max_steps,
        "per_device_train_batch_size": check_batch_size(batch_size),
        "gradient_accumulation_steps": accumulation_steps,
        "learning_rate": learning_rate,
        "warmup_steps": warmup,
        "weight_decay": weight_decay,
        "seed": seed,
        "bf16": arithmetic == "bfloat16",
        "fp16": arithmetic == "float16",
    }
    work = out.with_name(f"{out.name}.partial")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the head's
        model = load_cross_encoder(base, max_length=max_length, device=device, new_head=True)
    wanted = {
        "base": str(base),
        "fingerprint": foreign_fingerprint(model),
        "examples": len(data),
        "first_and_last": digest_of_ends(data),
        "loss": loss,
        "max_length": max_length,
    }
    checkpoint = _resume(work, {**wanted, **settings})
    trainer = _make_trainer(
        model,
        data,
        loss,
        output_dir=str(work),
        use_cpu=model.device.type == "cpu",
        save_steps=save_steps,
        disable_tqdm=not progress,
        **settings,
    )
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=checkpoint)
        model.save_pretrained(str(work / "model"), create_model_card=False)
    (work / "model").replace(out)
    shutil.rmtree(work)
    return CrossEncoderTeacher(model, dtype=dtype)


def _resume(work: Path, settings: Mapping[str, Any]) -> str | None:
    """The checkpoint to go on from, in the folder of a run with the same settings."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "settings.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # nothing is there yet, or all but nothing
        file.write_text(json.dumps(settings), encoding="utf-8")
        return None
    changed = [f"{key} {found.get(key)!r}" for key in settings if found.get(key) != settings[key]]
    if changed:
        raise ValueError(
            f"{work}: the checkpoints there were made with {', '.join(changed)}; remove the folder "
            "to start anew"
        )
    checkpoints = sorted(work.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1]))
    for checkpoint in reversed(checkpoints):
        if _is_whole(checkpoint):
            logger.info("going on from %s", checkpoint)
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file that is written last is there to its end."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


def _make_trainer(
    model: CrossEncoder, data: Sequence[Example], loss: TeacherLoss, **settings: Any
) -> Any:
    """A CrossEncoderTrainer that reads `data` lazily and keeps its output to itself."""
    require("accelerate", _PURPOSE)
    datasets = require("datasets", _PURPOSE)
    library = require("sentence_transformers.cross_encoder", _PURPOSE)
    collators = import_module("sentence_transformers.cross_encoder.data_collator")

    class Collator(collators.CrossEncoderDataCollator):  # type: ignore[name-defined,misc]
        """Row numbers to texts: tuples may be more than memory holds."""

        def __call__(self, features: list[dict[str, int]]) -> dict[str, Any]:
            examples = [data[feature["row"]] for feature in features]
            batch: dict[str, Any] = super().__call__([_columns(each) for each in examples])
            return batch

    class Trainer(library.CrossEncoderTrainer):  # type: ignore[name-defined,misc]
        """Without model cards, which look for what they can tell on the hub."""

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            pass

    trainer = Trainer(
        model=model,
        args=library.CrossEncoderTrainingArguments(
            save_strategy="steps",
            save_total_limit=1,
            logging_steps=10,
            report_to="none",
            dataloader_pin_memory=not settings["use_cpu"],
            **settings,
        ),
        train_dataset=datasets.Dataset.from_dict({"row": range(len(data))}),
        data_collator=Collator(preprocess_fn=model.preprocess),
        loss=_make_loss(model, loss),
    )
    if settings["disable_tqdm"]:
        trainer.remove_callback(PrinterCallback)  # transformers prints where it shows no bar
    return trainer


def _columns(example: Example) -> dict[str, Any]:
    label = [_SURE] + [0.0] * (len(example.documents) - 1)
    return {"query": example.query, "documents": list(example.documents), "label": label}


def _make_loss(model: CrossEncoder, loss: TeacherLoss) -> torch.nn.Module:
    losses = import_module("sentence_transformers.cross_encoder.losses")
    if loss == "listwise":
        of_lists: torch.nn.Module = losses.ListNetLoss(model, mini_batch_size=-1)
        return of_lists

    class PairLoss(losses.BinaryCrossEntropyLoss):  # type: ignore[name-defined,misc]
        """Of the pairs of tuples."""

        def forward(
            self, inputs: list[Any], labels: list[torch.Tensor], **options: Any
        ) -> torch.Tensor:
            queries = [query for query, texts in zip(*inputs, strict=True) for _ in texts]
            documents = [text for texts in inputs[1] for text in texts]
            value: torch.Tensor = super().forward(
                [queries, documents], (torch.cat(labels) > 0).float(), **options
            )
            return value

    return PairLoss(model)
