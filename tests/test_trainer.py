"""One step against plain torch, and what a run leaves behind."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")

from torch.nn import functional  # noqa: E402

from colbert_fast.kernels import autograd  # noqa: E402
from colbert_fast.model import ColBERT  # noqa: E402
from colbert_fast.storage.lock import LOCK  # noqa: E402
from colbert_fast.training import losses, trainer  # noqa: E402
from colbert_fast.training.batches import Collator, Encoder, TrainingBatch  # noqa: E402
from colbert_fast.training.config import LOSSES, TrainingConfig  # noqa: E402
from colbert_fast.training.objective import objective  # noqa: E402
from colbert_fast.training.trainer import train  # noqa: E402
from training_runs import load_model, make_examples, weights, write_model  # noqa: E402

EXAMPLES = make_examples()
SHORT: dict[str, Any] = {"batch_size": 4, "max_steps": 3, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> ColBERT:
    return load_model(folder, dropout=0.0)


def run(model: ColBERT, output: Path, **options: Any) -> ColBERT:
    return train(model, EXAMPLES, output, TrainingConfig(**{**SHORT, **options}), progress=False)


def collate(model: ColBERT, examples: list[Any]) -> TrainingBatch:
    collator = Collator(model.tokenizer, tokens_per_pass=64, nway=3, needs_scores=True)
    return collator.collate(examples)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(value, right[key]) for key, value in left.items())


def plain_loss(model: ColBERT, examples: list[Any], dim: int, weight: dict[str, float]) -> Any:
    """The papers' formulas, a text at a time and with padded documents."""

    def rows(batch: Any) -> Any:
        ids, mask = (torch.from_numpy(each) for each in (batch.input_ids, batch.attention_mask))
        vectors = model(ids, mask)[0][torch.from_numpy(batch.keep[0])][:, :dim]
        return functional.normalize(vectors, dim=1)

    own, tokenizer = model.tokenizer, model.tokenizer
    queries = [
        rows(own.batch_queries(tokenizer.tokenize_queries([each.query]))) for each in examples
    ]
    documents = [
        rows(own.batch_documents(tokenizer.tokenize_documents([text])))
        for each in examples
        for text in each.documents
    ]
    scores = torch.stack(
        [torch.stack([(Q @ D.T).amax(1).sum() for D in documents]) for Q in queries]
    )
    n = len(examples[0].documents)
    total = 0.0
    for i, each in enumerate(examples):
        mine = scores[i, i * n : i * n + n]
        teacher = torch.tensor(each.scores).softmax(0)
        others = torch.cat([scores[i, : i * n], scores[i, i * n + n :]])
        total = total + weight["kl"] * (teacher * (teacher.log() - mine.log_softmax(0))).sum()
        total = total - weight["in_batch"] * torch.cat([mine[:1], others]).log_softmax(0)[0]
        total = total - weight["contrastive"] * scores[i].log_softmax(0)[i * n]
    return total / len(examples)


@pytest.mark.parametrize("matryoshka", [(), (8,)])
def test_gradients_of_a_step_are_those_of_the_formulas(
    model: ColBERT, matryoshka: tuple[int, ...]
) -> None:
    weight = {"kl": 1.0, "in_batch": 0.5, "contrastive": 2.0}
    examples = EXAMPLES[:4]
    batch = collate(model, examples)
    config = TrainingConfig(losses=weight, matryoshka=matryoshka)
    parts = objective(config, *Encoder(model)(batch), batch.doclens, batch.teacher)
    ours = sum(parts.values())
    theirs = sum(plain_loss(model, examples, dim, weight) for dim in (*matryoshka, model.dim))
    assert list(parts) == list(weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    used = [each for name, each in model.named_parameters() if "pooler" not in name]
    for mine, plain in zip(
        torch.autograd.grad(ours, used), torch.autograd.grad(theirs, used), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_a_query_s_positives_are_never_its_negatives(model: ColBERT) -> None:
    """Two tuples of a query, another query with its positive, and a copy of it as a negative."""
    first, second, third, fourth = EXAMPLES[:4]
    examples = [
        first,
        second._replace(query=first.query),
        third._replace(documents=(first.documents[0], *third.documents[1:])),
        fourth._replace(documents=(*fourth.documents[:2], fourth.documents[0])),
    ]
    batch = collate(model, examples)
    with torch.no_grad():
        queries, rows = Encoder(model)(batch)
    weight = dict.fromkeys(("in_batch", "contrastive", "xtr"), 1.0)
    found = objective(
        TrainingConfig(losses=weight), queries, rows, batch.doclens, texts=batch.texts
    )
    n = 3
    scores = {
        "in_batch": autograd.maxsim(queries, rows, batch.doclens),
        "xtr": losses.xtr_scores(queries, rows, batch.doclens),
    }
    scores["contrastive"] = scores["in_batch"]
    positives = {0: {0, 3, 6}, 1: {0, 3, 6}, 2: {0, 6}, 3: {9, 11}}  # columns
    for name in weight:
        total = 0.0
        for row, known in positives.items():
            own = range(row * n, row * n + n) if name == "in_batch" else ()
            others = [c for c in range(4 * n) if c not in known and c not in own]
            total -= scores[name][row, [row * n, *others]].log_softmax(0)[0]
        torch.testing.assert_close(found[name], total / 4)


def test_temperatures_and_k(model: ColBERT) -> None:
    batch = collate(model, EXAMPLES[:4])
    with torch.no_grad():
        queries, rows = Encoder(model)(batch)
    scores = autograd.maxsim(queries, rows, batch.doclens)
    n = len(EXAMPLES[0].documents)
    own = torch.stack([scores[i, i * n : i * n + n] for i in range(4)])
    options: dict[str, Any] = {"contrastive_temperature": 0.5, "temperature": 2.0, "xtr_k": 3}
    config = TrainingConfig(losses=dict.fromkeys(LOSSES, 1.0), **options)
    found = objective(config, queries, rows, batch.doclens, batch.teacher)
    expected = {
        "kl": losses.kl_divergence(own, batch.teacher, temperature=2.0),
        "in_batch": losses.in_batch_cross_entropy(scores, n, temperature=0.5),
        "pairwise": losses.pairwise_cross_entropy(own),
        "contrastive": losses.contrastive(scores, n, temperature=0.5),
        "margin_mse": losses.margin_mse(own, batch.teacher),
        "xtr": losses.xtr(queries, rows, batch.doclens, n, k=3, temperature=0.5),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
        config = TrainingConfig(losses={name: 1.0}, **options)
        alone = objective(config, queries, rows, batch.doclens, batch.teacher)
        torch.testing.assert_close(alone[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_only_what_a_loss_needs_is_scored(model: ColBERT) -> None:
    batch = collate(model, EXAMPLES[:4])
    rows = Encoder(model)(batch)
    for names, own_only in (
        (["xtr"], []),
        (["xtr", "kl"], [True]),
        (["kl", "margin_mse", "pairwise"], [True]),
        (["kl", "in_batch", "contrastive"], [False]),
    ):
        config = TrainingConfig(losses=dict.fromkeys(names, 1.0))
        with mock.patch.object(autograd, "maxsim", wraps=autograd.maxsim) as maxsim:
            objective(config, *rows, batch.doclens, batch.teacher)
        calls = ["documents_per_query" in call.kwargs for call in maxsim.call_args_list]
        assert calls == own_only, names


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls(model: ColBERT, name: str, tmp_path: Path) -> None:
    def loss() -> float:
        batch = collate(model, EXAMPLES)
        with torch.no_grad():
            rows = Encoder(model)(batch)
            config = TrainingConfig(losses={name: 1.0}, teacher_scale=0.5)
            return float(objective(config, *rows, batch.doclens, batch.teacher)[name])

    before = loss()
    run(model, tmp_path / "run", losses={name: 1.0}, max_steps=12, teacher_scale=0.5)
    assert loss() < 0.97 * before


def test_the_result_is_a_checkpoint(model: ColBERT, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    trained = run(model, output, save_steps=2)
    assert trained is model
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-3", "final", LOCK]
    assert not same(model.state_dict(), weights(folder))
    for name in ("final", "checkpoint-3"):
        assert same(model.state_dict(), weights(output / name))
        again = ColBERT.from_pretrained(output / name, dtype="float32")
        np.testing.assert_array_equal(
            again.encode_queries("why blue")[0], model.encode_queries("why blue")[0]
        )


def test_gradient_caching_changes_nothing(folder: Path, tmp_path: Path) -> None:
    # Passes of one text draw the same dropout whether their activations are kept or not.
    models = [load_model(folder), load_model(folder)]
    # A large epsilon, since Adam's updates are signs where a gradient is nothing but rounding.
    smooth = {"adam_epsilon": 1.0, "learning_rate": 0.1}
    run(models[0], tmp_path / "plain", tokens_per_pass=1, **smooth)
    run(models[1], tmp_path / "cached", gradient_cache=1, **smooth)
    for (name, one), other in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_parameters_stay(model: ColBERT, folder: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "run", frozen=("*.word_embeddings.*", "projection.*"))
    before = weights(folder)
    for name, value in model.state_dict().items():
        fixed = "word_embeddings" in name or "projection" in name or "pooler" in name
        assert torch.equal(value, before[name]) == fixed, name


def test_dropout(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    before = [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]
    assert any(before)
    other = load_model(folder, dropout=0.0)
    run(model, tmp_path / "asked", dropout=0.0)
    run(other, tmp_path / "own")
    assert same(model.state_dict(), other.state_dict())
    assert before == [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)]


def test_bfloat16_is_near(model: ColBERT, folder: Path, tmp_path: Path) -> None:
    other = load_model(folder, dropout=0.0)
    run(model, tmp_path / "float32")
    run(other, tmp_path / "bfloat16", dtype="bfloat16")
    assert not same(model.state_dict(), other.state_dict())
    left, right = model.encode_queries("why blue")[0], other.encode_queries("why blue")[0]
    assert (left * right).sum(1).min() > 0.98


def test_tensorboard(model: ColBERT, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    run(model, tmp_path / "run", tensorboard=True, logging_steps=1)
    assert list((tmp_path / "run" / "runs").rglob("events.*"))


def test_what_does_not_fit(model: ColBERT, tmp_path: Path) -> None:
    output = tmp_path / "run"
    for options, message in (
        ({"batch_size": 25}, "batch_size: 25, but there are 24 examples"),
        ({"max_steps": None, "epochs": 0.1}, "epochs: 0.1 of 6 steps is not one step"),
        ({"matryoshka": (16,)}, "matryoshka: want less than the model's 16, got 16"),
        ({"frozen": ("encoder.*",)}, r"frozen: 'encoder.\*' matches no parameter"),
        ({"frozen": ("*",)}, "leaves nothing to train"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, output, **options)
    with (
        mock.patch.object(trainer, "processes", return_value=3),
        pytest.raises(ValueError, match="batch_size: want a multiple of the 3 processes, got 4"),
    ):
        run(model, output)
    with pytest.raises(ValueError, match="4 documents; want 3"):  # a batch that agrees in itself
        train(
            model,
            [*EXAMPLES[:1], *make_examples(4, n=4)],
            tmp_path / "other",
            TrainingConfig(batch_size=1, max_steps=5),
            progress=False,
        )
    output.mkdir(exist_ok=True)
    (output / "mine").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        run(model, output)


@pytest.mark.parametrize(
    ("found", "wanted", "good"),
    [
        ("cuda:0", "cuda:0", True),
        ("cpu", "cpu", True),
        ("mps:0", "mps", True),
        ("cuda:1", "cuda:0", False),
        ("cuda:0", "cuda:1", False),
        ("cpu", "cuda:0", False),
    ],
)
def test_a_model_is_not_moved(found: str, wanted: str, good: bool) -> None:
    with nullcontext() if good else pytest.raises(ValueError, match=f"^model: it is on {found}"):
        trainer._check_device(torch.device(found), torch.device(wanted))


def test_a_loss_that_is_not_finite(model: ColBERT, tmp_path: Path) -> None:
    with torch.no_grad():
        model.projection.dense_layers[0].linear.weight.fill_(torch.nan)
    with pytest.raises((FloatingPointError, ValueError), match="finite"):
        run(model, tmp_path / "run")
