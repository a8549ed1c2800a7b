"""What the package exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import colbert_fast


def imported_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(result.stdout.split())


EXPECTED = [
    "BackendUnavailable",
    "CheckpointError",
    "ColBERT",
    "ColbertFastError",
    "Hit",
    "Index",
    "IndexExistsError",
    "IndexFormatError",
    "MissingDependencyError",
    "UnknownDocumentError",
    "__version__",
    "backend_info",
    "evaluate",
    "get_num_threads",
    "maxsim",
    "set_num_threads",
]
HEAVY = {"torch", "transformers", "typer", "scipy", "tqdm", "ir_measures", "sqlite3"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imported_after("import colbert_fast") & HEAVY


def test_kernels_need_numpy_only() -> None:
    loaded = imported_after("from colbert_fast import maxsim, backend_info; backend_info()")
    assert not loaded & (HEAVY - {"sqlite3"})


def test_public_names() -> None:
    assert sorted(colbert_fast.__all__) == EXPECTED
    assert set(colbert_fast.__all__) <= set(dir(colbert_fast))


def test_unknown_names_raise_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        colbert_fast.no_such_name  # noqa: B018


def test_version_is_a_version() -> None:
    assert colbert_fast.__version__[0].isdigit()
