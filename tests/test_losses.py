"""Losses against loops over the papers' formulas, gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")

from colbert_fast.training import losses  # noqa: E402

B, N = 5, 4


@pytest.fixture
def scores(rng: np.random.Generator) -> Any:
    return torch.from_numpy(rng.normal(20, 3, (B, N)))


@pytest.fixture
def teacher(rng: np.random.Generator) -> Any:
    return torch.from_numpy(rng.normal(0, 5, (B, N)))


@pytest.fixture
def all_scores(rng: np.random.Generator) -> Any:
    return torch.from_numpy(rng.normal(20, 3, (B, B * N)))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [power / sum(powers) for power in powers]


def scaled(row: list[float]) -> list[float]:
    return [(x - min(row)) / (max(row) - min(row)) for x in row]


def cross_entropy(positive: float, others: list[float]) -> float:
    return -math.log(softmax([positive, *others])[0])


def assert_is(loss: Any, by_query: list[float]) -> None:
    assert loss.shape == ()
    assert float(loss) == pytest.approx(sum(by_query) / len(by_query), rel=1e-9)


@pytest.mark.parametrize("normalize", ["none", "minmax"])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_kl_divergence(scores: Any, teacher: Any, normalize: Any, temperature: float) -> None:
    by_query = []
    for ours, theirs in zip(scores.tolist(), teacher.tolist(), strict=True):
        if normalize == "minmax":
            ours, theirs = scaled(ours), scaled(theirs)
        q = softmax([x / temperature for x in ours])
        p = softmax([x / temperature for x in theirs])
        by_query.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    loss = losses.kl_divergence(scores, teacher, normalize=normalize, temperature=temperature)
    assert_is(loss, by_query)


def test_kl_divergence_vanishes_where_they_agree(scores: Any) -> None:
    assert float(losses.kl_divergence(scores, scores + 7)) == pytest.approx(0, abs=1e-12)
    stretched = losses.kl_divergence(scores, 3 * scores + 7, normalize="minmax")
    assert float(stretched) == pytest.approx(0, abs=1e-12)


def test_equal_scores_have_a_min_max() -> None:
    equal = torch.full((1, 3), 2.0, requires_grad=True)
    loss = losses.kl_divergence(equal, torch.tensor([[0.0, 1, 2]]), normalize="minmax")
    loss.backward()
    assert equal.grad.isfinite().all()
    assert losses.kl_divergence(equal.detach(), equal, normalize="minmax") == 0


def test_pairwise_cross_entropy(scores: Any) -> None:
    by_query = [
        sum(cross_entropy(positive, [negative]) for negative in negatives) / len(negatives)
        for positive, *negatives in scores.tolist()
    ]
    assert_is(losses.pairwise_cross_entropy(scores), by_query)


def test_margin_mse(scores: Any, teacher: Any) -> None:
    by_query = []
    for s, t in zip(scores.tolist(), teacher.tolist(), strict=True):
        errors = [(s[0] - s[j]) - (t[0] - t[j]) for j in range(1, N)]
        by_query.append(sum(error**2 for error in errors) / len(errors))
    assert_is(losses.margin_mse(scores, teacher), by_query)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_contrastive(all_scores: Any, temperature: float) -> None:
    by_query = []
    for i, row in enumerate((all_scores / temperature).tolist()):
        others = [score for j, score in enumerate(row) if j != i * N]
        by_query.append(cross_entropy(row[i * N], others))
    assert_is(losses.contrastive(all_scores, N, temperature=temperature), by_query)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_in_batch_cross_entropy(all_scores: Any, temperature: float) -> None:
    by_query = []
    for i, row in enumerate((all_scores / temperature).tolist()):
        others = [score for j, score in enumerate(row) if j // N != i]
        by_query.append(cross_entropy(row[i * N], others))
    assert_is(losses.in_batch_cross_entropy(all_scores, N, temperature=temperature), by_query)


@pytest.mark.parametrize("loss", [losses.contrastive, losses.in_batch_cross_entropy])
def test_excluded_documents_do_not_count(all_scores: Any, loss: Callable[..., Any]) -> None:
    excluded = torch.zeros(B, B * N, dtype=torch.bool)
    assert torch.equal(loss(all_scores, N, excluded=excluded), loss(all_scores, N))
    excluded[0, [N, 2 * N + 1]] = excluded[3, 5] = True
    without = all_scores.masked_fill(excluded, -1e9)
    assert float(loss(all_scores, N, excluded=excluded)) == pytest.approx(float(loss(without, N)))


@pytest.mark.parametrize("loss", [losses.contrastive, losses.in_batch_cross_entropy])
def test_processes_share_a_batch(all_scores: Any, loss: Callable[..., Any]) -> None:
    parts = [loss(all_scores[:2], N), loss(all_scores[2:], N, offset=2)]
    together = (2 * parts[0] + 3 * parts[1]) / 5
    torch.testing.assert_close(together, loss(all_scores, N))
    last = loss(all_scores[4:], N, offset=4)
    torch.testing.assert_close(last, loss(all_scores[4:].roll(N, 1), N), rtol=1e-12, atol=0)


def tokens(rng: np.random.Generator, *shape: int) -> Any:
    vectors = torch.from_numpy(rng.standard_normal((*shape, 8)))
    return torch.nn.functional.normalize(vectors, dim=-1)


def xtr_by_hand(query: Any, documents: Any, doclens: list[int], k: int) -> list[list[float]]:
    owners = [document for document, length in enumerate(doclens) for _ in range(length)]
    rows = []
    for tokens_of_query in query.tolist():
        found: list[dict[int, float]] = []  # of each query token: document -> best similarity
        for token in tokens_of_query:
            similarities = [
                (sum(x * y for x, y in zip(token, other, strict=True)), owner)
                for other, owner in zip(documents.tolist(), owners, strict=True)
            ]
            best: dict[int, float] = {}
            for similarity, owner in sorted(similarities, reverse=True)[:k]:
                best.setdefault(owner, similarity)
            found.append(best)
        row = []
        for document in range(len(doclens)):
            met = [best[document] for best in found if document in best]
            row.append(sum(met) / len(met) if met else 0.0)
        rows.append(row)
    return rows


@pytest.mark.parametrize("k", [1, 3, 256])
def test_xtr(rng: np.random.Generator, k: int) -> None:
    doclens = [3, 1, 0, 7, 2, 6]
    query, documents = tokens(rng, 3, 5), tokens(rng, sum(doclens))
    truth = xtr_by_hand(query, documents, doclens, k)
    lengths = torch.tensor(doclens, dtype=torch.int32)
    ours = losses.xtr_scores(query, documents, lengths, k=k)
    torch.testing.assert_close(ours, torch.tensor(truth, dtype=torch.float64))
    by_query = [
        cross_entropy(row[2 * i], [score for j, score in enumerate(row) if j != 2 * i])
        for i, row in enumerate((torch.tensor(truth) * 4).tolist())
    ]
    loss = losses.xtr(query, documents, lengths, 2, k=k, temperature=0.25)
    assert float(loss) == pytest.approx(sum(by_query) / len(by_query), rel=1e-6)


def test_xtr_retrieves_in_float32_under_autocast(rng: np.random.Generator) -> None:
    query, documents = tokens(rng, 2, 3).float(), tokens(rng, 12).float()
    doclens = torch.full((4,), 3)
    with torch.autocast("cpu", torch.bfloat16):
        scores = losses.xtr_scores(query, documents, doclens, k=4)
    assert torch.equal(scores, losses.xtr_scores(query, documents, doclens, k=4))


def of_scores(name: str, **options: Any) -> Callable[..., Any]:
    return lambda *tensors: getattr(losses, name)(*tensors, **options)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (of_scores("kl_divergence"), "taught"),
        (of_scores("kl_divergence", normalize="minmax", temperature=0.3), "taught"),
        (of_scores("margin_mse"), "taught"),
        (of_scores("pairwise_cross_entropy"), "own"),
        (of_scores("contrastive", n=N, temperature=2.0), "all"),
        (of_scores("in_batch_cross_entropy", n=N, temperature=2.0), "all"),
    ],
)
def test_gradients(
    loss: Callable[..., Any], kind: str, scores: Any, teacher: Any, all_scores: Any
) -> None:
    inputs = {"taught": (scores, teacher), "own": (scores,), "all": (all_scores,)}[kind]
    leaf = inputs[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, *inputs[1:]), (leaf,))


def test_gradients_of_xtr(rng: np.random.Generator) -> None:
    query, documents = tokens(rng, 2, 3).requires_grad_(), tokens(rng, 12).requires_grad_()
    doclens = torch.full((4,), 3)
    assert torch.autograd.gradcheck(
        lambda q, d: losses.xtr(q, d, doclens, 2, k=5), (query, documents)
    )


def test_teachers_are_not_taught(scores: Any, teacher: Any) -> None:
    student, theirs = scores.requires_grad_(), teacher.requires_grad_()
    for loss in (losses.kl_divergence, losses.margin_mse):
        loss(student, theirs).backward()
    assert theirs.grad is None
    assert student.grad is not None


def test_teacher_scores_of_another_type(scores: Any, teacher: Any) -> None:
    ours = losses.kl_divergence(scores, teacher.float())
    torch.testing.assert_close(ours, losses.kl_divergence(scores, teacher), rtol=1e-5, atol=0)


ONES = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.kl_divergence(ONES.bfloat16(), ONES), TypeError, "`scores`.*bfloat16"),
        (lambda: losses.kl_divergence(ONES[0], ONES[0]), ValueError, r"`scores`.*\(4,\)"),
        (lambda: losses.pairwise_cross_entropy(ONES[:, :1]), ValueError, r"`scores`.*\(2, 1\)"),
        (lambda: losses.pairwise_cross_entropy(ONES[:0]), ValueError, r"`scores`.*\(0, 4\)"),
        (lambda: losses.margin_mse(ONES, ONES[:1]), ValueError, r"`teacher_scores`.*\(1, 4\)"),
        (lambda: losses.kl_divergence(ONES, ONES, temperature=0), ValueError, "`temperature`.*0"),
        (
            lambda: losses.kl_divergence(ONES, ONES, normalize="max"),  # type: ignore[arg-type]
            ValueError,
            "`normalize`.*'max'",
        ),
        (lambda: losses.contrastive(ONES, 3), ValueError, "`all_scores`.*n=3.*4"),
        (lambda: losses.contrastive(ONES, 2, temperature=-1), ValueError, "`temperature`.*-1"),
        (lambda: losses.in_batch_cross_entropy(ONES, 2, offset=1), ValueError, "`offset`.*1"),
        (lambda: losses.in_batch_cross_entropy(ONES, 2, offset=-1), ValueError, "`offset`.*-1"),
        (
            lambda: losses.xtr(ONES[None], ONES, torch.tensor([1, 1]), 1, k=0),
            ValueError,
            "`k`.*0",
        ),
        (lambda: losses.xtr(ONES[None], ONES, torch.tensor([1, 2]), 1), ValueError, "`doclens`.*3"),
    ],
)
def test_wrong_arguments_are_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
