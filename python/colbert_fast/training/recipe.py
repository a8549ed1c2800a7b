"""What a recipe says: the settings of a whole training run, read from YAML and checked at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from colbert_fast.errors import MissingDependencyError
from colbert_fast.evaluation import held_out_split
from colbert_fast.training.config import TEACHER_LOSSES, TrainingConfig
from colbert_fast.training.sampling import check_draw

__all__ = [
    "Collection",
    "Mining",
    "Recipe",
    "Round",
    "Start",
    "TeacherPart",
    "TeacherTraining",
    "find_recipe",
    "read_recipe",
]


class _Strict:
    """Of a section of a recipe: keys that it does not have are errors."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True)
class Collection(_Strict):
    """Questions, passages, and which belong together.

    Attributes
    ----------
    name : str
        Of its files in the output.
    folder : Path, optional
        In BEIR layout; `split` says which judgements to train on.
    documents, queries, positives : Path, optional
        Files in place of a folder: any text layout, the same, and judgements as .tsv.
    min_grade : int
        The lowest grade of a positive.
    pseudo_queries : bool
        Make the questions from the passages (`pseudo_queries`), of which only `folder` or
        `documents` is needed then.
    limit : int, optional
        At most so many questions, drawn at random.
    """

    name: str
    folder: Path | None = None
    split: str = "train"
    documents: Path | None = None
    queries: Path | None = None
    positives: Path | None = None
    min_grade: int = 1
    pseudo_queries: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where it is not clear what to read."""
        if Path(self.name).name != self.name:
            raise ValueError(f"collection {self.name!r}: want a name that files can have")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"collection {self.name!r}: want a limit above 0; got {self.limit}")
        files = {"documents": self.documents, "queries": self.queries, "positives": self.positives}
        wanted = ["documents"] if self.pseudo_queries else list(files)
        given = [name for name, path in files.items() if path is not None]
        if (self.folder is None) == (not given) or (given and given != wanted):
            raise ValueError(
                f"collection {self.name!r}: give either `folder` or {', '.join(wanted)}; "
                f"got {', '.join(['folder'] * (self.folder is not None) + given) or 'neither'}"
            )

    @property
    def paths(self) -> list[Path]:
        """What it is read from."""
        named = (self.folder, self.documents, self.queries, self.positives)
        return [path for path in named if path is not None]


@dataclass(frozen=True)
class Start(_Strict):
    """The model that training starts from.

    Attributes
    ----------
    model : str
        What `ColBERT.from_pretrained` takes: "default", a folder, a hub id of a ColBERT or of a
        plain encoder.
    dim : int, optional
        Size of the projection that a plain encoder gets.
    projection : {"random", "principal"}
        How that is set: orthonormal at random, or along the principal directions of the token
        vectors of passages of the first collection.
    query_length, document_length, query_prefix, document_prefix, do_query_expansion, \
attend_to_expansion_tokens
        Override the model's own.
    """

    model: str = "default"
    dim: int | None = None
    projection: Literal["random", "principal"] = "random"
    query_length: int | None = None
    document_length: int | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    do_query_expansion: bool | None = None
    attend_to_expansion_tokens: bool | None = None


@dataclass(frozen=True)
class Mining(_Strict):
    """Which documents stand beside the positive in a tuple: see `mine` and `sample_tuples`.

    Attributes
    ----------
    sources : tuple of {"bm25", "model"}
        What ranks the documents; the rankings of two take turns.
    depth : int
        Documents of a ranking.
    nway : int
        Documents of a tuple.
    bands : tuple of (first rank, rank after the last, share)
        Where negatives are drawn from.
    margin, ratio : float, optional
        Leave out negatives whose teacher score comes so near the positive's. All candidates are
        scored then, not only those drawn, by one teacher: sums of several have no common scale.
    tuples_per_positive : int
        So many tuples with different negatives.
    group_size : int, optional
        Instead of a query's own negatives: so many queries share `nway` documents, neighbours of
        each other among the nearest `depth` (`sample_groups`).
    groups : int, optional
        At most so many of them for each collection.
    tuples : mapping of str to Path, optional
        Instead of all that: for each collection, by name, a file of n-way tuples that are there
        already, the positive first (`read_tuples`). In rounds a recipe's `teacher` replaces their
        scores. With `group_size`, each so many that follow each other have the same documents.
    """

    sources: tuple[Literal["bm25", "model"], ...] = ("model",)
    depth: int = 200
    nway: int = 16
    bands: tuple[tuple[int, int, float], ...] = ((0, 20, 0.5), (20, 200, 0.5))
    margin: float | None = None
    ratio: float | None = None
    tuples_per_positive: int = 1
    group_size: int | None = None
    groups: int | None = None
    tuples: Mapping[str, Path] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming what cannot be."""
        if self.tuples is not None:
            self._check_given(self.tuples)
        check_draw(self.nway, self.bands)
        counts = {name: getattr(self, name) for name in ("depth", "tuples_per_positive")}
        counts |= {"group_size": self.group_size or 1, "groups": self.groups or 1}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.late and (self.group_size is not None or self.tuples_per_positive > 1):
            raise ValueError("margin and ratio go with neither group_size nor tuples_per_positive")

    def _check_given(self, tuples: Mapping[str, Path]) -> None:
        for each in fields(self):
            if each.name not in ("tuples", "group_size") and (
                getattr(self, each.name) != each.default
            ):
                raise ValueError(f"{each.name}: tuples that are there are not mined or drawn")
        missing = [path for path in tuples.values() if not path.exists()]
        if missing:
            raise ValueError(f"tuples: no such file: {missing[0]}")

    @property
    def late(self) -> bool:
        """Whether negatives are chosen when they have scores."""
        return self.margin is not None or self.ratio is not None


@dataclass(frozen=True)
class Round(_Strict):
    """Mine, score with the teacher if there is one, train.

    Attributes
    ----------
    train : dict
        As for `TrainingConfig.from_dict`; `group_size` is that of `mine`.
    mine : Mining
    """

    train: dict[str, Any]
    mine: Mining = Mining()

    def __post_init__(self) -> None:
        """Raise ValueError naming the key of `train` that cannot be."""
        if "group_size" in self.train:
            raise ValueError("train: group_size belongs to mine")
        try:
            config = self.config(0)
        except TypeError as error:
            raise ValueError(f"train: {error}") from error
        if self.mine.tuples is None and (config.nway or 0) > self.mine.nway:
            raise ValueError(f"train: nway is {config.nway}, of tuples of {self.mine.nway}")

    def config(self, seed: int) -> TrainingConfig:
        """`train`, checked, with the seed that it has itself or this one."""
        values = {"seed": seed, "group_size": self.mine.group_size or 1, **self.train}
        return TrainingConfig.from_dict(values)


@dataclass(frozen=True)
class TeacherPart(_Strict):
    """One of the models whose scores, standardised within a tuple, are added up.

    Attributes
    ----------
    kind : {"cross_encoder", "bi_encoder", "maxsim", "bm25", "judgements"}
        The last gives positives their grade and 0 to all else.
    model : str, optional
        Folder or hub id; "trained" is the cross-encoder that the run trains itself.
    weight : float
    dim : int, optional
        For "maxsim" with a plain encoder: of its projection, which is orthonormal; as large as the
        encoder's vectors it changes nothing. Without markers and query expansion, which mean
        nothing to an encoder that was not trained with them.
    """

    kind: Literal["cross_encoder", "bi_encoder", "maxsim", "bm25", "judgements"]
    model: str | None = None
    weight: float = 1.0
    dim: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if it is not clear which model."""
        alone = self.kind in ("bm25", "judgements")
        if (self.model is None) != alone:
            wanted = "no" if alone else "a"
            raise ValueError(f"a teacher of kind {self.kind} wants {wanted} `model`")


@dataclass(frozen=True)
class TeacherTraining(_Strict):
    """Fine-tuning of a cross-encoder, for those who have none.

    Attributes
    ----------
    base : str
        Folder or hub id of an encoder or a cross-encoder.
    mine : Mining
    options : dict
        Of `train_teacher`, by name.
    """

    base: str
    mine: Mining = Mining(sources=("bm25",), nway=8)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError naming an option that `train_teacher` does not have."""
        from colbert_fast.training.train_teacher import train_teacher

        known = inspect.signature(train_teacher).parameters.values()
        free = [each.name for each in known if each.kind == each.KEYWORD_ONLY]
        free = [name for name in free if name not in ("device", "progress")]  # the run's
        if unknown := sorted(set(self.options) - set(free)):
            raise ValueError(f"options: {unknown[0]!r} is none of {', '.join(free)}")


@dataclass(frozen=True)
class Recipe(_Strict):
    """A whole run: a warm-up if wanted, a teacher if wanted, then rounds of distillation.

    Attributes
    ----------
    output : Path
        Folder of the run, made if need be; every stage has a folder in it.
    collections : tuple of Collection
    start : Start
    warm_up : Round, optional
        Without the teacher's scores.
    train_teacher : TeacherTraining, optional
    teacher : tuple of TeacherPart
    rounds : tuple of Round
    evaluate : tuple of Path
        BEIR folders whose test split, or dev where there is none, the first and the last model are
        measured on.
    seed : int
        Of everything that has none of its own.
    """

    output: Path
    collections: tuple[Collection, ...]
    rounds: tuple[Round, ...] = ()
    teacher: tuple[TeacherPart, ...] = ()
    train_teacher: TeacherTraining | None = None
    start: Start = Start()
    warm_up: Round | None = None
    evaluate: tuple[Path, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where two parts do not go together."""
        names = [each.name for each in self.collections]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"collections: want at least one, each with a name; got {names}")
        if self.train_teacher is None and any(part.model == "trained" for part in self.teacher):
            raise ValueError("teacher: 'trained' is the one of `train_teacher`, which is missing")
        for each in self.rounds:
            losses = each.config(0).losses
            untaught = not self.teacher and each.mine.tuples is None
            if untaught and set(losses) & set(TEACHER_LOSSES):
                raise ValueError(f"rounds: the losses {', '.join(losses)} need a `teacher`")
            if each.mine.late and len(self.teacher) != 1:
                raise ValueError("rounds: margin and ratio want exactly one `teacher`")
        self._check_untaught()
        for part in (*self.rounds, self.warm_up, self.train_teacher):
            given = None if part is None else part.mine.tuples
            if given is not None and sorted(given) != sorted(names):
                raise ValueError(f"tuples: want a file for each of {names}; got {[*given]}")
        folders = [path.resolve().name for path in self.evaluate]
        if len(set(folders)) < len(folders):
            raise ValueError(f"evaluate: want folders of different names; got {folders}")
        for path in self.evaluate:
            if not path.is_dir():
                raise ValueError(f"evaluate: no such folder: {path}")
            if held_out_split(path) is None:
                raise ValueError(f"evaluate: {path} has no judgements of a split test or dev")

    def _check_untaught(self) -> None:
        for name, each in (("warm_up", self.warm_up), ("train_teacher", self.train_teacher)):
            if each is not None and each.mine.late:
                raise ValueError(f"{name}: it has no teacher for margin and ratio")
        warm_up = self.warm_up
        if warm_up is None or warm_up.mine.tuples is not None:
            return
        if set(warm_up.config(0).losses) & set(TEACHER_LOSSES):
            raise ValueError("warm_up: it has no teacher; want losses that need none")


def find_recipe(name: str) -> Path:
    """The file of that name, or the recipe of that name which comes with the library.

    Raises
    ------
    FileNotFoundError
        There is neither.
    """
    path, here = Path(name), Path(__file__).with_name("recipes")
    if path.is_file():
        return path
    known = {file.stem: file for file in here.glob("*.yaml")}
    if name not in known:
        raise FileNotFoundError(
            f"{name}: no such file, nor a recipe that comes along ({', '.join(sorted(known))})"
        )
    return known[name]


def read_recipe(path: Path, *, collections: Sequence[Collection] | None = None) -> Recipe:
    """Read and check a recipe; paths in it are relative to the working directory.

    Parameters
    ----------
    path : Path
    collections : sequence of Collection, optional
        In place of the recipe's.

    Raises
    ------
    ValueError
        Naming the file and every key that is unknown, missing or of the wrong type.
    MissingDependencyError
        pydantic or PyYAML is missing.
    """
    try:
        import pydantic
        import yaml
    except ImportError as error:
        raise MissingDependencyError(
            f'recipes need {error.name}; install it with: pip install "colbert-fast[train]"'
        ) from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if collections is not None and isinstance(values, dict):
            values["collections"] = collections
        recipe: Recipe = pydantic.TypeAdapter(Recipe).validate_python(values)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    except pydantic.ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}: {'; '.join(wrong)}") from error
    return recipe
