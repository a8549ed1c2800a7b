"""Cross-encoders as teachers, and what runs other libraries' models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from colbert_fast.errors import CheckpointError
from colbert_fast.model.device import check_device, multiplies_bfloat16
from colbert_fast.model.fingerprint import model_fingerprint, settings_fingerprint
from colbert_fast.model.weights import quiet_transformers, reason_of, resolve_folder
from colbert_fast.training.files import require
from colbert_fast.training.teacher_cache import Pair

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

__all__ = [
    "CrossEncoderTeacher",
    "TeacherDType",
    "autocast",
    "check_batch_size",
    "foreign_fingerprint",
    "load_cross_encoder",
    "load_with",
    "resolve_teacher_dtype",
]

TeacherDType = Literal["auto", "float32", "bfloat16", "float16"]

_HEADS = ("ForSequenceClassification", "ForCausalLM")


class CrossEncoderTeacher:
    """A model that reads query and document together.

    A score is the logit of a head with one class, the log-odds (logit 1 - logit 0) of one with two;
    no sigmoid, which would flatten the differences that a student learns from.

    Parameters
    ----------
    model : CrossEncoder, str or Path
        One of sentence-transformers, or what it loads: the folder or hub id of a cross-encoder or
        of a Hugging Face sequence classifier.
    max_length : int, optional
        Tokens of a pair, the longer text cut first; by default what the model says.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Arithmetic, by autocast. "auto" is bfloat16 where the device multiplies it, else float16 on
        CUDA, else float32. The head's too: in bfloat16 a logit has 8 bits, so that those from 4 to
        8 are multiples of 1/32.
    device : str, optional
        By default where the given model is; "cpu" for one that is loaded here.
    batch_size : int
        Pairs in one forward pass.

    Raises
    ------
    CheckpointError
        The model cannot be read, or has no classification head, or one of more than two classes.
    BackendUnavailable
        The device is not there.
    MissingDependencyError
        sentence-transformers is not installed.
    """

    def __init__(
        self,
        model: CrossEncoder | str | Path,
        *,
        max_length: int | None = None,
        dtype: TeacherDType = "auto",
        device: str | None = None,
        batch_size: int = 32,
    ) -> None:
        if isinstance(model, (str, Path)):
            loaded = load_cross_encoder(model, device=device or "cpu")
        else:
            loaded = model if device is None else model.to(check_device(device))
        if loaded.num_labels not in (1, 2):
            raise CheckpointError(
                f"model: want a head with one class or two, got {loaded.num_labels} classes"
            )
        self.model = loaded.eval()
        self.max_length = max_length
        self.dtype = resolve_teacher_dtype(dtype, loaded.device)
        self.batch_size = check_batch_size(batch_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Weights, settings, tokenizer, prompts, length and arithmetic; computed once."""
        length = self.max_length or self.model.max_seq_length
        return f"cross-encoder {foreign_fingerprint(self.model)} {length} {self.dtype}"

    def __call__(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """float32 (len(pairs),) scores of (query, document) texts."""
        scores = np.empty(len(pairs), np.float32)
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = self._forward([pairs[i] for i in chosen])
        return scores

    @torch.inference_mode()
    def _forward(self, pairs: list[Pair]) -> npt.NDArray[np.float32]:
        options: Any = {} if self.max_length is None else {"max_length": self.max_length}
        features = {
            key: value.to(self.model.device) if isinstance(value, torch.Tensor) else value
            for key, value in self.model.preprocess(pairs, **options).items()
        }
        with autocast(self.model.device, self.dtype):
            logits = self.model(features)["scores"]
        logits = logits.float().reshape(len(pairs), self.model.num_labels)
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        found: npt.NDArray[np.float32] = scores.cpu().numpy()
        return found


def load_cross_encoder(
    path_or_hub_id: str | Path,
    *,
    device: str = "cpu",
    max_length: int | None = None,
    new_head: bool = False,
) -> CrossEncoder:
    """Load a cross-encoder in float32.

    Parameters
    ----------
    path_or_hub_id : str or Path
    device : str
    max_length : int, optional
    new_head : bool
        Give an encoder that has no head a random one of one class.

    Raises
    ------
    CheckpointError
        It cannot be read, or has no head and `new_head` is False.
    """
    check_device(device)
    options: dict[str, Any] = {"num_labels": 1} if new_head else {}
    model: CrossEncoder = load_with(
        "CrossEncoder", path_or_hub_id, device=device, max_length=max_length, **options
    )
    architectures = getattr(model.config, "architectures", None) or ["none"]
    if not new_head and not architectures[0].endswith(_HEADS):
        raise CheckpointError(
            f"{path_or_hub_id}: no cross-encoder ({architectures[0]}): its head would be random; "
            "train_teacher makes one of it"
        )
    return model


def load_with(kind: str, path_or_hub_id: str | Path, *, device: str, **options: Any) -> Any:
    """Have sentence-transformers' class `kind` load a model, in float32."""
    folder, _ = resolve_folder(path_or_hub_id, allow_pickle=False, revision=None)
    library = require("sentence_transformers", "a teacher of its kind")
    try:
        with quiet_transformers():
            model = getattr(library, kind)(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path_or_hub_id}: {reason_of(error)}") from error
    return model.float()


def foreign_fingerprint(model: CrossEncoder | SentenceTransformer) -> str:
    """Weights, settings, tokenizer and prompts of a model of sentence-transformers."""
    network = model.transformers_model
    settings = settings_fingerprint(
        None if network is None else network.config,
        getattr(model, "tokenizer", None),
        model.prompts,
        model.default_prompt_name,
    )
    return f"{model_fingerprint(model)} {settings}"


def resolve_teacher_dtype(
    dtype: TeacherDType, device: torch.device
) -> Literal["float32", "bfloat16", "float16"]:
    """What "auto" is on `device`.

    Raises
    ------
    ValueError
        There is no such type, or it is float16 on a CPU, which emulates it hundreds of times
        slower than float32.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        wanted = "'auto', 'float32', 'bfloat16' or 'float16'"
        raise ValueError(f"dtype: want {wanted}, got {dtype!r}")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("dtype: CPUs do not multiply float16; want 'bfloat16' or 'float32'")
    if dtype != "auto":
        return dtype
    if multiplies_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Products in `dtype`; softmax and layer norms stay in float32."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def check_batch_size(batch_size: int) -> int:
    """`batch_size`, or ValueError if it is not a number of things."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: want an int of at least 1, got {batch_size!r}")
    return batch_size
