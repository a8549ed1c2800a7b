"""The part of the public index that needs no search: documents, description, soundness."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from colbert_fast.search.snapshot import Snapshot
from colbert_fast.storage.documents import Document, DocumentId, check_id
from colbert_fast.storage.manifest import Manifest

__all__ = ["IndexContents"]


class IndexContents:
    """What `Index` tells of the generation it shows."""

    _snapshot: Snapshot

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._snapshot.path

    @property
    def ids(self) -> tuple[DocumentId, ...]:
        """The ids of all documents, in the order of their segments; read on first use."""
        return self._snapshot.ids

    @property
    def manifest(self) -> Manifest:
        """What the index is, in the generation that this object shows."""
        return self._snapshot.manifest

    def info(self) -> dict[str, Any]:
        """Sizes and settings; see `Manifest.summary`."""
        return {"path": str(self.path), **self._snapshot.manifest.summary(self.path)}

    def get(self, id: DocumentId) -> Document:  # noqa: A002
        """The document of an id as it is stored: its text and metadata.

        Raises
        ------
        UnknownDocumentError
            There is none.
        """
        library = self._snapshot.library
        [position] = library.positions([id], name="id")
        return library.fetch([position])[position]

    def get_embeddings(self, ids: Iterable[DocumentId]) -> list[npt.NDArray[np.float32]]:
        """The vectors of documents as they are stored, decompressed: float32 (tokens, dim) each.

        Raises
        ------
        UnknownDocumentError
            An id is not in the index.
        """
        snapshot = self._snapshot
        snapshot.check_open()
        return [snapshot.decode(at) for at in snapshot.library.positions(ids, name="ids")]

    def verify(self) -> None:
        """Read every file and compare it with its checksums; check that all codes are in range.

        Raises
        ------
        IndexFormatError
            A file is damaged; the message names it, and the bytes among which the damage is. Or two
            documents have the same id.
        """
        self._snapshot.check_open()
        self._snapshot.verify_what_is_there()

    def export(
        self,
        path: str | os.PathLike[str],
        layout: Literal["stanford"] = "stanford",
        *,
        recode: bool = False,
        progress: bool = True,
    ) -> None:
        """Write this generation's documents as an index that Stanford ColBERT (colbert-ai) opens.

        Passages are numbered from 0 in the order of `ids`, which pid_docid_map.json keeps. Texts
        and metadata are not written. An index with ``codec="plaid"`` keeps its codes and residuals.

        Parameters
        ----------
        path
            Folder to create; its parent must exist.
        layout
            "stanford".
        recode
            Decode an index with another codec and encode it in Stanford's, with the same centroids
            and number of bits (4 for 3, 8 for float16). That loses precision.
        progress
            Show a progress bar on stderr.

        Raises
        ------
        ValueError
            Stanford's code cannot read the index's codec (see `recode`) or dim, or the index is
            empty.
        IndexExistsError
            Something is at `path` already.
        OSError
            Writing failed; nothing is left behind.
        """
        from colbert_fast.indexing.convert import export_index

        if layout != "stanford":
            raise ValueError(f"layout must be 'stanford', got {layout!r}")
        self._snapshot.check_open()
        export_index(self._snapshot, Path(path).absolute(), recode=recode, progress=progress)

    def __len__(self) -> int:
        return self._snapshot.num_documents

    def __contains__(self, id: DocumentId) -> bool:  # noqa: A002
        return bool(self._snapshot.library.find([check_id(id, 0, name="id")]))

    def __repr__(self) -> str:
        manifest = self._snapshot.manifest
        return (
            f"Index({str(self.path)!r}, documents={manifest.num_documents}, "
            f"tokens={manifest.num_tokens}, codec={manifest.codec!r}, nbits={manifest.nbits})"
        )
