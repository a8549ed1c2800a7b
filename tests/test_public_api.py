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
    "IndexBusyError",
    "IndexExistsError",
    "IndexFormatError",
    "MissingDependencyError",
    "ShardedIndex",
    "Texts",
    "TrainingConfig",
    "TrainingData",
    "TupleFile",
    "UnknownDocumentError",
    "__version__",
    "backend_info",
    "evaluate",
    "get_num_threads",
    "load_beir",
    "load_embeddings",
    "maxsim",
    "mine",
    "read_corpus",
    "rerank",
    "sample_tuples",
    "score_with_teacher",
    "set_num_threads",
    "train",
    "train_teacher",
    "training_positives",
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


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors"])
@pytest.mark.parametrize(
    "name", ["colbert_fast", "colbert_fast.model", "colbert_fast.model.colbert"]
)
def test_a_model_says_which_package_is_missing(package: str, name: str) -> None:
    if package != "torch":
        pytest.importorskip("torch", reason="without torch, torch is the one that is named")
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
try:
    from {name} import ColBERT
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    wanted = f'{package}: pip install "colbert-fast[encode]"'
    assert done.stdout == f"MissingDependencyError models need the package {wanted}\n"


def test_other_import_errors_are_not_masked() -> None:
    pytest.importorskip("torch", reason="without torch, torch is the one that is named")
    code = "import sys; sys.modules['tqdm'] = None; import colbert_fast.model"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError")
    assert "[encode]" not in done.stderr


def test_unknown_names_raise_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        colbert_fast.no_such_name  # noqa: B018


def test_version_is_a_version() -> None:
    assert colbert_fast.__version__[0].isdigit()
