"""Groups of queries over the same documents: what is in them, and that they stay together."""

from __future__ import annotations

import pytest

from colbert_fast.training.groups import sample_groups
from colbert_fast.training.tuples import NWay

NAMES = [f"d{n}" for n in range(12)]
# Each document's neighbours, itself first as a search finds it.
NEIGHBOURS = [
    NWay(name, tuple(NAMES[(n + step) % 12] for step in range(6))) for n, name in enumerate(NAMES)
]
POSITIVES = {f"q{n}-{copy}": {f"d{n}": 1} for n in range(12) for copy in range(3)}


def groups_of(size, **options):
    tuples = list(sample_groups(NEIGHBOURS, POSITIVES, group_size=size, **options))
    assert len(tuples) % size == 0
    return [tuples[start : start + size] for start in range(0, len(tuples), size)]


def test_a_group_shares_its_documents_and_each_query_has_its_positive_first():
    groups = groups_of(4, nway=3, depth=5)
    assert len(groups) == 12
    for group in groups:
        assert len({frozenset(item.document_ids) for item in group}) == 1
        assert len({item.query_id for item in group}) == 4
        for item in group:
            assert item.document_ids[0] in POSITIVES[item.query_id]
            assert len(set(item.document_ids)) == 3
            assert item.scores is None


def test_members_are_a_document_and_its_nearest():
    for group in groups_of(2, nway=3, depth=2):
        numbers = sorted(int(name[1:]) for name in group[0].document_ids)
        assert any(
            numbers == sorted((first + step) % 12 for step in range(3)) for first in range(12)
        )


def test_the_best_grade_is_first():
    positives = {"q": {"d0": 1, "d1": 2}, "r": {"d1": 1}}
    tuples = list(sample_groups(NEIGHBOURS, positives, nway=6, group_size=2, depth=5))
    both = [item for item in tuples if {"d0", "d1"} <= {*item.document_ids}]
    assert {item.query_id for item in both} == {"q", "r"}
    assert {item.document_ids[0] for item in both} == {"d1"}


def test_grade_0_is_no_positive():
    positives = {name: {**judged, "d0": 0} for name, judged in POSITIVES.items() if name[1] != "0"}
    tuples = list(sample_groups(NEIGHBOURS, positives, nway=3, group_size=2))
    assert all(positives[item.query_id][item.document_ids[0]] == 1 for item in tuples)


def test_the_seed_decides():
    assert groups_of(4, nway=3, seed=1) == groups_of(4, nway=3, seed=1)
    assert groups_of(4, nway=3, seed=1) != groups_of(4, nway=3, seed=2)
    assert len(groups_of(4, nway=3, groups=5)) == 5


def test_fewer_groups_than_wanted_are_told(caplog):
    positives = {name: judged for name, judged in POSITIVES.items() if name in ("q0-0", "q1-0")}
    found = list(sample_groups(NEIGHBOURS, positives, nway=6, group_size=2, depth=5, groups=12))
    assert len(found) == 2 * 5  # those that have both d0 and d1 around
    assert "5 groups, not 12: around the other documents" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nway": 1}, "`nway` must be at least 2"),
        ({"group_size": 0}, "`group_size` must be at least 1"),
        ({"groups": -1}, "`groups` must be at least 1"),
        ({"groups": 0}, "`groups` must be at least 1; got 0"),
        ({"nway": 5, "depth": 3}, "`depth` must be at least 4"),
        (
            {"nway": 2, "group_size": 7},
            r"no group: the 2 documents .* by at most 6 queries, not 7 \(36 .* 12 positives",
        ),
        ({"nway": 7}, "no group of 7 documents: the longest ranking gives 6; want more documents"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        list(sample_groups(NEIGHBOURS, POSITIVES, **options))
