"""A recipe from its first stage to its last."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

from colbert_fast.evaluation import DEFAULT_MEASURES, held_out_split
from colbert_fast.model import ColBERT
from colbert_fast.storage.lock import writer_lock
from colbert_fast.training.collections import LoadedCollection, load_collection, write_questions
from colbert_fast.training.files import replacing
from colbert_fast.training.launch import Questions, TrainingJob, join, launch
from colbert_fast.training.recipe import Mining, Recipe, Round, TeacherTraining
from colbert_fast.training.stages import Stages
from colbert_fast.training.start import make_start, resolve_model
from colbert_fast.training.train_teacher import train_teacher
from colbert_fast.training.tuple_stages import Teachers, mine_all, sample_all
from colbert_fast.training.validation import Evaluation, measure

__all__ = ["run_recipe"]

logger = logging.getLogger(__name__)

_MEASURES = "measures.json"
_EVALUATION = "evaluation.json"


def run_recipe(
    recipe: Recipe, *, device: str = "cpu", processes: int = 1, progress: bool = True
) -> tuple[Path, dict[str, Evaluation]]:
    """Run what is not there yet of a recipe's stages.

    Each has a folder in `recipe.output`: ``questions-NAME`` for every collection, ``start``;
    ``warm-up-mined``, ``warm-up-tuples`` and ``warm-up``; ``teacher-...`` and ``round-N-...``
    likewise; ``start-evaluation-NAME`` and ``round-N-evaluation-NAME`` of the last round, whose
    measures ``evaluation.json`` has together. A run that was stopped goes on inside its last stage.

    Parameters
    ----------
    recipe : Recipe
    device : str
        A torch device, for all that computes.
    processes : int
        Of training, each on a GPU of its own if the device is "cuda".
    progress : bool
        Show bars.

    Returns
    -------
    tuple of Path and dict
        The folder of the trained model, for `ColBERT.from_pretrained`; and the `Evaluation` of
        each folder of `recipe.evaluate`, by its name.

    Raises
    ------
    ValueError
        A stage is there with other settings; and whatever its functions raise.
    IndexBusyError
        Another process runs in this output.
    """
    recipe.output.mkdir(parents=True, exist_ok=True)
    with writer_lock(recipe.output):
        run = _Run(recipe, device, processes, progress)
        run.prepare()
        if recipe.warm_up is not None:
            run.round("warm-up", recipe.warm_up, teach=False)
        if recipe.train_teacher is not None:
            run.train_teacher(recipe.train_teacher)
        for number, settings in enumerate(recipe.rounds, 1):
            run.round(f"round-{number}", settings, teach=bool(recipe.teacher))
        return run.model, run.evaluate()


class _Run:
    """The stages that there are, and what they have made so far."""

    def __init__(self, recipe: Recipe, device: str, processes: int, progress: bool) -> None:
        self.recipe, self.device = recipe, device
        self.processes, self.progress = processes, progress
        self.stages = Stages(recipe.output)
        self.collections: list[LoadedCollection] = []
        self.questions: list[Path] = []
        self.start = self.newest = recipe.output / "start"
        self.teacher: Path | None = None

    @property
    def model(self) -> Path:
        """Folder of the newest model."""
        return self.newest / "final"

    def prepare(self) -> None:
        """Choose the questions of every collection, and make the model to start from."""
        recipe = self.recipe
        for collection in recipe.collections:
            folder = self.stages.run(
                f"questions-{collection.name}",
                {**asdict(collection), "seed": recipe.seed},
                partial(write_questions, collection, seed=recipe.seed),
                inputs=collection.paths,
            )
            self.collections.append(load_collection(collection, folder))
            self.questions.append(folder)
        texts = self.collections[0].documents
        self.stages.run(
            "start",
            {**asdict(recipe.start), "seed": recipe.seed},
            lambda folder: make_start(
                recipe.start,
                texts.values(),
                folder / "final",
                seed=recipe.seed,
                progress=self.progress,
            ),
            after=self.questions,
            inputs=[recipe.start.model],
        )

    def round(self, name: str, settings: Round, *, teach: bool) -> None:
        """Mine, score and train."""
        config = settings.config(self.recipe.seed)
        tuples = self._tuples(name, settings.mine, teach=teach)

        def make(folder: Path) -> None:
            job = TrainingJob(
                model=self.model,
                questions=self._questions(tuples),
                output=folder,
                config=config,
                device=self.device,
                progress=self.progress,
            )
            launch(job, self.processes)

        wanted = {**settings.train, "seed": config.seed}
        after = [tuples, self.newest]
        self.newest = self.stages.run(name, wanted, make, after=after, inputs=[config.eval_folder])

    def train_teacher(self, settings: TeacherTraining) -> None:
        """Fine-tune a cross-encoder."""
        tuples = self._tuples("teacher", settings.mine, teach=False)

        nway = settings.mine.nway if settings.mine.tuples is None else None
        options = {"seed": self.recipe.seed, **settings.options}

        def make(folder: Path) -> None:
            if (folder / "final").exists():
                return  # a run was stopped between the model and the record of it
            train_teacher(
                resolve_model(settings.base),
                join(self._questions(tuples), nway, options["seed"]),
                folder / "final",
                device=self.device,
                progress=self.progress,
                **options,
            )

        self.teacher = self.stages.run(
            "teacher",
            {"base": settings.base, **options},
            make,
            after=[tuples],
            inputs=[settings.base],
        )

    def evaluate(self) -> dict[str, Evaluation]:
        """Measure the first and the newest model on every folder of `recipe.evaluate`."""
        found = {}
        for path in self.recipe.evaluate:
            split = held_out_split(path)
            assert split is not None  # the recipe was checked
            name = path.resolve().name  # "." has none
            before = self._measure(name, self.start, path, split)
            after = self._measure(name, self.newest, path, split)
            found[name] = Evaluation(split, before, after)
        text = json.dumps({name: each._asdict() for name, each in found.items()}, indent=2) + "\n"
        file = self.recipe.output / _EVALUATION
        if found and not (file.exists() and file.read_text(encoding="utf-8") == text):
            with replacing(file) as partial:
                partial.write_text(text, encoding="utf-8")
        return found

    def _measure(self, name: str, trained: Path, path: Path, split: str) -> dict[str, float]:
        folder = self.stages.run(
            f"{trained.name}-evaluation-{name}",
            {"folder": str(path), "split": split, "measures": DEFAULT_MEASURES},
            lambda folder: measure(
                trained / "final",
                path,
                split,
                folder / _MEASURES,
                device=self.device,
                progress=self.progress,
            ),
            after=[trained],
            inputs=[path],
        )
        measures: dict[str, float] = json.loads((folder / _MEASURES).read_text(encoding="utf-8"))
        return measures

    def _questions(self, tuples: Path) -> list[Questions]:
        return [
            Questions(tuples / f"{each.name}.jsonl", each.queries, each.documents)
            for each in self.collections
        ]

    def _tuples(self, name: str, settings: Mining, *, teach: bool) -> Path:
        """The stages before a training: rankings, then tuples of them; or tuples that are given."""
        mined = self._mined(name, settings) if settings.tuples is None else None
        parts = self.recipe.teacher if teach else ()

        def sample(folder: Path) -> None:
            teachers = Teachers(parts, self.teacher, self.device) if parts else None
            sample_all(
                self.collections,
                settings,
                teachers,
                mined,
                folder,
                seed=self.recipe.seed,
                progress=self.progress,
            )

        wanted = {
            **asdict(settings),
            "teacher": [asdict(part) for part in parts],
            "seed": self.recipe.seed,
        }
        after = self.questions if mined is None else [mined]
        if teach and self.teacher:
            after = [*after, self.teacher]
        return self.stages.run(
            f"{name}-tuples",
            wanted,
            sample,
            after=after,
            inputs=[*(part.model for part in parts), *(settings.tuples or {}).values()],
        )

    def _mined(self, name: str, settings: Mining) -> Path:
        """The stage of rankings."""
        by_model = "model" in settings.sources

        def rank(folder: Path) -> None:
            model = ColBERT.from_pretrained(self.model, device=self.device) if by_model else None
            mine_all(
                self.collections,
                settings,
                model,
                folder,
                seed=self.recipe.seed,
                progress=self.progress,
            )

        return self.stages.run(
            f"{name}-mined",
            {
                "sources": settings.sources,
                "depth": settings.depth,
                "group_size": settings.group_size,
                "groups": settings.groups,
                "seed": self.recipe.seed,
            },
            rank,
            after=[*self.questions, self.newest] if by_model else self.questions,
        )
