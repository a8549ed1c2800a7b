"""What every kernel promises about its arguments and results, whatever it computes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_fast.kernels import ops
from support import (
    Collection,
    empty_filled_with,
    every_isa,
    make_collection,
    make_trellis_collection,
    misaligned,
    noncontiguous,
    same_bits,
    use_isa,
    use_threads,
)

Call = tuple[Callable[..., Any], dict[str, Any]]


def make_calls(data: Collection) -> dict[str, Call]:
    """A valid call of every kernel: the function and its arguments by name."""
    d = data._asdict()
    num_centroids, n_docs = len(data.centroids), len(data.doclens)
    scores = ops.centroid_scores(data.query, data.centroids)
    lists = ops.build_lists(data.codes, data.doclens, num_centroids)
    vectors = {name: d[name] for name in ("codes", "residuals", "centroids", "weights")}
    fused = {"query": data.query, "doclens": data.doclens, **vectors}
    exact = {"query": data.query, "documents": data.embeddings, "doclens": data.doclens}
    candidates = np.arange(0, n_docs, 2, dtype=np.int32)
    approximate = {"scores": scores, "candidates": candidates}
    approximate |= {"codes": data.codes, "doclens": data.doclens}
    lists_of = {"codes": data.codes, "doclens": data.doclens, "num_centroids": num_centroids}
    clusters = {"points": data.embeddings, "codes": data.codes, "num_centroids": num_centroids}
    int8 = {"precision": "int8", "inverse_norms": data.inverse_norms}
    batch = np.stack([data.query, -data.query])
    own = {"query": batch, "documents_per_query": n_docs // 2}
    argmax = ops.maxsim(**{**exact, **own}, return_argmax=True)[1]
    grad = np.random.default_rng(5).standard_normal(argmax.shape[:2], np.float32)
    met = {"doclens": data.doclens, "argmax": argmax, "grad": grad}
    cells = np.array([1, 0, 2], np.int32)
    buckets = ops.unpack_residuals(data.residuals, 2)
    trellis = make_trellis_collection(
        np.random.default_rng(9),
        doclens=data.doclens,
        dim=data.query.shape[1],
        num_centroids=num_centroids,
    )._asdict()
    coded = {name: trellis[name] for name in (*vectors, "scales")}
    fused_trellis = {"query": data.query, "doclens": data.doclens, **coded}
    trellis_int8 = {"precision": "int8", "inverse_norms": trellis["inverse_norms"]}
    to_code = {name: trellis[name] for name in ("embeddings", "centroids", "weights")}
    return {
        "pack_residuals": (ops.pack_residuals, {"buckets": buckets, "nbits": 2}),
        "unpack_residuals": (ops.unpack_residuals, {"packed": data.residuals, "nbits": 2}),
        "compress": (ops.compress, {k: d[k] for k in ("embeddings", "centroids", "cutoffs")}),
        "compress_trellis": (ops.compress_trellis, {**to_code, "nbits": 2}),
        "decompress": (ops.decompress, vectors),
        "decompress trellis": (ops.decompress, coded),
        "inverse_norms": (ops.inverse_norms, vectors),
        "inverse_norms trellis": (ops.inverse_norms, coded),
        "residual_maxsim": (ops.residual_maxsim, fused),
        "residual_maxsim int8": (ops.residual_maxsim, fused | int8),
        "residual_maxsim trellis": (ops.residual_maxsim, fused_trellis),
        "residual_maxsim trellis int8": (ops.residual_maxsim, fused_trellis | trellis_int8),
        "maxsim": (ops.maxsim, exact),
        "maxsim argmax": (ops.maxsim, {**exact, "query": batch, "return_argmax": True}),
        "maxsim own": (ops.maxsim, {**exact, **own}),
        "maxsim_grad_query": (ops.maxsim_grad_query, {"documents": data.embeddings, **met}),
        "maxsim_grad_documents": (ops.maxsim_grad_documents, {"query": batch, **met}),
        "centroid_scores": (
            ops.centroid_scores,
            {"query": data.query, "centroids": data.centroids},
        ),
        "top_centroids": (ops.top_centroids, {"scores": scores, "nprobe": 3}),
        "pack_codes": (ops.pack_codes, {"codes": data.codes, "bits": 9}),
        "unpack_codes": (
            ops.unpack_codes,
            {"packed": ops.pack_codes(data.codes, 9), "bits": 9, "first": 2, "count": 5},
        ),
        "build_lists": (ops.build_lists, lists_of),
        "read_list": (ops.read_list, {"lists": lists, "centroid": 1}),
        "gather_documents": (
            ops.gather_documents,
            {"lists": lists, "cells": cells, "n_docs": n_docs},
        ),
        "approximate_maxsim": (ops.approximate_maxsim, {**approximate, "threshold": 0.3}),
        "top_k": (ops.top_k, {"scores": np.ascontiguousarray(scores[:, 0]), "k": 5}),
        "assign": (ops.assign, {"points": data.embeddings, "centroids": data.centroids}),
        "accumulate": (ops.accumulate, clusters),
    }


SMALL = make_collection(np.random.default_rng(7), nq=17, dim=32)
CALLS = make_calls(SMALL)
every_kernel = pytest.mark.parametrize("name", CALLS)
ARRAYS = [
    (name, argument)
    for name, (_, arguments) in CALLS.items()
    for argument, value in arguments.items()
    if isinstance(value, np.ndarray)
]
every_array = pytest.mark.parametrize(("name", "argument"), ARRAYS)


def changed(name: str, change: Callable[[np.ndarray], Any]) -> Call:
    """The call with ``change`` made to every array, those of inverted lists too."""
    function, arguments = CALLS[name]

    def apply(value: Any) -> Any:
        if isinstance(value, ops.InvertedLists):
            return ops.InvertedLists(*map(change, value))
        return change(value) if isinstance(value, np.ndarray) else value

    return function, {key: apply(value) for key, value in arguments.items()}


@every_isa
@every_kernel
def test_every_isa_gives_the_same_bits(name: str) -> None:
    function, arguments = CALLS[name]
    ours = function(**arguments)
    with use_isa("scalar"):
        assert same_bits(ours, function(**arguments))


LARGE = make_calls(
    make_collection(np.random.default_rng(8), nq=33, dim=24, num_centroids=50, doclens=[0, 9] * 400)
)


@every_isa
@every_kernel
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    function, arguments = LARGE[name]
    with use_threads(1):
        alone = function(**arguments)
    for threads in (2, 5):
        with use_threads(threads):
            assert same_bits(function(**arguments), alone)


@every_isa
@every_kernel
def test_every_element_of_the_output_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments = CALLS[name]
    results = []
    for byte in (0x00, 0xFF):  # as integers 0 and -1, as floats 0 and NaN
        monkeypatch.setattr(np, "empty", empty_filled_with(byte))
        results.append(function(**arguments))
    assert same_bits(*results)


@every_isa
@every_kernel
def test_arguments_are_not_changed(name: str) -> None:
    function, arguments = changed(name, np.copy)
    function(**arguments)
    for key, value in arguments.items():
        if isinstance(value, (np.ndarray, tuple)):
            assert same_bits(value, CALLS[name][1][key]), key


@every_isa
@every_kernel
def test_read_only_memory_maps(name: str, tmp_path: Path) -> None:
    def on_disk(array: np.ndarray) -> np.ndarray:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")

    function, arguments = changed(name, on_disk)
    assert same_bits(function(**arguments), function(**CALLS[name][1]))


@every_array
def test_misaligned_arrays_are_refused(name: str, argument: str) -> None:
    function, arguments = CALLS[name]
    array = arguments[argument]
    if array.dtype.itemsize == 1:
        pytest.skip("bytes are always aligned")
    with pytest.raises(ValueError, match=rf"{argument}.*aligned"):
        function(**{**arguments, argument: misaligned(array)})


@every_array
def test_strided_arrays_are_refused(name: str, argument: str) -> None:
    function, arguments = CALLS[name]
    strided = noncontiguous(arguments[argument])
    with pytest.raises(ValueError, match=rf"{argument}.*contiguous"):
        function(**{**arguments, argument: strided})


@every_array
def test_wrong_dtypes_are_refused(name: str, argument: str) -> None:
    function, arguments = CALLS[name]
    array = arguments[argument]
    wrong = {"f": np.float64, "i": np.int64, "u": np.int16}[array.dtype.kind]
    swapped = array.astype(array.dtype.newbyteorder()) if array.dtype.itemsize > 1 else None
    for other in (array.astype(wrong), array.tolist(), None, swapped):
        if other is None and argument in ("inverse_norms", "scales"):
            continue
        with pytest.raises(TypeError, match=argument):
            function(**{**arguments, argument: other})


@every_array
def test_wrong_number_of_dimensions_is_refused(name: str, argument: str) -> None:
    function, arguments = CALLS[name]
    with pytest.raises(ValueError, match=argument):
        function(**{**arguments, argument: arguments[argument][None, None]})


@every_kernel
def test_torch_in_torch_out(name: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is an extra")
    expected = CALLS[name][0](**CALLS[name][1])
    function, arguments = changed(name, torch.from_numpy)
    results = function(**arguments)
    # Inverted lists are bytes for the search; they and what is read from them stay in numpy.
    kind = np.ndarray if "list" in name or name == "gather_documents" else torch.Tensor
    for result in results if isinstance(results, tuple) else (results,):
        assert isinstance(result, kind)
    assert same_bits(tuple(results), tuple(expected))


@every_array
def test_torch_strides_and_dtypes_are_refused(name: str, argument: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is an extra")
    function, arguments = changed(name, torch.from_numpy)
    tensor = arguments[argument]
    strided = torch.from_numpy(np.repeat(np.asarray(tensor), 2, axis=-1))[..., ::2]
    with pytest.raises(ValueError, match=rf"{argument}.*a strided tensor: pass \.contiguous\(\)"):
        function(**{**arguments, argument: strided})
    with pytest.raises(TypeError, match=rf"{argument}` must be .*, got float64"):
        function(**{**arguments, argument: tensor.double()})


@pytest.mark.parametrize(
    "name", ["maxsim", "residual_maxsim", "decompress", "assign", "accumulate"]
)
def test_arguments_are_not_copied(name: str) -> None:
    function, arguments = LARGE[name]
    size = sum(value.nbytes for value in arguments.values() if isinstance(value, np.ndarray))
    results = function(**arguments)
    results = results if isinstance(results, tuple) else (results,)
    tracemalloc.start()
    function(**arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(result.nbytes for result in results) + size // 4


@pytest.mark.parametrize("dim", [4, 12, 1032])
def test_dimensions_that_kernels_do_not_have(dim: int) -> None:
    vectors = np.ones((3, dim), np.float32)
    doclens = np.array([3], np.int32)
    cutoffs, weights = np.zeros(3, np.float32), np.zeros(16, np.float32)
    met = np.zeros((1, 1, 3), np.int32), np.ones((1, 1), np.float32)
    for call in (
        lambda: ops.maxsim(vectors, vectors, doclens),
        lambda: ops.maxsim_grad_query(vectors, doclens, *met),
        lambda: ops.maxsim_grad_documents(vectors[None], doclens, *met),
        lambda: ops.compress(vectors, vectors, cutoffs),
        lambda: ops.compress_trellis(vectors, vectors, weights, 2),
        lambda: ops.assign(vectors, vectors),
        lambda: ops.centroid_scores(vectors, vectors),
    ):
        with pytest.raises(ValueError, match=rf"{dim}"):
            call()


@every_isa
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_do_no_harm(value: float) -> None:
    # What they score is undefined; a code that is no centroid would be read out of bounds later.
    points = SMALL.embeddings.copy()
    points[3] = value
    for codes in (
        ops.assign(points, SMALL.centroids)[0],
        ops.compress(points, SMALL.centroids, SMALL.cutoffs)[0],
        ops.compress_trellis(points, SMALL.centroids, SMALL.weights, 2)[0],
    ):
        assert ((codes >= 0) & (codes < len(SMALL.centroids))).all()
