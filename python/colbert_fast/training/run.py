"""A recipe from its first stage to its last."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from colbert_fast.evaluation import DEFAULT_MEASURES, evaluate, load_beir
from colbert_fast.index import Index
from colbert_fast.model import ColBERT
from colbert_fast.training.collections import LoadedCollection, load_collection, write_questions
from colbert_fast.training.data import NWay, TupleFile, write_tuples
from colbert_fast.training.launch import TrainingJob, launch
from colbert_fast.training.mining import mine, sample_tuples
from colbert_fast.training.recipe import Mining, Recipe, Round, TeacherPart
from colbert_fast.training.stages import Stages
from colbert_fast.training.start import make_start
from colbert_fast.training.teacher import CombinedTeacher, Teacher, score_with_teacher
from colbert_fast.training.teachers import make_teacher
from colbert_fast.training.train_teacher import train_teacher

__all__ = ["run_recipe"]

logger = logging.getLogger(__name__)

_EVALUATION = "evaluation.json"


def run_recipe(
    recipe: Recipe, *, device: str = "cpu", processes: int = 1, progress: bool = True
) -> Path:
    """Run what is not there yet of a recipe's stages.

    Each stage has a folder in `recipe.output`: ``questions-NAME`` for every collection, ``start``,
    ``warm-up-mined``, ``warm-up-tuples`` and ``warm-up``, ``teacher-...`` and ``round-N-...``
    likewise, and ``evaluation-NAME``. A run that was stopped goes on in the middle of its stage.

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
    Path
        The folder of the trained model, for `ColBERT.from_pretrained`.

    Raises
    ------
    ValueError
        A stage is there with other settings; and whatever its functions raise.
    """
    return _Run(recipe, device, processes, progress).all()


class _Run:
    """The state of a run: its loaded collections and its newest model."""

    def __init__(self, recipe: Recipe, device: str, processes: int, progress: bool) -> None:
        self.recipe, self.device = recipe, device
        self.processes, self.progress = processes, progress
        self.stages = Stages(recipe.output)
        self.collections: list[LoadedCollection] = []
        self.newest = recipe.output / "start"
        self.teacher = recipe.output / "teacher"

    def all(self) -> Path:
        recipe = self.recipe
        questions = [self._questions(number) for number in range(len(recipe.collections))]
        self.stages.run(
            "start",
            asdict(recipe.start),
            lambda folder: make_start(recipe.start, self.collections[0].documents, folder),
            after=questions,
        )
        if recipe.warm_up is not None:
            self._round("warm-up", recipe.warm_up, teach=False)
        if recipe.train_teacher is not None:
            self._train_teacher()
        for number, each in enumerate(recipe.rounds, 1):
            self._round(f"round-{number}", each, teach=bool(recipe.teacher))
        for path in recipe.evaluate:
            self._evaluate(path)
        return model_of(self.newest)

    def _questions(self, number: int) -> Path:
        collection, seed = self.recipe.collections[number], self.recipe.seed
        folder = self.stages.run(
            f"questions-{collection.name}",
            {**_plain(asdict(collection)), "seed": seed},
            lambda folder: write_questions(collection, folder, seed),
        )
        self.collections.append(load_collection(collection, folder))
        return folder

    def _round(self, name: str, settings: Round, *, teach: bool) -> None:
        mined = self._mine(f"{name}-mined", settings.mine)
        tuples = self._tuples(f"{name}-tuples", settings.mine, mined, teach=teach)
        job = TrainingJob(
            model=model_of(self.newest),
            tuples=[tuples / f"{each.name}.jsonl" for each in self.collections],
            questions=[each.queries for each in self.collections],
            documents=[each.documents for each in self.collections],
            config=settings.config,
            device=self.device,
            progress=self.progress,
        )
        self.newest = self.stages.run(
            name,
            settings.train,
            lambda folder: launch(job, folder, self.processes),
            after=(tuples, self.newest),
        )

    def _mine(self, name: str, settings: Mining) -> Path:
        def make(folder: Path) -> None:
            for source, collection in itertools.product(settings.sources, self.collections):
                out = folder / f"{collection.name}-{source}.jsonl"
                if not out.exists():
                    mine(
                        "bm25" if source == "bm25" else self._model(),
                        collection.queries,
                        collection.documents,
                        depth=settings.depth,
                        out=out,
                        index_path=folder / f"{collection.name}.cf" if source == "model" else None,
                        progress=self.progress,
                    )

        after = (self.newest,) if "model" in settings.sources else ()
        return self.stages.run(
            name, {"sources": settings.sources, "depth": settings.depth}, make, after=after
        )

    def _tuples(self, name: str, settings: Mining, mined: Path, *, teach: bool) -> Path:
        """Tuples of every collection, with the teacher's scores if there is to be one."""

        def make(folder: Path) -> None:
            for collection in self.collections:
                self._sample(collection, settings, mined, folder, teach=teach)

        teacher = [asdict(part) for part in self.recipe.teacher] if teach else []
        trained = any(part["model"] == "trained" for part in teacher)
        after = (mined, self.teacher) if trained else (mined,)
        wanted = {**asdict(settings), "teacher": teacher, "seed": self.recipe.seed}
        return self.stages.run(name, wanted, make, after=after)
