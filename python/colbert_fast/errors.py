"""Every exception of the library that is not a plain ValueError, TypeError or OSError."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ColbertFastError",
    "IndexBusyError",
    "IndexExistsError",
    "IndexFormatError",
    "MissingDependencyError",
    "UnknownDocumentError",
]


class ColbertFastError(Exception):
    """Base of the library's own exceptions."""


class IndexFormatError(ColbertFastError, ValueError):
    """An index folder is missing, foreign, truncated or corrupt; the message names the file."""


class IndexExistsError(ColbertFastError, FileExistsError):
    """`Index.build` was pointed at something that already exists, without `overwrite=True`."""


class IndexBusyError(ColbertFastError, TimeoutError):
    """Another process or thread is changing the index, and did not finish in time."""


class CheckpointError(ColbertFastError, ValueError):
    """A model folder cannot be read; the message names the file or key."""


class BackendUnavailable(ColbertFastError, RuntimeError):
    """The asked-for ISA or device is not available on this machine or in this build."""


class MissingDependencyError(ColbertFastError, ImportError):
    """An optional package is needed; the message says which extra installs it."""


class UnknownDocumentError(ColbertFastError, KeyError):
    """A document id is not in the index."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a message should read as one.
        return str(self.args[0]) if self.args else ""
