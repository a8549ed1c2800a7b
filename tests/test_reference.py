"""The reference itself: hand-worked examples and definitions written a second way."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from colbert_fast.kernels import ops, reference
from support import NBITS, make_collection


def test_every_kernel_has_a_twin_with_the_same_arguments() -> None:
    kernels = {
        name: function
        for name, function in vars(ops).items()
        if inspect.isfunction(function) and function.__module__ == ops.__name__
    }
    for name in [name for name in kernels if not name.startswith("_")]:
        ours = inspect.signature(kernels[name]).parameters
        twin = inspect.signature(getattr(reference, name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in twin.values()
        ], name
    assert ops.InvertedLists._fields == reference.InvertedLists._fields


def test_bit_order_is_that_of_plaid() -> None:
    row = np.array([[1, 0, 3, 2, 0, 0, 0, 0]], np.uint8)
    assert reference.pack_residuals(row, 2).tolist() == [[0x8D, 0x00]]


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_bit_order_by_packbits(nbits: int, rng: np.random.Generator) -> None:
    buckets = rng.integers(0, 2**nbits, (6, 24), dtype=np.uint8)
    # Reversing each value's bits and writing it most significant bit first is the same stream.
    little = np.unpackbits(buckets[:, :, None], axis=2, bitorder="little")[:, :, :nbits]
    packed = np.packbits(little.reshape(6, -1), axis=1)
    assert np.array_equal(reference.pack_residuals(buckets, nbits), packed)


def test_bit_order_of_three_bits(rng: np.random.Generator) -> None:
    dim = 48
    buckets = rng.integers(0, 8, (3, dim), dtype=np.uint8)
    expected = np.zeros((3, dim * 3 // 8), np.uint8)
    for row, values in enumerate(buckets.tolist()):
        for d, value in enumerate(values):
            i, s = divmod(d, 4)
            expected[row, i] |= (value & 1) << (7 - 2 * s) | (value >> 1 & 1) << (6 - 2 * s)
            high = dim // 4 + i % (dim // 8)
            expected[row, high] |= (value >> 2) << (7 - (2 * s + i // (dim // 8)))
    assert np.array_equal(reference.pack_residuals(buckets, 3), expected)
    assert np.array_equal(
        reference.pack_residuals(buckets & 3, 3)[:, : dim // 4],
        reference.pack_residuals(buckets & 3, 2),
    )


@pytest.mark.parametrize("nbits", NBITS)
def test_unpack_inverts_pack(nbits: int, rng: np.random.Generator) -> None:
    buckets = rng.integers(0, 2**nbits, (5, 136), dtype=np.uint8)
    packed = reference.pack_residuals(buckets, nbits)
    assert packed.shape == (5, 136 * nbits // 8)
    assert np.array_equal(reference.unpack_residuals(packed, nbits), buckets)


def test_a_value_on_a_cutoff_goes_below_and_a_tie_to_the_lowest_centroid() -> None:
    centroids = np.zeros((3, 8), np.float32)
    centroids[1:, 0] = 1
    cutoffs = np.array([-0.5, 0, 0.5], np.float32)
    point = np.array([[1, 0.5, 0.51, -0.5, -0.51, 0, 0.1, -0.1]], np.float32)
    codes, residuals = reference.compress(point, centroids, cutoffs)
    assert codes.tolist() == [1]
    assert reference.unpack_residuals(residuals, 2).tolist() == [[1, 2, 3, 0, 0, 1, 2, 1]]


def test_decompress_gives_unit_vectors_and_keeps_zero_vectors() -> None:
    centroids = np.zeros((2, 8), np.float32)
    centroids[1] = 3
    weights = np.array([0, 1], np.float32)
    vectors = reference.decompress(
        np.array([0, 1, 0]), np.array([[0], [0], [255]], np.uint8), centroids, weights
    )
    assert vectors[0].tolist() == [0] * 8
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, rtol=1e-6)


def test_inverse_norm_bytes_cover_half_to_two() -> None:
    assert reference.decode_inverse_norms(np.array([0, 255], np.uint8)).tolist() == [0.5, 2]
    centroids = np.array([[0.0], [0.1], [1.0], [9.0]], np.float32) * np.ones(8, np.float32)
    weights = np.zeros(2, np.float32)
    found = reference.inverse_norms(np.arange(4), np.zeros((4, 1), np.uint8), centroids, weights)
    exact = 1 / np.linalg.norm(centroids[2])
    assert found[[0, 1, 3]].tolist() == [255, 255, 0]
    assert abs(np.log2(reference.decode_inverse_norms(found)[2] / max(exact, 0.5))) < 1 / 255


def test_maxsim_by_hand() -> None:
    query = np.eye(2, 8, dtype=np.float32)
    documents = np.zeros((3, 8), np.float32)
    documents[:, :2] = [[1, 2], [3, 2], [5, 6]]
    doclens = np.array([2, 0, 1], np.int32)
    scores, argmax = reference.maxsim(query, documents, doclens, return_argmax=True)
    assert scores.tolist() == [5, -np.inf, 11]
    assert argmax.tolist() == [[1, 0], [-1, -1], [0, 0]]
    batch = reference.maxsim(np.stack([query, 2 * query]), documents, doclens)
    assert batch.tolist() == [[5, -np.inf, 11], [10, -np.inf, 22]]


def test_int8_specification_stays_close_to_float(rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=32, dim=128, nbits=2)
    arguments = (data.query, data.codes, data.residuals, data.doclens, data.centroids, data.weights)
    exact = reference.residual_maxsim(*arguments)
    coarse = reference.residual_maxsim(
        *arguments, precision="int8", inverse_norms=data.inverse_norms
    )
    filled = data.doclens > 0
    assert np.abs(coarse[filled] - exact[filled]).max() < 0.02 * 32
    assert np.array_equal(coarse[~filled], exact[~filled])


def test_lists_by_sets(rng: np.random.Generator) -> None:
    doclens = np.array([0, 3, 1, 0, 7, 2], np.int32)
    codes = rng.integers(0, 5, doclens.sum())
    owner = np.repeat(np.arange(6), doclens)
    lists = reference.build_lists(codes, doclens, 6)
    for cell in range(6):
        expected = sorted({int(d) for d, c in zip(owner, codes, strict=True) if c == cell})
        assert reference.read_list(lists, cell).tolist() == expected
        assert lists.counts[cell] == len(expected)
    assert lists.offsets[-1] == len(lists.data)
    both = reference.gather_documents(lists, np.array([4, 1, 4]), 6)
    assert both.tolist() == sorted(
        {int(d) for d, c in zip(owner, codes, strict=True) if c in (1, 4)}
    )


def test_approximate_maxsim_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.4], [0.3, 0.3]], np.float32)
    codes, doclens = np.array([0, 1, 2, 2]), np.array([2, 1, 0, 1], np.int32)
    candidates = np.array([3, 0, 2], np.int32)
    plain = reference.approximate_maxsim(scores, codes, doclens, candidates)
    np.testing.assert_allclose(plain, [0.6, 1.3, -19998], rtol=1e-6)
    pruned = reference.approximate_maxsim(scores, codes, doclens, candidates, threshold=0.4)
    np.testing.assert_allclose(pruned, [-19998, 1.3, -19998], rtol=1e-6)


def test_top_k_and_top_centroids_prefer_the_lowest_of_equals() -> None:
    values, indices = reference.top_k(np.array([1, 3, 3, 2, 3], np.float32), 4)
    assert indices.tolist() == [1, 2, 4, 3]
    assert values.tolist() == [3, 3, 3, 2]
    assert reference.top_k(np.array([1], np.float32), 9)[1].tolist() == [0]
    assert reference.top_centroids(np.array([[1, 2], [1, 5], [0, 5]], np.float32), 2).tolist() == [
        [0, 1],
        [1, 2],
    ]


def test_plaid_with_every_cell_and_every_document_is_exhaustive(rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=4, dim=32, num_centroids=9)
    index = {
        "centroids": data.centroids,
        "codes": data.codes,
        "doclens": data.doclens,
        "residuals": data.residuals,
        "weights": data.weights,
        "k": 12,
    }
    truth = reference.search(data.query, exhaustive=True, **index)
    everything = {"nprobe": 9, "ndocs": 400, "centroid_score_threshold": None}
    found = reference.search(data.query, **everything, **index)
    assert np.array_equal(found[0], truth[0])
    assert np.array_equal(found[1], truth[1])
    assert (data.doclens[truth[0]] > 0).all()
    narrow = reference.search(data.query, nprobe=1, ndocs=16, **index)
    assert set(narrow[0]) <= set(np.flatnonzero(data.doclens))


def test_search_keeps_to_the_subset(rng: np.random.Generator) -> None:
    data = make_collection(rng, nq=4, dim=32, num_centroids=9)
    subset = np.arange(len(data.doclens)) % 2 == 0
    documents, scores = reference.search(
        data.query,
        centroids=data.centroids,
        codes=data.codes,
        doclens=data.doclens,
        embeddings=data.embeddings,
        exhaustive=True,
        subset=subset,
        k=100,
    )
    assert sorted(documents) == np.flatnonzero(subset & (data.doclens > 0)).tolist()
    assert (np.diff(scores) <= 0).all()


def test_accumulate_and_assign_by_hand() -> None:
    points = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    codes, best = reference.assign(points, np.array([[1, 0], [0, 1], [1, 0]], np.float32))
    assert codes.tolist() == [0, 1, 0]
    assert best.tolist() == [1, 2, 3]
    sums, counts = reference.accumulate(points, codes, 3)
    assert sums.tolist() == [[4, 0], [0, 2], [0, 0]]
    assert counts.tolist() == [2, 1, 0]
