"""Evaluation of Dask arrays against that of NumPy arrays."""

import dask
import dask.array as da
import numpy as np
import pytest
from dask.delayed import Delayed

import cyce
import cyce.dask

pytestmark = pytest.mark.usefixtures("synchronous")

CHUNKS = {
    "one chunk": ((12, 30), 1, (12, 30)),
    "positions": ((12, 30), 1, (5, 30)),
    "classes": ((12, 30), 1, (12, 7)),
    "both": ((12, 30), 1, (5, 7)),
    "images": ((3, 9, 4, 5), 1, (2, 4, 3, 5)),
    "classes last": ((3, 4, 20), -1, (1, 3, 6)),
    "one position": ((20,), None, (6,)),
}


def assert_the_same(result, expected, path=""):
    """Assert that two evaluations agree, as nested dicts."""
    if isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            assert_the_same(result[name], value, f"{path}/{name}")
    elif expected is None:
        assert result is None
    else:
        # Quantiles are buckets: a loss at an edge may be on either side of it.
        tolerance = 2**-7 if "quantile" in path else 1e-12
        np.testing.assert_allclose(
            np.asarray(result, float), np.asarray(expected, float), rtol=tolerance, err_msg=path
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_dask", [False, True])
@pytest.mark.parametrize(("shape", "axis", "chunks"), CHUNKS.values(), ids=CHUNKS)
def test_evaluate(rng, shape, axis, chunks, as_dask, weighted):
    logits = rng.standard_normal(shape) * 4
    at = (0 if logits.ndim == 1 else 1) if axis is None else axis
    positions = tuple(np.delete(shape, at))
    target = np.where(
        (rng.random(positions) < 0.2) & (len(positions) > 0), -1, rng.integers(5, size=positions)
    )
    options = {"axis": axis, "ignore_index": -1, "top_k": (1, 2, 7), "n_bins": 5, "temperature": 1.3}
    options["confusion_matrix"] = True
    sample_weight = None
    if weighted:
        options["class_weight"] = rng.random(shape[at])
        sample_weight = rng.integers(0, 3, positions).astype(float)
    expected = cyce.evaluate(logits, target, sample_weight=sample_weight, progress=False, **options)
    if as_dask and positions:
        target = da.from_array(target, chunks=2)
        sample_weight = None if sample_weight is None else da.from_array(sample_weight, chunks=3)
    array = da.from_array(logits, chunks=chunks)
    result = cyce.dask.evaluate(array, target, sample_weight=sample_weight, **options)
    assert isinstance(result, Delayed)
    assert_the_same(result.compute().to_dict(), expected.to_dict())


@pytest.mark.parametrize("chunks", [(5, 30), (5, 7)])
def test_nan(rng, chunks):
    logits = rng.standard_normal((12, 30))
    logits[3, 20] = logits[4, 5] = np.nan
    logits[5, 29] = np.inf
    target = rng.integers(30, size=12)
    expected = cyce.evaluate(logits, target, progress=False)
    result = cyce.dask.evaluate(da.from_array(logits, chunks=chunks), target).compute()
    assert result.nan_positions == expected.nan_positions == 3
    assert result.accuracy == expected.accuracy
    assert result.top_k == expected.top_k
    np.testing.assert_array_equal(result.per_class.n_predicted, expected.per_class.n_predicted)


ARRAYS = {
    "random": lambda: da.random.default_rng(0).standard_normal((10, 8), chunks=(5, 4)),
    "rechunk": lambda: da.random.default_rng(0).standard_normal((10, 8), chunks=(5, 8)).rechunk((5, 4)),
    "slice": lambda: da.random.default_rng(0).standard_normal((20, 8), chunks=(5, 4))[3:13],
    "matmul": lambda: (
        da.ones((10, 3), chunks=(5, 3)) @ da.random.default_rng(0).random((3, 8), chunks=(3, 4))
    ),
    "computed": lambda: da.from_array(np.arange(80.0).reshape(10, 8) % 7, chunks=(5, 4)) * 2 + 1,
    "data": lambda: da.from_array(np.arange(80.0).reshape(10, 8) % 7, chunks=(5, 4)),
    "persisted": lambda: da.random.default_rng(0).standard_normal((10, 8), chunks=(5, 4)).persist(),
    "concatenated": lambda: da.concatenate([da.ones((10, 4), chunks=5), da.zeros((10, 4), chunks=5)], axis=1),
    "delayed": lambda: da.concatenate(
        [da.from_delayed(dask.delayed(np.eye)(10, 4, k), (10, 4), float) for k in (0, -4)], axis=1
    ),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_of_all_origins(array):
    array, target = array(), np.arange(10) % 8
    result = cyce.dask.evaluate(array, target).compute()
    expected = cyce.evaluate(array.compute(), target, progress=False)
    assert_the_same(result.to_dict(), expected.to_dict())


def test_logits_that_change():
    # Every block is another one each time.
    array = da.zeros((10, 8), chunks=(5, 4)).map_blocks(
        lambda block: block + np.random.default_rng().random(block.shape), dtype=float
    )
    with pytest.raises(ValueError, match=r"^logits: are not the same when they are computed a second time"):
        cyce.dask.evaluate(array, np.zeros(10, int)).compute()
    assert cyce.dask.evaluate(array.rechunk((5, 8)), np.zeros(10, int)).compute().n_positions == 10


def test_chunks_of_other_numbers_of_classes():
    array = da.zeros((10, 8), chunks=(5, 8)).map_blocks(lambda block: block[:, :-1], dtype=float)
    with pytest.raises(ValueError, match=r"^logits: a chunk has 7 classes, its Dask array 8; if map_blocks"):
        cyce.dask.evaluate(array, np.zeros(10, int)).compute()


def test_chunks_are_read_again_rather_than_kept(rng):
    # Two tasks for each chunk, of which no one waits for the other's chunk.
    logits, target = rng.standard_normal((6, 8)), rng.integers(8, size=6)
    n_read = []
    array = da.from_array(logits, chunks=(3, 4)).map_blocks(lambda block: n_read.append(1) or block)
    n_read.clear()
    cyce.dask.evaluate(array, target).compute()
    assert len(n_read) == 2 * 4
    n_read.clear()
    cyce.dask.evaluate(array.rechunk((3, 8)), target).compute()
    assert len(n_read) == 4


class TestErrors:
    array = da.zeros((4, 6), chunks=(2, 3))

    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            (
                {"target": np.ones((4, 6))},
                TypeError,
                "^target: must be class indices, got an array of the shape of logits",
            ),
            (
                {"target": da.ones((4, 6))},
                TypeError,
                "^target: must be class indices, got an array of the shape of logits",
            ),
            ({"target": np.zeros(5, int)}, ValueError, "^Expected input batch_size"),
            (
                {"target": np.array([0, 1, 2, 6])},
                IndexError,
                r"^Target 6 is out of bounds\. target\[3\] must",
            ),
            ({"sample_weight": np.array([1, 1, 1, -1])}, ValueError, "^sample_weight: must be 0, or from"),
            (
                {"class_weight": np.ones(3)},
                ValueError,
                "^class_weight: has 3 numbers, must have one for each",
            ),
            (
                {"class_weight": da.ones(6)},
                TypeError,
                "^class_weight: must be in memory; pass class_weight.comp",
            ),
            ({"top_k": (0,)}, ValueError, "^top_k: must be at least 1"),
            ({"temperature": -1}, ValueError, "^temperature: must be a positive"),
            ({"axis": 2}, IndexError, "^Dimension out of range"),
            (
                {"sample_weight": np.ones(3)},
                ValueError,
                "^sample_weight: must have one number for each position",
            ),
        ],
    )
    def test_before_anything_is_computed(self, named, error, message):
        with pytest.raises(error, match=message):
            cyce.dask.evaluate(self.array, **{"target": np.zeros(4, int), **named})

    @pytest.mark.parametrize("chunks", [(2, 6), (2, 3)])
    def test_bad_weights(self, chunks):
        weights = da.from_array(np.array([1, 1, 1, -1]), chunks=3)
        result = cyce.dask.evaluate(self.array.rechunk(chunks), np.zeros(4, int), sample_weight=weights)
        with pytest.raises(ValueError, match=r"^sample_weight: must be 0, or from .* got -1\.0 at \[1\]"):
            result.compute()
