"""Batches: every row where its document is, whatever the passes; every example once per epoch."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is an extra")
pytest.importorskip("accelerate", reason="accelerate is an extra")

from colbert_fast.model import ColBERT  # noqa: E402
from colbert_fast.training.batches import Batches, Collator, Encoder  # noqa: E402
from training_runs import Example, load_model, make_examples, write_model  # noqa: E402

EXAMPLES = make_examples(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> ColBERT:
    return load_model(folder)


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
@pytest.mark.parametrize("texts", [None, 2])
def test_rows_are_those_of_encode_in_the_order_of_the_examples(
    model: ColBERT, tokens: int, texts: int | None
) -> None:
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=tokens, texts_per_pass=texts).collate(
        EXAMPLES
    )
    for part in (*batch.queries, *batch.documents):
        count, length = part.input_ids.shape
        assert count == 1 or (count * length <= tokens and count <= (texts or count))
    with torch.no_grad():
        queries, rows = Encoder(model)(batch)
    expected = model.encode_documents([text for each in EXAMPLES for text in each.documents])
    assert batch.doclens.tolist() == [len(row) for row in expected]
    assert batch.doclens.dtype == torch.int32
    np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-5)
    asked = model.encode_queries([each.query for each in EXAMPLES])
    np.testing.assert_allclose(queries, np.stack(asked), atol=1e-5)


def test_padding_is_little(model: ColBERT) -> None:
    examples = make_examples(30)
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=100).collate(examples)
    padded = sum(part.input_ids.numel() for part in batch.documents)
    assert padded < 1.1 * sum(int(part.attention_mask.sum()) for part in batch.documents)


def test_padding_of_queries_without_expansion_is_zero(folder: Path) -> None:
    model = ColBERT.from_pretrained(folder, dtype="float32", do_query_expansion=False)
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=60).collate(EXAMPLES)
    with torch.no_grad():
        queries, _ = Encoder(model)(batch)
    for row, expected in zip(
        queries, model.encode_queries([each.query for each in EXAMPLES]), strict=True
    ):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)
        assert (row[len(expected) :] == 0).all()


def test_recomputed_passes_give_the_same_gradients(model: ColBERT) -> None:
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=80, texts_per_pass=3).collate(
        EXAMPLES
    )
    assert len(batch.documents) > 3
    model.train()
    found = []
    for recompute in (False, True):
        model.zero_grad()
        torch.manual_seed(7)
        queries, rows = Encoder(model, recompute=recompute)(batch)
        (queries.square() @ rows.T.cos()).sum().backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        found.append((rows.detach(), torch.random.get_rng_state(), gradients))
    (rows, state, plain), (rows_again, state_again, cached) = found
    assert torch.equal(rows, rows_again)
    assert torch.equal(state, state_again)
    assert len(plain) > 20
    for one, other in zip(plain, cached, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_recomputing_runs_each_pass_twice_and_keeps_no_activations(model: ColBERT) -> None:
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=80).collate(EXAMPLES)
    passes = len(batch.documents) + len(batch.queries)
    model.train()
    kept = {}
    for recompute in (False, True):
        calls: list[int] = []
        hook = model.backbone.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        held = 0

        def pack(tensor: Any) -> Any:
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            queries, rows = Encoder(model, recompute=recompute)(batch)
        kept[recompute] = held
        (queries.sum() + rows.sum()).backward()
        assert len(calls) == passes * (2 if recompute else 1)
        hook.remove()
    assert kept[True] < 0.1 * kept[False]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_epoch_is_a_permutation_shared_out_in_order(processes: int) -> None:
    def of(rank: int) -> list[list[int]]:
        return list(Batches(11, batch_size=4, steps=5, seed=3, rank=rank, processes=processes))

    shares = [of(rank) for rank in range(processes)]
    whole = list(Batches(11, batch_size=4, steps=5, seed=3, rank=0, processes=1))
    assert [list(chain(*step)) for step in zip(*shares, strict=True)] == whole
    assert all(len(step) == 4 // processes for share in shares for step in share)
    for epoch in (whole[0:2], whole[2:4]):
        assert len(set(chain(*epoch))) == 8
    assert set(chain(*whole[0:2])) != set(chain(*whole[2:4]))
    assert len(whole) == 5


def test_examples_that_do_not_go_together(model: ColBERT) -> None:
    def collate(examples: list[Example], **options: Any) -> Any:
        return Collator(model.tokenizer, tokens_per_pass=99, **{"nway": 3, **options}).collate(
            examples
        )

    short = Example("blue", ("sky", "why"))
    with pytest.raises(ValueError, match=r"query 'blue': 2 documents; want 3 \(nway\)"):
        collate([EXAMPLES[0], short])
    with pytest.raises(ValueError, match=r"3 documents; want 2 \(nway\)"):
        collate([EXAMPLES[0]], nway=2)
    with pytest.raises(ValueError, match=r"query 'blue': 2 documents; want at least 3 \(nway\)"):
        collate([short], truncate=True)
    with pytest.raises(ValueError, match=r"query 'blue': no teacher's scores"):
        collate([short], nway=2, needs_scores=True)
    with pytest.raises(ValueError, match=r"query 'blue': 1 scores for 2 documents"):
        collate([short._replace(scores=(1.0,))], nway=2)
    with pytest.raises(ValueError, match=r"query 'blue': want finite scores, got \[1.0, nan\]"):
        collate([short._replace(scores=(1.0, float("nan")))], nway=2)


def test_nway_takes_the_first_documents(model: ColBERT) -> None:
    batch = Collator(
        model.tokenizer, tokens_per_pass=99, nway=2, truncate=True, needs_scores=True
    ).collate(EXAMPLES)
    assert batch.teacher is not None
    assert len(batch.doclens) == 2 * len(EXAMPLES)
    assert torch.equal(batch.teacher, torch.tensor([each.scores[:2] for each in EXAMPLES]))


def test_a_document_of_several_examples_is_encoded_once(model: ColBERT) -> None:
    first, second = EXAMPLES[0], EXAMPLES[1]
    shared = [first, second._replace(documents=(second.documents[0], *first.documents[1:]))]
    batch = Collator(model.tokenizer, nway=3, tokens_per_pass=60).collate(shared)
    distinct = {text for example in shared for text in example.documents}
    assert sum(len(part.input_ids) for part in batch.documents) == len(distinct)
    _, rows = Encoder(model)(batch)
    expected = [row for example in shared for row in model.encode_documents(example.documents)]
    assert batch.doclens.tolist() == [len(row) for row in expected]
    np.testing.assert_allclose(rows.detach().numpy(), np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_groups_stay_together(processes: int) -> None:
    options = {"batch_size": 12, "steps": 6, "seed": 3, "processes": processes, "group_size": 3}
    shares = [list(Batches(40, rank=rank, **options)) for rank in range(processes)]
    steps = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    for step in steps:
        starts = step[::3]
        assert all(start % 3 == 0 for start in starts)
        assert step == [start + each for start in starts for each in range(3)]
    # 13 whole groups make 3 steps of 4 a pass
    assert len(set(chain(*steps[:3]))) == len(set(chain(*steps[3:]))) == 36
    assert steps[:3] != steps[3:]
