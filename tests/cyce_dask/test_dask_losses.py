"""cyce.dask against the same functions of NumPy arrays, in chunks of all kinds."""

import inspect
import pickle

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
from dask.core import flatten, get_dependencies

import cyce
import cyce.dask
import cyce.functional as F
from cyce.sharded import Partial
from stages import one_in

pytestmark = pytest.mark.usefixtures("synchronous")

TOLERANCE = {
    "float16": {"rtol": 2e-3, "atol": 1e-4},
    "bfloat16": {"rtol": 2e-2, "atol": 1e-3},
    "float32": {"rtol": 2e-6, "atol": 1e-6},
    "float64": {"rtol": 1e-13, "atol": 1e-14},
}


def assert_close(result, expected):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    tolerance = TOLERANCE[expected.dtype.name]
    np.testing.assert_allclose(result.astype(float), expected.astype(float), **tolerance)


# Shapes of logits, the axis of the classes, and chunks.
CHUNKS = {
    "one chunk": ((12, 30), 1, (12, 30)),
    "positions": ((12, 30), 1, (5, 30)),
    "classes": ((12, 30), 1, (12, 7)),
    "both": ((12, 30), 1, (5, 7)),
    "one class each": ((3, 12), 1, (2, 1)),
    "uneven": ((12, 30), 1, ((1, 11), (2, 0, 27, 1))),
    "images": ((3, 9, 4, 5), 1, (2, 4, 3, 5)),
    "classes last": ((3, 4, 20), 2, (1, 3, 6)),
    "classes first": ((20, 7), 0, (6, 3)),
    "one position": ((20,), 0, (6,)),
    "one position, one chunk": ((20,), 0, (20,)),
    "many chunks": ((20, 40), 1, (1, 4)),
}
OPTIONS = {
    "plain": {},
    "weights": {"weight": True, "sample_weight": True},
    "all": {
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 20.0,
        "temperature": 0.7,
        "ignore_index": 3,
    },
}


def make(rng, shape, axis, storage=np.float64):
    positions = shape[:axis] + shape[axis + 1 :]
    logits = (rng.standard_normal(shape) * 4).astype(storage)
    target = rng.integers(shape[axis], size=positions)
    return logits, np.where((rng.random(positions) < 0.2) & (len(positions) > 0), -100, target)


def named_options(rng, options, shape, axis):
    named = dict(options)
    if "weight" in named:
        named["weight"] = rng.random(shape[axis])
    if "sample_weight" in named:
        named["sample_weight"] = rng.integers(0, 3, shape[:axis] + shape[axis + 1 :]).astype(float)
    return named


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("options", one_in(2, OPTIONS))
@pytest.mark.parametrize(("shape", "axis", "chunks"), CHUNKS.values(), ids=CHUNKS)
def test_cross_entropy(rng, shape, axis, chunks, options, reduction):
    logits, target = make(rng, shape, axis)
    if "ignore_index" in options:
        target = np.where(target == -100, options["ignore_index"], target)
    named = named_options(rng, options, shape, axis)
    expected = F.cross_entropy(logits, target, axis=axis, reduction=reduction, **named)
    array = da.from_array(logits, chunks=chunks)
    result = cyce.dask.cross_entropy(array, target, axis=axis, reduction=reduction, **named)
    assert isinstance(result, da.Array)
    assert result.dtype == expected.dtype
    if reduction == "none":
        assert result.chunks == array.chunks[:axis] + array.chunks[axis + 1 :]
    assert_close(np.asarray(result.compute()), np.asarray(expected))
    # Everything as Dask arrays, in other chunks.
    named = {
        name: da.from_array(value, chunks=2) if isinstance(value, np.ndarray) and value.ndim else value
        for name, value in named.items()
    }
    if target.ndim:
        target = da.from_array(target, chunks=2)
    again = cyce.dask.cross_entropy(array, target, axis=axis, reduction=reduction, **named)
    assert again.compute().tobytes() == result.compute().tobytes()


@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("chunks", [(5, 30), (5, 7)])
def test_dtypes(rng, storage, chunks):
    logits, target = make(rng, (12, 30), 1, storage)
    array = da.from_array(logits, chunks=chunks)
    result = cyce.dask.cross_entropy(array, target)
    assert result.dtype == np.float32
    assert_close(result.compute(), F.cross_entropy(logits, target))
    for name in ("softmax", "log_softmax"):
        result = getattr(cyce.dask, name)(array, 1)
        assert result.dtype == storage
        assert_close(result.compute(), getattr(F, name)(logits, 1))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunks", [(5, 30), (12, 7), (5, 7)])
def test_class_probabilities(rng, chunks, smoothing, reduction):
    logits, _ = make(rng, (12, 30), 1)
    target = rng.dirichlet(np.ones(30), 12)
    options = {"label_smoothing": smoothing, "reduction": reduction, "weight": rng.random(30)}
    expected = F.cross_entropy(logits, target, **options)
    array = da.from_array(logits, chunks=chunks)
    for given in (target, da.from_array(target, chunks=4)):
        assert_close(np.asarray(cyce.dask.cross_entropy(array, given, **options).compute()), expected)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("shape", "axis", "chunks"), CHUNKS.values(), ids=CHUNKS)
def test_softmax(rng, shape, axis, chunks, log):
    logits, _ = make(rng, shape, axis)
    array = da.from_array(logits, chunks=chunks)
    name = "log_softmax" if log else "softmax"
    result = getattr(cyce.dask, name)(array, dim=axis)
    assert result.chunks == array.chunks
    assert_close(result.compute(), getattr(F, name)(logits, dim=axis))


def test_softmax_with_a_dtype_or_without_a_dimension(rng):
    array = da.from_array(rng.integers(0, 9, (4, 6)), chunks=(3, 2))
    result = cyce.dask.softmax(array, 1, dtype=np.float32)
    assert_close(result.compute(), F.softmax(array.compute(), 1, dtype=np.float32))
    with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax") as warnings:
        cyce.dask.log_softmax(array.astype(float))
    assert warnings[0].filename == __file__


@pytest.mark.parametrize(("normalizer", "empty"), [(None, "nan"), (None, "zero"), (2.5, "nan")])
def test_nothing_counts(normalizer, empty):
    logits, target = np.zeros((4, 3)), np.full(4, -100)
    options = {"normalizer": normalizer, "empty": empty, "label_smoothing": 0.1}
    for chunks in ((2, 3), (2, 2)):
        result = cyce.dask.cross_entropy(da.from_array(logits, chunks=chunks), target, **options)
        np.testing.assert_array_equal(result.compute(), F.cross_entropy(logits, target, **options))


def test_no_positions():
    array = da.zeros((0, 3), chunks=2)
    assert np.isnan(cyce.dask.cross_entropy(array, np.zeros(0, int)).compute())
    assert cyce.dask.cross_entropy(array, np.zeros(0, int), reduction="none").compute().shape == (0,)


def test_chunks_of_unknown_size(rng):
    logits, target = make(rng, (12, 30), 1)
    array, labels = da.from_array(logits, chunks=(5, 7)), da.from_array(target, chunks=5)
    kept = array[labels >= 0], labels[labels >= 0]
    assert np.isnan(kept[0].shape[0])
    assert_close(cyce.dask.cross_entropy(*kept).compute(), F.cross_entropy(logits, target))
    losses = cyce.dask.cross_entropy(*kept, reduction="none").compute()
    assert_close(losses, F.cross_entropy(logits[target >= 0], target[target >= 0], reduction="none"))
    assert cyce.dask.evaluate(*kept).compute().n_positions == (target >= 0).sum()
    with pytest.raises(ValueError, match=r"^input: some of its chunks have an unknown size, .* pass Dask"):
        cyce.dask.cross_entropy(kept[0], target[target >= 0])
    by_class = da.from_array(logits, chunks=(5, 7))[:, da.from_array(np.arange(30), chunks=7) % 2 == 0]
    with pytest.raises(ValueError, match=r"^input: the sizes of its chunks along the classes, axis 1, must"):
        cyce.dask.cross_entropy(by_class, target)


def test_ignored_positions_may_have_any_weight(rng):
    logits, _ = make(rng, (4, 6), 1)
    target, sample_weight = np.array([0, -100, 3, 2]), np.array([1, np.inf, 2, 1.0])
    for chunks in ((2, 6), (2, 3)):
        array = da.from_array(logits, chunks=chunks)
        for reduction in ("sum", "mean"):
            options = {"sample_weight": sample_weight, "reduction": reduction}
            expected = F.cross_entropy(logits, target, **options)
            assert_close(cyce.dask.cross_entropy(array, target, **options).compute(), expected)


@pytest.mark.parametrize("kind", [np.uint64, np.int8, ">i4", list])
def test_targets_of_any_kind(rng, kind):
    logits, _ = make(rng, (4, 6), 1)
    target = np.array([0, 5, 3, 2])
    given = target.tolist() if kind is list else target.astype(kind)
    for chunks in ((2, 6), (2, 3)):
        array = da.from_array(logits, chunks=chunks)
        assert_close(cyce.dask.cross_entropy(array, given).compute(), F.cross_entropy(logits, target))
        result = cyce.dask.evaluate(array, given).compute()
        assert result.loss == pytest.approx(float(F.cross_entropy(logits, target)))


def test_other_byte_orders(rng):
    logits, target = make(rng, (4, 6), 1, ">f4")
    array = da.from_array(logits, chunks=(2, 3))
    assert_close(cyce.dask.cross_entropy(array, target).compute(), F.cross_entropy(logits, target))
    result = cyce.dask.softmax(array, 1)
    assert result.dtype == result.compute().dtype == np.dtype("=f4")


def test_arguments_may_be_changed_before_it_is_computed(rng):
    logits, target = make(rng, (4, 6), 1)
    array = da.from_array(logits, chunks=(2, 3))
    expected = F.cross_entropy(logits, target)
    result = cyce.dask.cross_entropy(array, target)
    target[:] = 0
    assert_close(result.compute(), expected)


# ---------------------------------------------------------------------------------------------
# Graphs


def refuse(block):
    if block.size:
        raise AssertionError("computed")
    return block


@pytest.mark.parametrize("chunks", [(2, 6), (2, 3)])
def test_nothing_is_computed_before_it_is_asked_for(chunks):
    array = da.zeros((4, 6), chunks=chunks).map_blocks(refuse, dtype=float)
    target = da.zeros(4, dtype=int, chunks=2).map_blocks(refuse, dtype=int)
    results = [cyce.dask.cross_entropy(array, target, reduction=name) for name in ("none", "sum", "mean")]
    results += [cyce.dask.softmax(array, 1), cyce.dask.evaluate(array, target)]
    for result in results:
        with pytest.raises(AssertionError, match="computed"):
            result.compute()


def tasks_that_need(array, result):
    """For each task, how many chunks of an array it needs."""
    # As it is: fusion may only join a task with the one that makes its chunk.
    graph, chunks = dict(result.__dask_graph__()), set(flatten(array.__dask_keys__()))
    return {key: len(chunks.intersection(get_dependencies(graph, key))) for key in graph}


def everything(array, target):
    for reduction in ("none", "sum", "mean"):
        yield cyce.dask.cross_entropy(array, target, reduction=reduction)
    yield cyce.dask.softmax(array, 1)
    yield cyce.dask.log_softmax(array, 1)
    yield cyce.dask.evaluate(array, target)


@pytest.mark.parametrize("chunks", [(3, 16), (3, 2), (12, 2)])
def test_no_task_needs_two_chunks(rng, chunks):
    logits, target = make(rng, (12, 16), 1)
    array = da.from_array(logits, chunks=chunks)
    for result in everything(array, target):
        needed = tasks_that_need(array, result)
        assert max(needed.values()) <= 1
        # The graph of a Delayed is fused: chunks are made by the tasks that need them.
        assert max(needed.values()) == 1 or not isinstance(result, da.Array)
        names = {str(key[0] if isinstance(key, tuple) else key) for key in needed}
        assert not any("rechunk" in name or "concatenate" in name for name in names)


@pytest.mark.parametrize("chunks", [(1, 16), (1, 1)])
def test_trees_take_few_blocks_at_a_time(rng, chunks):
    logits, target = make(rng, (40, 16), 1)
    array = da.from_array(logits, chunks=chunks)
    for result in everything(array, target):
        graph = dict(result.__dask_graph__())
        assert max(len(get_dependencies(graph, key)) for key in graph) <= 8


def test_one_task_for_each_chunk():
    array = da.zeros((64, 16), chunks=(1, 16))
    (loss,) = dask.optimize(cyce.dask.cross_entropy(array, np.zeros(64, int)))
    # 8 + 1 joins, one of which is fused with the division, whose name is one more.
    assert len(dict(loss.__dask_graph__())) <= 64 + 8 + 2


def test_the_same_arguments_have_the_same_keys():
    array = da.zeros((4, 6), chunks=(2, 3))
    first, second, other = (
        [
            set(result.__dask_graph__()) - set(array.__dask_graph__())
            for result in everything(array, np.array(target))
        ]
        for target in ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4])
    )
    assert first == second
    # Softmax has no targets.
    assert [a == b for a, b in zip(first, other, strict=True)] == [False, False, False, True, True, False]


def test_graphs_can_be_pickled():
    array = da.zeros((4, 6), chunks=(2, 3))
    for result in everything(array, np.zeros(4, int)):
        again = pickle.loads(pickle.dumps(result)).compute()
        assert type(again) is type(result.compute())


def test_what_moves_is_small(rng):
    # 64 bytes of each position of a chunk, in float64, whatever the number of classes.
    logits, target = make(rng, (1000, 400), 1)
    array = da.from_array(logits, chunks=(500, 100))
    blocks = []
    result = cyce.dask.cross_entropy(array, target)

    class Noted(dask.callbacks.Callback):
        def _posttask(self, key, value, *_):
            if isinstance(value, Partial):
                blocks.append(sum(field.nbytes for field in value))

    with Noted():
        result.compute()
    assert len(blocks) >= 8
    assert max(blocks) <= 500 * 64 + 200


# ---------------------------------------------------------------------------------------------
# Errors


class TestErrors:
    array = da.zeros((4, 6), chunks=(2, 3))
    target = np.zeros(4, int)

    @pytest.mark.parametrize("function", [F.cross_entropy, F.softmax, cyce.value_and_grad(F.cross_entropy)])
    def test_the_functions_of_numpy_name_those_of_dask(self, function):
        with pytest.raises(
            TypeError, match=r"^input: a Dask collection .* cyce\.dask has cross_entropy, softmax"
        ):
            function(self.array, self.target)

    @pytest.mark.parametrize("function", [cyce.dask.cross_entropy, cyce.dask.softmax, cyce.dask.evaluate])
    def test_arrays_of_numpy(self, function):
        with pytest.raises(TypeError, match=r"^(input|logits): must be a dask\.array\.Array, got ndarray; c"):
            function(np.zeros((4, 6)), self.target)

    @pytest.mark.parametrize("chunks", [(2, 6), (2, 3)])
    @pytest.mark.parametrize("name", ["cross_entropy", "evaluate"])
    def test_targets_that_are_no_classes(self, name, chunks):
        function, array = getattr(cyce.dask, name), self.array.rechunk(chunks)
        target = np.array([0, 1, 2, 6])
        with pytest.raises(IndexError, match=r"^Target 6 is out of bounds\. target\[3\] must be .* 0 to 5"):
            function(array, target)
        result = function(array, da.from_array(target, chunks=3))
        with pytest.raises(IndexError, match=r"^Target 6 is out of bounds\. target\[1\] must be .* 0 to 5"):
            result.compute()

    @pytest.mark.parametrize("name", ["target", "sample_weight"])
    @pytest.mark.parametrize("function", [cyce.dask.cross_entropy, cyce.dask.evaluate])
    def test_masks_are_not_lost(self, function, name):
        named = {"target": self.target, name: np.ma.array(self.target, mask=[0, 1, 0, 0])}
        with pytest.raises(TypeError, match=rf"^{name}: a masked array is not supported"):
            function(self.array, **named)

    def test_chunks_that_are_no_arrays_of_numpy(self):
        masked = self.array.map_blocks(np.ma.masked_equal, 1)
        with pytest.raises(TypeError, match=r"^input: its chunks must be arrays of NumPy, got MaskedArray"):
            cyce.dask.cross_entropy(masked, self.target)
        with pytest.raises(TypeError, match=r"^logits: its chunks must be arrays of NumPy, got MaskedArray"):
            cyce.dask.evaluate(masked, self.target)

    @pytest.mark.parametrize("dtype", [complex, np.uint16, "datetime64[s]", object])
    def test_softmax_casts_what_numpy_arrays_are_cast_from(self, dtype):
        with pytest.raises(TypeError, match=r"^input: "):
            F.softmax(np.zeros((4, 6), dtype), 1, dtype=np.float32)
        with pytest.raises(TypeError, match=r"^input: "):
            cyce.dask.softmax(da.zeros((4, 6), chunks=(2, 3), dtype=dtype), 1, dtype=np.float32)

    def test_chunks_that_are_not_as_many(self):
        kept = da.from_array(np.arange(4.0), chunks=1)
        kept = kept[kept >= 0]
        with pytest.raises(
            ValueError, match=r"^sample_weight: its chunks, or those of the logits, have unkn"
        ):
            cyce.dask.cross_entropy(self.array, self.target, sample_weight=kept)

    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"target": np.zeros(3, int)}, ValueError, r"^Expected input batch_size \(4\) to match target"),
            ({"target": da.zeros(3, dtype=int)}, ValueError, r"^Expected input batch_size \(4\) to match"),
            ({"target": da.zeros((4, 6), dtype=int)}, TypeError, "^Expected floating point type for target"),
            ({"target": np.zeros((4, 6), int)}, TypeError, "^Expected floating point type for target with"),
            ({"target": np.zeros(4)}, TypeError, "^expected target dtype to be Long or Byte, but got Double"),
            ({"weight": np.ones(5)}, ValueError, "^weight tensor should be defined either for all 6 classes"),
            ({"weight": da.ones(5)}, ValueError, "^weight: must have one number for each of 6 classes"),
            (
                {"sample_weight": np.ones(5)},
                ValueError,
                "^sample_weight: must have one number for each position",
            ),
            ({"sample_weight": da.ones(5)}, ValueError, "^sample_weight: must have the positions' shape"),
            ({"reduction": "max"}, ValueError, "^max is not a valid value for reduction"),
            ({"label_smoothing": 2}, ValueError, "^label_smoothing must be between"),
            ({"temperature": 0}, ValueError, "^temperature: must be a positive"),
            ({"normalizer": 1.0, "reduction": "sum"}, ValueError, "^normalizer requires reduction='mean'"),
            ({"empty": "none"}, ValueError, "^empty: must be 'nan' or 'zero'"),
            ({"axis": 2}, IndexError, "^Dimension out of range"),
            (
                {"input": da.zeros((4, 6), dtype=int)},
                TypeError,
                "^input: logits must be floating point, got int64",
            ),
            ({"input": da.zeros(())}, ValueError, "^input: logits need at least one dimension"),
        ],
    )
    def test_before_anything_is_computed(self, named, error, message):
        with pytest.raises(error, match=message):
            cyce.dask.cross_entropy(**{"input": self.array, "target": self.target, **named})


def test_the_signature_is_that_of_numpy_arrays():
    own, other = (dict(inspect.signature(module.cross_entropy).parameters) for module in (cyce.dask, F))
    # Shards have no masks.
    del other["class_mask"]
    assert {name: field.default for name, field in own.items()} == {
        name: field.default for name, field in other.items()
    }
    assert list(own) == list(other)
