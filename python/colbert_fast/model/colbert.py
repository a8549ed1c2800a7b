"""The ColBERT model: load, encode queries and documents, save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from colbert_fast.compress.pooling import pool_tokens
from colbert_fast.model.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from colbert_fast.model.device import (
    Backend,
    DType,
    check_backend,
    check_device,
    resolve_dtype,
)
from colbert_fast.model.fingerprint import model_fingerprint
from colbert_fast.model.openvino_runner import load_openvino
from colbert_fast.model.parts import check_lengths, override_config
from colbert_fast.model.runner import Runner, make_runner
from colbert_fast.model.streaming import Embedding, WindowEncoder, check_texts, stream
from colbert_fast.model.tokenizer import Batch, Tokenizer

__all__ = ["ColBERT"]

# Tokens of a forward pass on a CPU: 4,096 or 512 take 5 to 10% longer each on MiniLM, by its caches
# and its threads.
CPU_TOKENS = 2048


class ColBERT(nn.Module):
    """A late-interaction encoder: backbone, projection to `config.dim`, unit rows.

    Make one with `ColBERT.from_pretrained`. As a torch module its parameters are float32 and
    `forward` is differentiable, so it can be trained.

    Attributes
    ----------
    config : ModelConfig
    name : str
        What `from_pretrained` finds it by again: "default", an absolute path, or a hub id with
        "@revision" if one was given. Overrides of the configuration are not in it.
    tokenizer : Tokenizer
    backend : {"torch", "openvino"}
        What computes `encode_*`.
    dtype : {"float32", "bfloat16", "int8"}
        Arithmetic of the backbone in `encode_*`; torch projects and normalises in float32.
    """

    _fingerprint: str | None
    _runner: Runner | None

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        dtype: DType = "auto",
        device: str = "cpu",
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        self.name = name
        self.config = checkpoint.config
        self.tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.config)
        self.backbone = checkpoint.backbone
        self.projection = checkpoint.projection
        self.to(check_device(device))
        self.backend = check_backend(backend, self.device)
        self.dtype = resolve_dtype(dtype, self.device, self.backend)
        if self.backend == "openvino":
            load_openvino()  # a missing package is told now, not at the first text
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path | None = None,
        *,
        device: str = "cpu",
        dtype: DType = "auto",
        backend: Backend = "torch",
        allow_pickle: bool = False,
        revision: str | None = None,
        dim: int | None = None,
        seed: int = 0,
        query_length: int | None = None,
        document_length: int | None = None,
        query_prefix: str | None = None,
        document_prefix: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        do_query_expansion: bool | None = None,
        attend_to_expansion_tokens: bool | None = None,
        skiplist_words: Iterable[str] | None = None,
    ) -> ColBERT:
        """Load a checkpoint from a folder or the Hugging Face hub.

        Parameters
        ----------
        path_or_hub_id : str or Path, optional
            A Stanford ColBERT, PyLate, sentence-transformers or plain encoder folder, or a hub id
            of one. None or "default": the offline default model (extra `demo`).
        device : str
            A torch device.
        dtype : {"auto", "float32", "bfloat16", "int8"}
            Arithmetic of the backbone when encoding. "auto" is bfloat16 where the hardware
            multiplies it (AVX-512 BF16, AMX, CUDA), else float32; with openvino int8, which only
            openvino has.
        backend : {"torch", "openvino"}
            What computes `encode_*`. "openvino" (extra `openvino`, CPUs only) is the faster one,
            by 1.5 in int8 against torch in bfloat16 (AMD Zen 4, MiniLM, passages of 140 tokens),
            by more where the CPU does not multiply bfloat16. Its int8 rows have a cosine of 0.999
            to torch's in float32, 0.99 at worst; nDCG@10 of exhaustive search on MED, Cranfield
            and CISI is .763, .519 and .388 with it, .759, .522 and .388 with torch in bfloat16 and
            .759, .522 and .389 in float32. The first text converts the model, for ten seconds or
            more, into the user's cache. Indexes do not depend on the backend: what one has built
            the other may search.
        allow_pickle : bool
            Accept pytorch_model.bin (read with weights_only=True), and download it.
        revision : str, optional
            Branch, tag or commit on the hub.
        dim : int, optional
            Size of the untrained projection that a plain encoder gets, 128 by default. A
            checkpoint that has a projection of another size is refused.
        seed : int
            Seed of that projection.
        query_length, document_length, query_prefix, document_prefix, query_prompt, \
document_prompt, do_query_expansion, attend_to_expansion_tokens, skiplist_words
            Override the checkpoint's ModelConfig; None keeps it.

        Raises
        ------
        CheckpointError
            The folder is missing or foreign, or a weight is missing or of the wrong shape.
        MissingDependencyError
            The default model or OpenVINO is not installed.
        BackendUnavailable
            The device is not there.
        TypeError, ValueError
            An override cannot be.
        """
        check_device(device)
        checkpoint, name = find_checkpoint(
            path_or_hub_id, allow_pickle=allow_pickle, revision=revision, dim=dim, seed=seed
        )
        words = None if skiplist_words is None else tuple(skiplist_words)
        config = override_config(
            checkpoint.config,
            query_length=query_length,
            document_length=document_length,
            query_prefix=query_prefix,
            document_prefix=document_prefix,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            do_query_expansion=do_query_expansion,
            attend_to_expansion_tokens=attend_to_expansion_tokens,
            skiplist_words=words,
        )
        check_lengths(config, checkpoint.backbone)
        return cls(
            replace(checkpoint, config=config),
            name=name,
            dtype=dtype,
            device=device,
            backend=backend,
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained`, PyLate and sentence-transformers 6 read.

        Weights are float32 safetensors. Files of the same names are replaced.
        """
        parts = Checkpoint(self.config, self.tokenizer.base, self.backbone, self.projection)
        save_checkpoint(Path(path), parts)

    @property
    def dim(self) -> int:
        """Columns of every embedding."""
        return self.config.dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def fingerprint(self) -> str:
        """Return a checksum of the weights, whatever the device, `dtype` or text settings.

        An index records it, so that other weights under the same name are noticed. It is computed
        once: a change of the weights is seen after the next `train()`, `eval()` or
        `load_state_dict()`, here and by `encode_*`.

        Returns
        -------
        str
            16 hexadecimal digits.
        """
        if self._fingerprint is None:
            self._fingerprint = model_fingerprint(self)
        return self._fingerprint

    def train(self, mode: bool = True) -> ColBERT:
        """Switch training mode as every torch module does; forgets what it made of the weights."""
        self._fingerprint = self._runner = None
        return super().train(mode)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load weights as every torch module does; forgets what it made of the old ones."""
        self._fingerprint = self._runner = None
        return super().load_state_dict(*args, **options)

    def _apply(self, *args: Any, **options: Any) -> ColBERT:
        # Every move to another device or type comes through here.
        self._runner = None
        super()._apply(*args, **options)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles make their own.
        return {**self.__dict__, "_runner": None}

    def extra_repr(self) -> str:
        """What torch's repr of a module says of this one."""
        return f"name={self.name!r}, backend={self.backend!r}, dtype={self.dtype!r}"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, length) int64 ids and mask to (texts, length, dim) float32 unit rows."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        # Under autocast the backbone is bfloat16; the projection must not be.
        with torch.autocast(input_ids.device.type, enabled=False):
            rows: Tensor = self.projection(hidden.last_hidden_state)
        return rows

    def encode_queries(
        self, texts: str | Sequence[str], *, batch_size: int = 32, progress: bool = False
    ) -> list[Embedding]:
        """Embed queries.

        Parameters
        ----------
        texts : str or sequence of str
        batch_size : int
            Most queries in one forward pass; on a CPU they are fewer if that is faster.
        progress : bool
            Show a bar when it takes over two seconds.

        Returns
        -------
        list of ndarray of float32, (tokens, dim)
            Unit rows; `config.query_length` of them with expansion.

        Raises
        ------
        TypeError
            Naming the position of the first text that is not a str.
        ValueError
            Naming the position of the first text with half of a surrogate pair.
        """
        _check_batch_size(batch_size)
        texts = [texts] if isinstance(texts, str) else texts
        tokenizer = self.tokenizer
        encode = self._window_encoder(tokenizer.tokenize_queries, tokenizer.batch_queries)
        return list(stream(encode, texts, batch_size, progress, "queries"))

    # A sequence is an iterable too: the first that fits wins.
    @overload
    def encode_documents(  # type: ignore[overload-overlap]
        self,
        texts: Sequence[str],
        *,
        batch_size: int = ...,
        pool_factor: int = ...,
        progress: bool = ...,
    ) -> list[Embedding]: ...

    @overload
    def encode_documents(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = ...,
        pool_factor: int = ...,
        progress: bool = ...,
    ) -> Iterator[Embedding]: ...

    def encode_documents(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 32,
        pool_factor: int = 1,
        progress: bool = True,
    ) -> list[Embedding] | Iterator[Embedding]:
        """Embed documents, in order.

        Texts are sorted by length within windows of 2048, so memory is bounded however many there
        are, and padding is small.

        Parameters
        ----------
        texts : str or iterable of str
            A sequence gives a list; any other iterable is read lazily and gives an iterator.
        batch_size : int
            Most documents in one forward pass; on a CPU they are fewer if that is faster.
        pool_factor : int
            Keep about 1 / pool_factor of the rows, by clustering (`pool_tokens`; arXiv
            2409.14683). Pooled means are scaled back to unit length here.
        progress : bool
            Show a bar when it takes over two seconds.

        Returns
        -------
        list or iterator of ndarray of float32, (tokens, dim)
            Unit rows of the tokens that are not in the skip list. An empty text has the rows of
            its special tokens.

        Raises
        ------
        TypeError
            Naming the position of the first text that is not a str.
        ValueError
            Naming the position of the first text with half of a surrogate pair.
        """
        _check_batch_size(batch_size)
        if not isinstance(pool_factor, int) or pool_factor < 1:
            raise ValueError(f"pool_factor: want an int of at least 1, got {pool_factor!r}")
        texts = [texts] if isinstance(texts, str) else texts
        tokenizer = self.tokenizer
        encode = self._window_encoder(tokenizer.tokenize_documents, tokenizer.batch_documents)
        rows = stream(encode, texts, batch_size, progress, "documents")
        if pool_factor > 1:
            rows = (_unit_rows(pool_tokens(row, pool_factor)) for row in rows)
        return list(rows) if isinstance(texts, Sequence) else rows

    def document_spans(self, text: str) -> list[tuple[int, int] | None]:
        """Character span in `text` of each row of `encode_documents([text])`; None for markers."""
        check_texts([text])
        return self.tokenizer.document_spans(text)

    def query_tokens(self, text: str) -> list[str]:
        """The token behind each row of `encode_queries(text)`."""
        check_texts([text])
        return self.tokenizer.query_tokens(text)

    def _window_encoder(
        self,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        collate: Callable[[Sequence[Sequence[int]]], Batch],
    ) -> WindowEncoder:
        """A function from texts to (position, rows) pairs, longest texts first."""

        def encode(texts: Sequence[str], batch_size: int) -> Iterator[tuple[int, Embedding]]:
            if self.training:
                raise RuntimeError("the model is in training mode: call model.eval() to encode")
            ids = tokenize(texts)
            # Longest first: running out of memory happens at once or never.
            order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
            while order:
                size = self._batch_size(batch_size, len(ids[order[0]]))
                chosen, order = order[:size], order[size:]
                yield from zip(chosen, self._rows(collate([ids[i] for i in chosen])), strict=True)

        return encode

    def _batch_size(self, asked: int, longest: int) -> int:
        if self.device.type != "cpu":
            return asked
        return min(asked, max(1, CPU_TOKENS // max(1, longest)))

    def _rows(self, batch: Batch) -> list[Embedding]:
        """Kept rows of each text of a batch, copied: one row held must not hold its whole batch."""
        if self._runner is None:
            self._runner = make_runner(self)
        rows = self._runner(batch.input_ids, batch.attention_mask)
        return [row[keep] for row, keep in zip(rows, batch.keep, strict=True)]


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: want an int of at least 1, got {batch_size!r}")


def _unit_rows(rows: Embedding) -> Embedding:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Embedding = rows / np.maximum(norms, np.float32(1e-12))
    return unit
