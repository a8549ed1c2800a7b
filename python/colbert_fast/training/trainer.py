"""Train a ColBERT model with transformers.Trainer, in one process or several."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from colbert_fast.errors import MissingDependencyError
from colbert_fast.model import ColBERT
from colbert_fast.model.device import resolve_dtype
from colbert_fast.model.pylate import write_json
from colbert_fast.training.batches import Batches, Collator, Encoder, ExampleLike
from colbert_fast.training.checkpoints import (
    FINAL,
    RECORD,
    UNFINISHED,
    appear,
    average_weights,
    describe_run,
    disk_errors,
    load_weights,
    opened,
    prune,
)
from colbert_fast.training.config import TEACHER_LOSSES, TrainingConfig
from colbert_fast.training.distributed import (
    barrier,
    broadcast,
    leave_at_exit,
    mean,
    processes,
    rank,
)
from colbert_fast.training.objective import objective
from colbert_fast.training.parameters import dropout, frozen_parameters, without_gradient
from colbert_fast.training.stored import Quantizer, pool_rows
from colbert_fast.training.validation import METRIC, validate

if importlib.util.find_spec("accelerate") is None:
    raise MissingDependencyError(
        'training needs the package accelerate: pip install "colbert-fast[train]"'
    )

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

__all__ = ["train"]

logger = logging.getLogger(__name__)

CODEC = "codec"
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def train(
    model: ColBERT,
    data: Sequence[ExampleLike],
    output_dir: str | Path,
    config: TrainingConfig | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> ColBERT:
    """Train a model in place, on the CPU or the first GPU, where it must be already.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same arguments,
    its model on a GPU of its own, ``cuda:LOCAL_RANK``; it gets its share of each batch, and the
    in-batch negatives are those of all processes.

    A run that was stopped or killed goes on from its last checkpoint, in the middle of a pass over
    the data if need be, and on a CPU, with as many threads, ends with the same bits as one that was
    not.

    Parameters
    ----------
    model : ColBERT
    data : sequence of examples
        Each has a query, n documents, the positive first where there is one, and the teacher's n
        scores or None: `colbert_fast.training.data.TrainingData`.
    output_dir : str or Path
        Gets a folder ``checkpoint-STEP`` for each checkpoint (the last and the best are kept) and
        ``final``; all of them are what `ColBERT.from_pretrained` reads.
    config : TrainingConfig, optional
    resume : bool
        Go on in an `output_dir` that was used before; one with a final model is only read. `model`
        must be as it was when the run began. What else a run is recognised by is `config`, but for
        what does not change the result, the number of processes and of examples, and the first
        and the last example: of those between, nothing is noticed.
    progress : bool
        Show a bar.
    callbacks : sequence of transformers.TrainerCallback

    Returns
    -------
    ColBERT
        `model`, in eval mode.

    Raises
    ------
    FileExistsError
        `output_dir` is not empty, and `resume` is not set.
    ValueError
        The configuration does not go with the model, the data or the number of processes, or the
        checkpoint to resume is another run's.
    TimeoutError
        Another process trains in `output_dir`.
    FloatingPointError
        The loss is not finite.
    MissingDependencyError
        A package of the extra `train` is missing.
    """
    config = config or TrainingConfig()
    # What "auto" is here goes into the record, too: elsewhere it may be something else.
    bf16 = resolve_dtype(config.dtype, model.device) == "bfloat16"
    config = dataclasses.replace(config, dtype="bfloat16" if bf16 else "float32")
    output = Path(output_dir)
    _check_model(model, config)
    frozen = frozen_parameters(model, config.frozen)
    steps = _steps(len(data), config)
    arguments = _arguments(model, output, config, steps, progress=progress)
    arguments._n_gpu = 1  # a process uses its own GPU only
    _check_device(model.device, arguments.device)
    if processes() > 1:
        leave_at_exit()
    if config.batch_size % processes():
        raise ValueError(
            f"batch_size: want a multiple of the {processes()} processes, got {config.batch_size}"
        )
    arguments.per_device_train_batch_size = config.batch_size // processes()
    record = describe_run(model, data, config, processes())
    with opened(output, record, resume=resume) if rank() == 0 else nullcontext() as found:
        last = broadcast(found)
        if last == output / FINAL:
            load_weights(model, last)
            return model.eval()
        with without_gradient(frozen), dropout(model, config.dropout):
            trainer = _Trainer(model, data, config, record, arguments, list(callbacks))
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        trainer.finish()
    return model.eval()


def _check_model(model: ColBERT, config: TrainingConfig) -> None:
    for dim in config.matryoshka:
        if dim >= model.dim:
            raise ValueError(f"matryoshka: want less than the model's {model.dim}, got {dim}")
    if "xtr" in config.losses and not model.config.do_query_expansion:
        raise ValueError("losses: 'xtr' needs queries of one length, a model with query expansion")


def _steps(examples: int, config: TrainingConfig) -> int:
    per_epoch = config.steps_per_epoch(examples)
    if per_epoch == 0:
        raise ValueError(f"batch_size: {config.batch_size}, but there are {examples} examples")
    steps = config.max_steps or int(config.epochs * per_epoch)
    if steps == 0:
        raise ValueError(f"epochs: {config.epochs} of {per_epoch} steps is not one step")
    if config.eval_folder is not None:
        every = config.eval_steps or config.save_steps or steps
        evaluations = -(-steps // every)  # the last step is always evaluated
        if config.average_best > evaluations:
            raise ValueError(
                f"average_best: {config.average_best}, but {steps} steps are evaluated "
                f"{evaluations} times"
            )
    return steps


def _check_device(found: torch.device, wanted: torch.device) -> None:
    if (found.type, found.index or 0) != (wanted.type, wanted.index or 0):
        raise ValueError(
            f"model: it is on {found}, but this process trains on {wanted}; load the model there, "
            "and choose another GPU with CUDA_VISIBLE_DEVICES"
        )


def _arguments(
    model: ColBERT, output: Path, config: TrainingConfig, steps: int, *, progress: bool
) -> TrainingArguments:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError(
            'tensorboard=True needs the package tensorboard: pip install "colbert-fast[train]"'
        )
    on_cpu = model.device.type == "cpu"
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        report_to="tensorboard" if config.tensorboard else "none",
        disable_tqdm=not progress,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or steps,
        eval_strategy="steps" if config.eval_folder else "no",
        eval_steps=config.eval_steps or config.save_steps,
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )


class _Progress(ProgressCallback):  # type: ignore[misc, unused-ignore]
    """transformers' bar, with the loss beside it instead of a printed line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        bar: Any = self.training_bar
        if bar is not None and "loss" in logs:
            bar.set_postfix(loss=f"{logs['loss']:.4g}")


class _Trainer(Trainer):  # type: ignore[misc, unused-ignore]
    """transformers.Trainer with our batches, loss, checkpoints and evaluation."""

    def __init__(
        self,
        model: ColBERT,
        data: Sequence[ExampleLike],
        config: TrainingConfig,
        record: dict[str, Any],
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.colbert = model
        self.data = data
        self.output = Path(cast(str, arguments.output_dir))
        self.config = config
        self.record = record
        self.quantizer: Quantizer | None = None
        if config.quantization_bits is not None:
            first = int(arguments.max_steps * (1 - config.quantization_fraction))
            self.quantizer = Quantizer(config.quantization_bits, first)
        self.parts: dict[str, Tensor] = {}
        self.steps_in_parts = 0
        encoder = Encoder(
            model,
            bf16=config.dtype == "bfloat16",
            recompute=config.gradient_cache is not None,
        )
        super().__init__(
            encoder,
            arguments,
            train_dataset=cast(Any, data),
            eval_dataset=config.eval_folder,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if not arguments.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Progress)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All steps of the run, as one pass in Trainer's eyes: the step is the data's cursor."""
        config = self.config
        default = 2048 if self.args.device.type == "cpu" else 32768
        collator = Collator(
            self.colbert.tokenizer,
            tokens_per_pass=config.tokens_per_pass or default,
            texts_per_pass=config.gradient_cache,
            # One number for the whole run: gathering wants as many documents in every process.
            nway=config.nway or len(self.data[0].documents),
            truncate=config.nway is not None,
            needs_scores=bool(set(TEACHER_LOSSES) & set(config.losses)),
        )
        batches = Batches(
            len(self.data),
            batch_size=config.batch_size,
            group_size=config.group_size,
            steps=self.args.max_steps,
            seed=config.seed,
            rank=rank(),
            processes=processes(),
        )
        return DataLoader(
            cast(Dataset[Any], self.data),
            batch_sampler=cast(Any, batches),
            collate_fn=collator,
            num_workers=config.workers,
            # Its own, since a loader draws a number from it and dropout must not notice.
            generator=torch.Generator(),
        )

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> Tensor:
        """The loss of one batch; see `objective`."""
        batch = inputs["batch"].to(self.args.device)
        queries, rows = model(batch)
        rows, doclens = pool_rows(rows, batch.doclens, self.config.pool_factor)
        if self.quantizer is not None:
            rows = self.quantizer(self.state.global_step, rows, doclens)
        parts = objective(self.config, queries, rows, doclens, batch.teacher, batch.texts)
        loss = torch.stack(list(parts.values())).sum()
        if not loss.isfinite():
            step = self.state.global_step + 1
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}; want a finite one")
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()
        self.steps_in_parts += 1
        return loss

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Log each loss beside their sum, and the passes over the data that it took."""
        if "loss" in logs:
            # All processes log at the same steps, each its own queries' losses.
            values = mean(torch.stack(list(self.parts.values()))) / self.steps_in_parts
            for name, value in zip(self.parts, values.tolist(), strict=True):
                logs[f"loss_{name}"] = value
            self.parts, self.steps_in_parts = {}, 0
        self.state.epoch = self.state.global_step / self.config.steps_per_epoch(len(self.data))
        if rank() == 0:
            logger.info("step %d: %s", self.state.global_step, logs)
        super().log(logs, *rest)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """nDCG@10 on the BEIR folder, measured by process 0."""
        folder, split = self.config.eval_folder, self.config.eval_split
        self.colbert.eval()
        value = validate(self.colbert, cast(str, folder), split) if rank() == 0 else None
        metrics = {METRIC: cast(float, broadcast(value))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _best_steps(self) -> list[int]:
        """Steps that were evaluated, the best first; of equals the earliest."""
        history = self.state.log_history
        values = {int(entry["step"]): entry[METRIC] for entry in history if METRIC in entry}
        return sorted(values, key=lambda step: (-values[step], step))[: self.config.average_best]

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        return str(self.output / UNFINISHED)

    def _save_checkpoint(self, *arguments: Any) -> None:
        with disk_errors(self.output):
            super()._save_checkpoint(*arguments)
        barrier()
        if rank() == 0:
            name = f"checkpoint-{self.state.global_step}"
            if self.quantizer is not None:
                self.quantizer.save(self.output / UNFINISHED / name / CODEC)
            appear(self.output / UNFINISHED / name, self.output / name)
            prune(self.output, {self.state.global_step, *self._best_steps()})
        barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        if self.args.should_save and output_dir is not None:
            self.colbert.save_pretrained(output_dir)
            write_json(Path(output_dir) / RECORD, self.record)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        load_weights(self.colbert, Path(resume_from_checkpoint))
        if self.quantizer is not None:
            self.quantizer.load(Path(resume_from_checkpoint) / CODEC)

    def finish(self) -> None:
        """Take the weights of the best checkpoints, if any were judged, and write the result."""
        best = self._best_steps()
        if best:
            folders = [self.output / f"checkpoint-{step}" for step in best]
            self.colbert.load_state_dict(average_weights(folders))
            logger.info("the result is the mean of the checkpoints of steps %s", best)
        barrier()  # the last to read
        if rank() == 0:
            with disk_errors(self.output):
                self._save(str(self.output / UNFINISHED / FINAL))
            appear(self.output / UNFINISHED / FINAL, self.output / FINAL)
            (self.output / UNFINISHED).rmdir()
        barrier()
