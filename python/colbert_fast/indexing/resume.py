"""What a build has encoded, kept so that a later attempt need not encode it again."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from colbert_fast.storage.files import named_error
from colbert_fast.storage.models import fingerprint_of

if TYPE_CHECKING:
    from colbert_fast.model import ColBERT

__all__ = ["ResumableEncoder"]

_WINDOW = 2048  # texts in a file, as many as the encoder sorts by length together


class ResumableEncoder:
    """Encode documents as `model` does, with the vectors of each 2,048 kept in a file.

    A file is used again if the same weights and settings made it of the same texts. Files take 2
    bytes per dimension and token, as the rest of a build takes vectors in float16.

    Parameters
    ----------
    model
        Encodes what is in no file.
    folder
        Of the files; made if it is not there.
    """

    def __init__(self, model: ColBERT, folder: Path) -> None:
        self.dim = model.dim
        self._model = model
        self._folder = folder

    def encode_documents(
        self, texts: Iterable[str], *, progress: bool = True
    ) -> Iterator[npt.NDArray[np.float16]]:
        """See `ColBERT.encode_documents`; the rows are float16."""
        self._folder.mkdir(exist_ok=True)
        source = iter(texts)
        with tqdm(
            desc="encode documents",
            unit="text",
            total=length_hint(texts, 0) or None,
            disable=not progress,
        ) as bar:
            number = 0
            while window := list(islice(source, _WINDOW)):
                path = self._folder / f"{number:06d}.npz"
                key = self._key(window)
                rows = _read(path, key)
                if rows is None:
                    rows = [np.asarray(each, np.float16) for each in self._encode(window)]
                    _write(path, key, rows)
                bar.update(len(window))
                yield from rows
                number += 1

    def _encode(self, texts: Sequence[str]) -> Iterable[Any]:
        return self._model.encode_documents(texts, progress=False)

    def _key(self, texts: Sequence[str]) -> bytes:
        """A digest of the texts and of what encodes them."""
        model = self._model
        settings = getattr(model, "config", None)  # lengths, markers, prompts: what becomes tokens
        digest = hashlib.blake2b(repr((model.name, fingerprint_of(model), settings)).encode())
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()


def _write(path: Path, key: bytes, rows: list[npt.NDArray[np.float16]]) -> None:
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as file:
            np.savez(
                file,
                key=np.frombuffer(key, np.uint8),
                doclens=np.array([len(each) for each in rows]),
                embeddings=np.concatenate(rows),
            )
    except OSError as error:
        raise named_error(error, fresh) from error
    fresh.replace(path)


def _read(path: Path, key: bytes) -> list[npt.NDArray[np.float16]] | None:
    """The rows of each text; None if the file is of other texts, cut short or not there."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            if file["key"].tobytes() != key:
                return None
            return np.split(file["embeddings"], np.cumsum(file["doclens"])[:-1])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
