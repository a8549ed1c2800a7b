"""The codecs: where the buckets lie, encode and decode as the reference, files read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colbert_fast.compress.codec import (
    NBITS,
    Float16Codec,
    ResidualCodec,
    check_dim,
    check_nbits,
    open_codec,
)
from colbert_fast.compress.levels import lloyd_max
from colbert_fast.errors import IndexFormatError
from colbert_fast.kernels import reference
from colbert_fast.storage.manifest import CodecName
from colbert_fast.storage.segments import write_npy
from synthetic import clustered, unit


@pytest.fixture
def points(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate(clustered(rng, 300))


@pytest.fixture
def centroids(points: np.ndarray) -> np.ndarray:
    return points[:32].copy()


@pytest.mark.parametrize("nbits", NBITS)
def test_plaid_buckets_are_the_quantiles_of_all_residual_components(
    points: np.ndarray, centroids: np.ndarray, nbits: int
) -> None:
    codec = ResidualCodec.fit(centroids, points, nbits=nbits, name="plaid")
    assert codec.nbits == nbits
    rounded = centroids.astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(codec.centroids, rounded)
    nearest = (points.astype(np.float64) @ rounded.T).argmax(axis=1)
    residuals = (points - rounded[nearest]).ravel()
    levels = 2**nbits
    expected = np.quantile(residuals, np.arange(1, levels) / levels)
    np.testing.assert_allclose(codec.cutoffs, expected, atol=1e-6)
    expected = np.quantile(residuals, (np.arange(levels) + 0.5) / levels)
    np.testing.assert_allclose(codec.weights, expected, atol=1e-6)
    assert (codec.weights[:-1] <= codec.cutoffs).all()
    assert (codec.cutoffs <= codec.weights[1:]).all()


def test_lloyd_max_of_the_normal_distribution(rng: np.random.Generator) -> None:
    values = np.sort(rng.standard_normal(1_000_000).astype(np.float32))
    cutoffs, weights = lloyd_max(values, 4)
    # J. Max, "Quantizing for minimum distortion" (1960), table I, four levels.
    np.testing.assert_allclose(cutoffs, [-0.9816, 0, 0.9816], atol=0.01)
    np.testing.assert_allclose(weights, [-1.510, -0.4528, 0.4528, 1.510], atol=0.01)


def test_lloyd_max_of_repeated_values() -> None:
    values = np.repeat(np.float32([-1, 2]), 50)
    cutoffs, weights = lloyd_max(values, 16)
    assert (np.diff(weights) >= 0).all()
    assert (np.diff(cutoffs) >= 0).all()
    decoded = weights[np.searchsorted(cutoffs, values)]
    np.testing.assert_allclose(decoded, values, atol=1e-6)


@pytest.mark.parametrize("nbits", NBITS)
def test_the_default_codec_errs_less_than_plaid(
    points: np.ndarray, centroids: np.ndarray, nbits: int
) -> None:
    errors = []
    for name in ("default", "plaid"):
        codec = ResidualCodec.fit(centroids, points, nbits=nbits, name=name)
        assert codec.name == name
        errors.append(np.square(codec.decode(codec.encode(points)) - points).sum())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("codec_name", ["default", "plaid"])
def test_encode_and_decode_follow_the_reference(
    points: np.ndarray, centroids: np.ndarray, nbits: int, dtype: type, codec_name: CodecName
) -> None:
    codec = ResidualCodec.fit(centroids, points, nbits=nbits, name=codec_name)
    points = points.astype(dtype)
    columns = codec.encode(points)
    codes, _ = reference.assign(points, codec.centroids)
    np.testing.assert_array_equal(columns["codes"], codes)
    if codec.cutoffs is not None:
        _, residuals = reference.compress(points, codec.centroids, codec.cutoffs)
        # A component that lies on a cutoff to within rounding may go either way.
        assert (columns["residuals"] != residuals).mean() < 1e-3
    assert columns.keys() == codec.columns().keys()
    for name, column in codec.columns().items():
        assert columns[name].dtype == column.dtype
        assert columns[name].shape == (len(points), *column.row)
    decoded = codec.decode(columns)
    vectors = (columns["codes"], columns["residuals"], codec.centroids, codec.weights)
    scales = columns.get("scales")
    assert (scales is None) == (codec_name == "plaid")
    expected = reference.decompress(*vectors, scales=scales)
    np.testing.assert_allclose(decoded, expected, atol=1e-6)
    norms = reference.inverse_norms(*vectors, scales=scales)
    if "inverse_norms" in columns:
        assert np.abs(columns["inverse_norms"] - norms.astype(int)).max() <= 1
    else:  # all so near to 1 that search does without
        assert codec_name == "default"
        assert nbits >= 4
        assert np.abs(reference.decode_inverse_norms(norms) - 1).max() < 0.1
    cosine = (decoded * points).sum(axis=1)
    assert cosine.mean() > {1: 0.7, 2: 0.85, 3: 0.95, 4: 0.98, 8: 0.999}[nbits]


def test_more_bits_are_closer(points: np.ndarray, centroids: np.ndarray) -> None:
    errors = []
    for nbits in NBITS:
        codec = ResidualCodec.fit(centroids, points, nbits=nbits)
        errors.append(np.abs(codec.decode(codec.encode(points)) - points).mean())
    assert errors == sorted(errors, reverse=True)


def test_residuals_that_are_all_alike(rng: np.random.Generator) -> None:
    points = unit(rng.standard_normal((4, 16)))
    codec = ResidualCodec.fit(points, points, nbits=2)
    # Half a step of the centroids' bytes, and what making a unit vector of them moves.
    np.testing.assert_allclose(codec.decode(codec.encode(points)), points, atol=6e-3)
    codec = ResidualCodec.fit(points, points, nbits=2, name="plaid")
    np.testing.assert_allclose(codec.decode(codec.encode(points)), points, atol=2e-3)


def test_float16_keeps_the_vectors(points: np.ndarray, centroids: np.ndarray) -> None:
    codec = Float16Codec.fit(centroids)
    columns = codec.encode(points)
    np.testing.assert_array_equal(columns["embeddings"], points.astype(np.float16))
    np.testing.assert_array_equal(codec.decode(columns), points.astype(np.float16))
    expected, _ = reference.assign(points, codec.centroids)
    np.testing.assert_array_equal(columns["codes"], expected)
    assert codec.nbits == 16


@pytest.mark.parametrize(
    ("num_centroids", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 16, 16), (65537, 17)]
)
def test_codes_are_as_narrow_as_the_centroids_allow(num_centroids: int, bits: int) -> None:
    codec = Float16Codec(np.zeros((num_centroids, 8), np.float32))
    assert codec.columns()["codes"].bits == bits
    assert codec.columns(1)["codes"].bits == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_few_small_centroids_are_read_in_their_own_type(tmp_path: Path, dtype: type) -> None:
    """Files smaller than their header, of ours in float16 and of other libraries' in float32."""
    centroids = unit(np.random.default_rng(0).normal(size=(1, 8))).astype(dtype).astype(np.float32)
    ResidualCodec(centroids, np.zeros(2, np.float32), 1, np.zeros(1, np.float32)).save(tmp_path)
    opened = open_codec(tmp_path, "plaid", nbits=1, dim=8, num_centroids=1)
    np.testing.assert_array_equal(opened.centroids, centroids)


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("codec_name", ["default", "plaid"])
def test_saved_files_give_the_same_codec(
    tmp_path: Path, points: np.ndarray, centroids: np.ndarray, nbits: int, codec_name: CodecName
) -> None:
    codec = ResidualCodec.fit(centroids, points, nbits=nbits, name=codec_name)
    codec.save(tmp_path)
    own = {"default": "centroid_exponents.npy", "plaid": "cutoffs.npy"}[codec_name]
    saved = {each.name for each in tmp_path.iterdir()}
    assert saved == {"centroids.npy", "weights.npy", own}
    opened = open_codec(tmp_path, codec_name, nbits=nbits, dim=64, num_centroids=32)
    assert isinstance(opened, ResidualCodec)
    assert opened.name == codec_name
    for name in ("centroids", "cutoffs", "weights"):
        np.testing.assert_array_equal(getattr(opened, name), getattr(codec, name))
    before, after = codec.encode(points), opened.encode(points)
    for name in codec.columns():
        np.testing.assert_array_equal(before[name], after[name])


def test_saved_float16_codec(tmp_path: Path, centroids: np.ndarray) -> None:
    codec = Float16Codec.fit(centroids)
    codec.save(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["centroids.npy"]
    opened = open_codec(tmp_path, "float16", nbits=16, dim=64, num_centroids=32)
    assert isinstance(opened, Float16Codec)
    np.testing.assert_array_equal(opened.centroids, codec.centroids)


def test_opening_checks_the_files(
    tmp_path: Path, points: np.ndarray, centroids: np.ndarray
) -> None:
    ResidualCodec.fit(centroids, points, nbits=2, name="plaid").save(tmp_path)
    with pytest.raises(IndexFormatError, match=r"centroids\.npy: not an \.npy file of float16"):
        open_codec(tmp_path, "plaid", nbits=2, dim=64, num_centroids=33)
    with pytest.raises(IndexFormatError, match=r"cutoffs\.npy: not an \.npy file of float32"):
        open_codec(tmp_path, "plaid", nbits=4, dim=64, num_centroids=32)
    with pytest.raises(IndexFormatError, match="nbits 5 with dim 64"):
        open_codec(tmp_path, "plaid", nbits=5, dim=64, num_centroids=32)
    (tmp_path / "centroids.npy").unlink()
    write_npy(tmp_path / "centroids.npy", np.full((32, 64), np.nan, np.float16))
    with pytest.raises(IndexFormatError, match=r"centroids\.npy: holds values that are not finite"):
        open_codec(tmp_path, "plaid", nbits=2, dim=64, num_centroids=32)


@pytest.mark.parametrize("name", ["cutoffs", "weights"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_opening_checks_the_buckets(
    tmp_path: Path, points: np.ndarray, centroids: np.ndarray, name: str, bad: float
) -> None:
    codec = ResidualCodec.fit(centroids, points, nbits=2, name="plaid")
    codec.save(tmp_path)
    values = getattr(codec, name).copy()
    values[-1] = bad
    (tmp_path / f"{name}.npy").unlink()
    write_npy(tmp_path / f"{name}.npy", values)
    with pytest.raises(IndexFormatError, match=rf"{name}\.npy: must be finite and ascend"):
        open_codec(tmp_path, "plaid", nbits=2, dim=64, num_centroids=32)


def test_opening_checks_how_many_weights_there_are(
    tmp_path: Path, points: np.ndarray, centroids: np.ndarray
) -> None:
    ResidualCodec.fit(centroids, points, nbits=8).save(tmp_path)
    with pytest.raises(IndexFormatError, match=r"weights\.npy: not an \.npy file of float32"):
        open_codec(tmp_path, "default", nbits=2, dim=64, num_centroids=32)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_opening_checks_the_trellis(
    tmp_path: Path, points: np.ndarray, centroids: np.ndarray, bad: float
) -> None:
    codec = ResidualCodec.fit(centroids, points, nbits=2)
    codec.save(tmp_path)
    (tmp_path / "weights.npy").unlink()
    write_npy(tmp_path / "weights.npy", np.append(codec.weights[:-1], np.float32(bad)))
    with pytest.raises(IndexFormatError, match=r"weights\.npy: holds values that are not finite"):
        open_codec(tmp_path, "default", nbits=2, dim=64, num_centroids=32)


def test_bits_and_dims_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"nbits must be one of \(1, 2, 3, 4, 8\), got 5"):
        check_nbits(5)
    check_nbits(3)
    for dim in (0, 4, 100, 1032):
        with pytest.raises(ValueError, match=rf"dim must be a multiple of 8 .* got {dim}; vectors"):
            check_dim(dim)
    check_dim(1024)
