"""Losses of logits whose classes are split: exact, whatever the shards and the tree of merges."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import accuracy_table
import cyce
import cyce.functional as F
import oracle
from cyce import sharded
from cyce.kernels import dispatch
from cyce.sharded.states import states_of
from records import of_classes
from sharded_cases import OPTIONS, TREES, in_order, in_pairs, in_shards, random_cuts, shards_of
from stages import one_in

with_gradient = cyce.value_and_grad(F.cross_entropy)

# Rows of the kernels' states; what rounding took from these sums is in the next ones.
REST, GAP = 2, 6

TOLERANCE = {
    "float16": {"rtol": 2e-3, "atol": 1e-4},
    "bfloat16": {"rtol": 2e-2, "atol": 1e-3},
    "float32": {"rtol": 2e-6, "atol": 1e-7},
    "float64": {"rtol": 1e-14, "atol": 1e-15},
}


def assert_close(result, expected, dtype=None):
    """Assert that two arrays of one dtype agree, as far as rounding in that of the logits allows."""
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    tolerance = TOLERANCE[np.dtype(dtype or expected.dtype).name]
    np.testing.assert_allclose(result.astype(float), expected.astype(float), **tolerance)


def make(rng, shape, axis, dtype):
    """Return logits with the classes at an axis, and targets, a fifth of which is ignored."""
    logits = (rng.standard_normal(shape) * 4).astype(dtype)
    positions = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(shape[axis], size=positions)
    return logits, np.where((rng.random(positions) < 0.2) & (len(positions) > 0), -100, target)


LAYOUTS = {
    "one position": ((700,), 0),
    "rows": ((6, 700), 1),
    "few classes": ((40, 5), 1),
    "image": ((2, 9, 4, 3), 1),
    "classes last": ((2, 3, 130), -1),
    "classes first": ((65, 7), 0),
}


@pytest.mark.smoke
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", one_in(2, OPTIONS))
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_unsplit_loss(level, dtype, rng, shape, axis, options, weights):
    axis %= len(shape)
    logits, target = make(rng, shape, axis, dtype)
    named = {}
    if weights:
        options = {**options, "weight": rng.random(shape[axis])}
        # A position of weight 0 may hold anything.
        named["sample_weight"] = rng.integers(0, 3, target.shape)
        rows = np.moveaxis(logits, axis, -1)
        rows[named["sample_weight"] == 0] = np.nan
    named["grad_output"] = rng.random(target.shape) - 0.5
    expected = with_gradient(logits, target, axis=axis, reduction="none", **options, **named)
    for tree in TREES:
        cuts = random_cuts(rng, shape[axis])
        losses, gradient, merged = in_shards(logits, target, cuts, axis, tree, **options, **named)
        assert_close(losses, expected[0])
        assert_close(gradient, expected[1])
        denominator = np.sum(np.asarray(merged.target_weight, float) * named.get("sample_weight", 1))
        if denominator:
            mean = F.cross_entropy(
                logits, target, axis=axis, **options, sample_weight=named.get("sample_weight")
            )
            assert losses.sum(dtype=float) / denominator == pytest.approx(float(mean), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["plain", "label_smoothing"])
@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_class_probabilities(level, rng, options, storage):
    logits = (rng.standard_normal((12, 300)) * 3).astype(storage)
    probabilities = rng.dirichlet(np.ones(300), 12)
    expected = with_gradient(logits, probabilities, reduction="none", **options)
    for cuts in ([1], [299], [64, 65, 200]):
        losses, gradient, merged = in_shards(logits, probabilities, cuts, n_classes=300, **options)
        assert_close(losses, expected[0], np.promote_types(losses.dtype, np.float32))
        assert_close(gradient, expected[1])
        np.testing.assert_array_equal(merged.target_weight, 1)


@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(level, rng, storage):
    logits, target = make(rng, (9, 500), 1, storage)
    expected = with_gradient(logits, target, reduction="none", grad_output=0.1)
    losses, gradient, merged = in_shards(logits, target, [100, 222], grad_output=0.1)
    assert merged.maximum.dtype == losses.dtype == np.float32
    assert_close(losses, expected[0])
    assert gradient.dtype == storage
    assert_close(gradient, expected[1])


@pytest.mark.parametrize("option", ["cross_entropy", "label_smoothing", "z_loss"])
@pytest.mark.parametrize("n_classes", [2, 3, 10, 127, 300, 9000])
def test_the_bounds_of_accuracy(level, dtype, rng, n_classes, option):
    options = {"label_smoothing": 0.1} if option == "label_smoothing" else {}
    options |= {"z_loss": 1e-4} if option == "z_loss" else {}
    name = option if option == "cross_entropy" else f"cross_entropy with {option}"
    column = 0 if dtype == np.float32 else 1
    bounds = {key: bound[column] for key, bound in accuracy_table.BOUNDS.items() if key.startswith(name)}
    for scale, lead, tree in ((0.1, 0, in_order), (10, 0, in_pairs), (50, 0, in_order), (1, 60, in_pairs)):
        logits = (rng.standard_normal((max(4, 3000 // n_classes), n_classes)) * scale).astype(dtype)
        target = rng.integers(n_classes, size=len(logits))
        # Confident rows, whose losses are tiny.
        logits[np.arange(len(target)), target] += lead
        losses, gradient, _ = in_shards(logits, target, random_cuts(rng, n_classes), tree=tree, **options)
        exact = oracle.per_position(logits, target, **options)
        if option == "cross_entropy":
            scales, loss_bound = np.abs(exact.gradients), 2
            gradient_bound = max(bounds[key] for key in bounds if "gradient" in key)
        else:
            scales, loss_bound = exact.scales, bounds[f"{name}, loss"]
            gradient_bound = bounds[f"{name}, gradient"]
        # With z_loss, log-sum-exps near 0 are a small difference of two numbers, as in accuracy_table.
        ordinary = np.abs(exact.losses) > (0.5 if option == "z_loss" else 1e-36)
        assert accuracy_table.ulps(losses, exact.losses, ordinary) <= loss_bound
        if option != "z_loss":
            large = scales > 1e-12
            assert accuracy_table.ulps(gradient, exact.gradients, large, scales) <= gradient_bound


class TestPartials:
    target = np.array([0, 59, 3, -100, 40, 39, 4, 2, 17, -100, 1])

    def parts(self, rng, dtype=np.float64, cuts=(3, 4, 40)):
        logits, _ = make(rng, (11, 60), 1, dtype)
        return [
            sharded.partial(part, self.target, first, label_smoothing=0.1)
            for first, part in shards_of(logits, cuts, 1)
        ]

    def bytes_of(self, partial):
        return [array.tobytes() for array in partial]

    @pytest.mark.parametrize(("storage", "most"), [(np.float32, 52), (np.float64, 64)])
    def test_take_few_bytes(self, storage, most):
        # With class weights and smoothing, on many classes.
        n = 100_000
        partial = sharded.partial(
            np.zeros((n, 2), storage), np.zeros(n, int), weight=[1, 2], label_smoothing=0.5
        )
        assert sum(array.nbytes for array in partial) <= most * n + 200

    def test_are_values(self, rng, dtype):
        parts = self.parts(rng, dtype)
        before = [self.bytes_of(part) for part in parts]
        merged = in_order(parts)
        sharded.finish(merged)
        assert [self.bytes_of(part) for part in parts] == before

    def test_merge_to_the_same_bits_either_way(self, rng, dtype):
        for a, b in zip(parts := self.parts(rng, dtype), parts[1:], strict=False):
            assert self.bytes_of(sharded.merge(a, b)) == self.bytes_of(sharded.merge(b, a))

    def test_the_same_tree_gives_the_same_bits(self, rng, dtype):
        parts = self.parts(rng, dtype)
        assert self.bytes_of(in_pairs(parts)) == self.bytes_of(in_pairs(parts))

    def test_several_at_once(self, rng, dtype):
        parts = self.parts(rng, dtype)
        assert self.bytes_of(sharded.merge(*parts)) == self.bytes_of(in_order(parts))

    def test_merge_where_shards_alternate(self, rng, dtype):
        a, b, c, d = self.parts(rng, dtype)
        merged = sharded.merge(sharded.merge(a, c), sharded.merge(d, b))
        assert_close(sharded.finish(merged), sharded.finish(in_order([a, b, c, d])))

    def test_the_first_of_equal_maxima_is_the_prediction(self):
        a, b, c, d = (
            sharded.partial([row], [0], 2 * number)
            for number, row in enumerate([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0], [2.0, 2.0]])
        )
        # The first shard's side has its maximum after the other's.
        assert sharded.merge(sharded.merge(a, d), sharded.merge(b, c)).argmax == [3]

    def test_empty_shards_change_nothing(self, rng, dtype):
        merged = in_order(self.parts(rng, dtype))
        for first in (0, 7, 60, 99):
            empty = sharded.partial(np.empty((11, 0), dtype), self.target, first, label_smoothing=0.1)
            for pair in ((merged, empty), (empty, merged)):
                assert self.bytes_of(sharded.merge(*pair)) == self.bytes_of(merged)

    def test_what_rounding_took_is_kept(self, rng):
        # Relative to the sums, in float32: also of sums that float32 does not hold.
        logits = rng.standard_normal((50, 300))
        logits[::2, 0] += 400
        call = of_classes(logits=logits, axis=1, target=np.zeros(50, int), label_smoothing=0.1)
        states = np.empty((dispatch.kernels.N_FIELDS, 50))
        dispatch.kernels.reduce(call, states)
        partial = sharded.partial(logits, np.zeros(50, int), label_smoothing=0.1)
        for row in (REST, GAP):
            assert np.any(states[row + 1])
            assert np.any(states[row] < 1e-100) == (row == REST)
            np.testing.assert_allclose(states_of(partial)[row + 1], states[row + 1], rtol=2**-23)

    @pytest.mark.parametrize("move", [lambda partial: pickle.loads(pickle.dumps(partial)), tuple, list])
    def test_move_in_any_form(self, rng, move):
        parts = self.parts(rng)
        expected = sharded.finish(in_order(parts))
        merged = sharded.merge(move(sharded.merge(*map(move, parts[:2]))), sharded.merge(*parts[2:]))
        assert_close(sharded.finish(move(merged)), expected)

    def test_can_be_cut_along_the_positions(self, rng):
        parts = self.parts(rng)
        expected = sharded.finish(in_order(parts))

        def some(partial, rows):
            return [array[rows] if array.shape == (11,) else array for array in partial]

        halves = [
            sharded.finish(in_order([sharded.Partial(*some(part, rows)) for part in parts]))
            for rows in (slice(0, 4), slice(4, 11))
        ]
        assert np.concatenate(halves).tobytes() == expected.tobytes()

    def test_predictions_and_marks(self):
        logits = np.array([[1.0, 3.0, 3.0], [-np.inf] * 3, [np.nan] * 3])
        partial = sharded.partial(logits, [2, 0, -100], 5, ignore_index=-100, n_classes=9)
        np.testing.assert_array_equal(partial.argmax, [6, -2, -1])
        np.testing.assert_array_equal(partial.maximum, [3, -np.inf, 0])
        np.testing.assert_array_equal(np.isnan(partial.target_weight), [True, True, False])
        assert partial.target_weight[2] == 0


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_change_no_bit(level, dtype, rng, threads, n_threads):
    logits, target = make(rng, (4, 50_000), 1, dtype)
    threads(1)
    expected = in_shards(logits, target, [30_000])
    threads(n_threads)
    for array, other in zip(in_shards(logits, target, [30_000])[:2], expected, strict=False):
        assert array.tobytes() == other.tobytes()


def test_nothing_is_ignored_but_what_should_be(dtype):
    # Infinite and NaN logits are those of the unsplit loss.
    logits = np.array(
        [[np.inf, 0, 1, 2], [0, np.nan, 1, 2], [-np.inf, -np.inf, 0, 1], [-np.inf] * 4, [np.nan] * 4], dtype
    )
    target = np.array([1, 2, 0, 1, -100])
    expected, expected_gradient = with_gradient(logits, target, reduction="none")
    losses, gradient, _ = in_shards(logits, target, [2])
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_nothing(shape):
    target = np.full(shape[:-1], -100)
    partial = sharded.partial(np.zeros(shape), target)
    np.testing.assert_array_equal(sharded.finish(partial), np.zeros(shape[:-1]))
    assert sharded.gradient(np.zeros(shape), target, partial).shape == shape


def test_in_place(rng, dtype):
    logits, target = make(rng, (7, 30), 1, dtype)
    state = sharded.partial(logits, target)
    expected = sharded.gradient(logits, target, state)
    assert sharded.gradient(logits, target, state, out=logits) is logits
    assert logits.tobytes() == expected.tobytes()


LOGITS, TARGET = np.zeros((3, 4)), np.array([0, 5, 7])


class TestErrors:
    def left(self, **options):
        return sharded.partial(LOGITS, TARGET, 0, **options)

    def right(self, first=4, logits=LOGITS, target=TARGET, **options):
        return sharded.partial(logits, target, first, **options)

    def test_a_target_that_is_no_class(self):
        with pytest.raises(IndexError, match=r"^Target 7 is out of bounds\. target\[2\] must be .* 0 to 6 "):
            self.left(n_classes=7)
        with pytest.raises(IndexError, match=r"^Target -3 is out of bounds\. target\[1\] must be"):
            sharded.partial(LOGITS, [0, -3, 1])

    def test_a_target_in_no_shard(self):
        merged = sharded.merge(self.left(), self.right(logits=np.zeros((3, 2))))
        message = r"^Target is out of bounds\. target\[2\] is in no shard: .* from 0 to 5 or ignore_index"
        with pytest.raises(IndexError, match=message):
            sharded.finish(merged)
        with pytest.raises(IndexError, match=message):
            sharded.gradient(LOGITS, TARGET, merged)

    @pytest.mark.parametrize(("first", "has"), [(4, "4 to 7"), (0, "0 to 3")])
    def test_missing_shards(self, first, has):
        part = self.right(first, n_classes=9, target=[-100] * 3)
        with pytest.raises(ValueError, match=rf"^state: classes are missing: it has {has}, of 9; merge the"):
            sharded.finish(part)

    def test_a_first_shard_that_is_missing(self):
        with pytest.raises(ValueError, match=r"^state: classes are missing: it has 4 to 7, of 8; merge the"):
            sharded.finish(self.right())

    def test_a_shard_in_the_middle_that_is_missing(self):
        merged = sharded.merge(self.left(), self.right(8))
        with pytest.raises(
            ValueError, match=r"^state: classes are missing: it has 0 to 3 and 8 to 11, of 12;"
        ):
            sharded.finish(merged)

    @pytest.mark.parametrize("first", [0, 3])
    def test_shards_that_share_classes(self, first):
        message = (
            rf"^a and b: share classes from {first} on: a has 0 to 3, b {first} to {first + 3}; first_class"
        )
        with pytest.raises(ValueError, match=message):
            sharded.merge(self.left(), self.right(first))

    def test_shards_that_share_classes_as_many_as_are_missing(self):
        parts = [sharded.partial(np.zeros((1, end - first)), [0], first) for first, end in ((0, 2), (6, 8))]
        apart = sharded.merge(*parts)
        with pytest.raises(
            ValueError, match=r"^a and b: share classes from 1 on: a has 0 to 1 and 6 to 7, b 1"
        ):
            sharded.merge(apart, sharded.partial(np.zeros((1, 4)), [0], 1))

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"label_smoothing": 0.1}, "label_smoothing"),
            ({"ignore_index": 0}, "ignore_index"),
            ({"weight": np.ones(4)}, "weight"),
            ({"n_classes": 99}, "n_classes"),
            ({"temperature": 2.0, "softcap": 1.0}, "softcap, temperature"),
            ({"target": np.ones((3, 4))}, "target"),
        ],
    )
    def test_options_that_differ(self, options, name):
        with pytest.raises(
            ValueError, match=rf"^a and b: were computed with different options: {name}; pass"
        ):
            sharded.merge(self.left(n_classes=8), self.right(**options))

    def test_targets_that_differ(self):
        with pytest.raises(ValueError, match=r"^a and b: both have the target of a position; pass the same"):
            sharded.merge(self.left(), self.right(target=np.array([5, 5, 7])))
        with pytest.raises(
            ValueError, match=r"^a and b: differ in which positions are ignored; pass the same"
        ):
            sharded.merge(self.left(), self.right(target=np.array([0, 5, -100])))

    def test_the_number_of_classes_may_be_known_to_some(self):
        merged = sharded.merge(self.left(), self.right(n_classes=8))
        assert sharded.finish(merged) == pytest.approx(np.log(8))

    def test_positions_and_dtypes_that_differ(self):
        with pytest.raises(
            ValueError, match=r"^a and b: must be of the same positions, got shapes \[3\] and"
        ):
            sharded.merge(self.left(), sharded.partial(LOGITS[:2], TARGET[:2], 4))
        with pytest.raises(TypeError, match=r"^a and b: must have the same dtype, got float64 and float32"):
            sharded.merge(self.left(), self.right(logits=np.zeros((3, 4), np.float32)))

    @pytest.mark.parametrize("value", [3, None, np.zeros(4), (1, 2)])
    def test_what_is_no_partial(self, value):
        with pytest.raises(TypeError, match=r"^b: must be a cyce\.sharded\.Partial"):
            sharded.merge(self.left(), value)
        with pytest.raises(TypeError, match=r"^state: must be a cyce\.sharded\.Partial"):
            sharded.finish(value)

    def test_fields_that_do_not_fit(self):
        broken = self.left()._replace(rest=np.zeros(5))
        with pytest.raises(ValueError, match=r"^a: rest must have shape \[3\], got \[5\]"):
            sharded.merge(broken, self.right())

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"label_smoothing": 0.2}, r"^label_smoothing: must be that of the partials, 0\.1, got 0\.2"),
            ({"ignore_index": 3}, "^ignore_index: must be that of the partials, -100, got 3; leave it out"),
            ({"softcap": 3.0}, r"^softcap: must be that of the partials, None, got 3\.0"),
            ({"weight": np.ones(4)}, "^weight: was not given in the partials"),
            (
                {"target": np.ones((3, 4))},
                "^target: must be class indices as in the partials, got class prob",
            ),
            ({"first_class": 5}, "^first_class: 4 classes from 5 on end at 9, but n_classes is 8"),
            ({"first_class": -1}, "^first_class: must not be negative, got -1"),
            (
                {"logits": LOGITS[:2], "target": TARGET[:2]},
                r"^state: has positions of shape \[3\], logits have",
            ),
        ],
    )
    def test_a_gradient_with_other_options(self, named, message):
        state = sharded.merge(self.left(label_smoothing=0.1), self.right(label_smoothing=0.1))
        arguments = {"logits": LOGITS, "target": TARGET, "state": state, **named}
        with pytest.raises(ValueError, match=message):
            sharded.gradient(**arguments)

    def test_a_gradient_of_other_targets_or_weights(self):
        weight = np.arange(1.0, 5)
        state = sharded.partial(LOGITS, [0, -100, 2], weight=weight)
        with pytest.raises(ValueError, match=r"^target: ignores other positions than in the partials; pass"):
            sharded.gradient(LOGITS, [0, 1, 2], state, weight=weight)
        for target, other in (([0, -100, 3], weight), ([0, -100, 2], weight[::-1])):
            with pytest.raises(ValueError, match=r"^target or weight: differs from that of the partials"):
                sharded.gradient(LOGITS, target, state, weight=other)

    def test_a_gradient_of_another_shard(self, rng, dtype):
        logits, target = rng.standard_normal((20, 40)).astype(dtype), np.arange(20) * 2
        parts = [sharded.partial(logits[:, a : a + 20], target, a, temperature=0.7) for a in (0, 20)]
        state = sharded.merge(*parts)
        message = (
            r"^logits, target or first_class: the logit of a target is .* here, and was .* in the partials"
        )
        for first, shard, of_call in (
            (0, logits[:, 20:], target),
            (20, logits[:, :20], target),
            (20, logits[:, 20:] + dtype.type(1), target),
            (20, logits[:, 20:], target[::-1]),
        ):
            with pytest.raises(ValueError, match=message):
                sharded.gradient(shard, of_call, state, first)
        sharded.gradient(logits[:, 20:], target, state, 20)

    def test_probabilities_and_an_index_to_ignore(self):
        with pytest.raises(ValueError, match=r"^ignore_index is not supported for floating point target"):
            sharded.partial(LOGITS, np.ones((3, 4)), ignore_index=2)

    def test_numbers_of_classes(self):
        with pytest.raises(ValueError, match=r"^n_classes: must be at most 2147483647, got 1099511627776"):
            self.left(n_classes=2**40)
        with pytest.raises(
            ValueError, match=r"^first_class: 4 classes from 0 on end at 4, but n_classes is 0"
        ):
            self.left(n_classes=0)

    def test_weights_of_other_numbers_of_classes(self):
        parts = [self.left(weight=np.ones(100)), self.right(weight=np.ones(9))]
        with pytest.raises(
            ValueError, match=r"^a and b: were computed with different options: n_classes; pass"
        ):
            sharded.merge(*parts)

    @pytest.mark.parametrize(
        ("field", "value"), [("rest", np.zeros(3, complex)), ("argmax", np.zeros(3)), ("classes", np.eye(2))]
    )
    def test_fields_of_other_dtypes(self, field, value):
        with pytest.raises(TypeError, match=rf"^a: {field} must be (float64|int32|int64), got "):
            sharded.merge(self.left()._replace(**{field: value}), self.right())

    def test_a_gradient_without_the_weights_of_the_partials(self):
        state = sharded.partial(LOGITS, [0, 1, 2], weight=np.ones(4))
        with pytest.raises(ValueError, match=r"^weight: must be given, as in the partials"):
            sharded.gradient(LOGITS, [0, 1, 2], state)

    def test_a_gradient_of_other_logits(self):
        state = sharded.partial(LOGITS, [0, 1, 2])
        with pytest.raises(TypeError, match=r"^state: is of float64 logits, got float32; pass the logits"):
            sharded.gradient(LOGITS.astype(np.float32), [0, 1, 2], state)

    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (np.ones(3), r"^weight tensor should be defined either for all 4 classes"),
            (np.ones((2, 4)), r"^weight tensor should be defined either for all 4 classes"),
        ],
    )
    def test_weights(self, weight, message):
        with pytest.raises(ValueError, match=message):
            self.right(weight=weight)

    def test_smoothed_probabilities_need_the_number_of_classes(self):
        with pytest.raises(
            ValueError, match=r"^n_classes: is needed for label_smoothing of class probabilities"
        ):
            sharded.partial(LOGITS, np.ones((3, 4)), label_smoothing=0.1)

    def test_too_many_classes(self):
        with pytest.raises(
            ValueError, match=r"^first_class: 4 classes from 2147483645 on .* may be 2147483647"
        ):
            self.right(2**31 - 3)

    def test_out_that_is_read(self):
        state = sharded.partial(LOGITS, [0, 1, 2])
        with pytest.raises(ValueError, match=r"^out: shares a part of its memory with input"):
            sharded.gradient(LOGITS[:, 1:], [0, 1, 2], state, out=LOGITS[:, :-1])


@pytest.mark.parametrize("ignore_index", [-(2**63), 2**63 - 1, 2])
def test_any_ignore_index(ignore_index):
    target = np.array([ignore_index, 1])
    losses, gradient, _ = in_shards(np.zeros((2, 4)), target, [2], ignore_index=ignore_index)
    assert losses == pytest.approx([0, np.log(4)])
    assert not gradient[0].any()


def test_other_byte_orders():
    part = sharded.partial(LOGITS, [0, 1, 2])
    swapped = [array.astype(array.dtype.newbyteorder()) for array in part]
    assert sharded.finish(swapped).tobytes() == sharded.finish(part).tobytes()


def test_a_weight_that_is_nan(rng):
    logits, target = make(rng, (6, 9), 1, np.float64)
    weight = np.where(np.arange(9) == target[0], np.nan, 1)
    expected, expected_gradient = with_gradient(logits, target, weight=weight, reduction="none")
    losses, gradient, _ = in_shards(logits, target, [4], weight=weight)
    assert_close(losses, expected)
    assert_close(gradient, expected_gradient)


def test_weights_of_all_classes_or_of_the_shard(rng):
    logits, target = make(rng, (5, 9), 1, np.float64)
    weight = rng.random(9)
    for of_shard in (weight, weight[3:7]):
        part = sharded.partial(logits[:, 3:7], target, 3, weight=of_shard)
        of_target = np.where((target >= 3) & (target < 7), weight[np.maximum(target, 0)], np.nan)
        np.testing.assert_array_equal(part.target_weight, np.where(target < 0, 0, of_target))
