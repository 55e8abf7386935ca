"""Statistics of positions whose classes are split: the same as unsplit."""

import ml_dtypes
import numpy as np
import pytest

from cyce.evaluation.evaluator import position_stats
from cyce.evaluation.shards import Shard, finish_stats, merge_stats, picked, reduce_stats
from sharded_cases import random_cuts, shards_of

LAYOUTS = {
    "one position": ((300,), 0),
    "rows": ((9, 700), 1),
    "few classes": ((40, 5), 1),
    "image": ((2, 9, 4, 3), 1),
    "classes first": ((65, 7), 0),
}


def in_shards(logits, target, axis, cuts, temperature):
    """Return the statistics of each position."""
    shards = [
        Shard(part, target, axis, first, logits.shape[axis], -100, temperature)
        for first, part in shards_of(logits, cuts, axis)
        if part.size
    ]
    target_logit = picked(shards[0])
    for shard in shards[1:]:
        target_logit = np.where(np.isnan(target_logit), picked(shard), target_logit)
    merged = reduce_stats(shards[0], target_logit)
    for shard in shards[1:]:
        merged = merge_stats(merged, reduce_stats(shard, target_logit), shard.dtype)
    return finish_stats(merged, target.shape, shards[0].dtype)


def make(rng, shape, axis, storage):
    logits = (rng.standard_normal(shape) * rng.choice([0.1, 3, 30])).astype(storage)
    positions = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(shape[axis], size=positions)
    target = np.where((rng.random(positions) < 0.2) & (len(positions) > 0), -100, target)
    return logits, np.asarray(target)


def assert_the_same(stats, expected):
    for name, array, other in zip(stats._fields, stats, expected, strict=True):
        assert array.dtype == other.dtype
        if name in ("prediction", "rank"):
            np.testing.assert_array_equal(array, other, err_msg=name)
        elif name != "lse":
            rtol = 1e-13 if other.dtype == np.float64 else 4e-6
            np.testing.assert_allclose(array, other, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("storage", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_unsplit_statistics(level, rng, storage, shape, axis, temperature):
    for _ in range(3):
        logits, target = make(rng, shape, axis, storage)
        cuts = random_cuts(rng, shape[axis])
        stats = in_shards(logits, target, axis, cuts, temperature)
        assert_the_same(stats, position_stats(logits, target, axis, -100, temperature))


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "all"])
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=LAYOUTS)
def test_nan_and_infinite_logits(level, dtype, rng, shape, axis, value, share):
    for _ in range(5):
        logits, target = make(rng, shape, axis, dtype)
        values = np.array([np.nan, np.inf, -np.inf]) if value == "all" else np.array([value])
        logits = np.where(rng.random(shape) < share, rng.choice(values, shape), logits).astype(dtype)
        # A position that is all the same.
        np.moveaxis(logits, axis, -1)[..., :][(0,) * (len(shape) - 1)] = values[0]
        stats = in_shards(logits, target, axis, random_cuts(rng, shape[axis]), 1.0)
        assert_the_same(stats, position_stats(logits, target, axis, -100, 1.0))


def test_equal_logits_rank_by_their_numbers(level, dtype):
    logits, target = np.zeros((1, 200), dtype), np.array([130])
    stats = in_shards(logits, target, 1, [3, 70, 131], 1.0)
    assert stats.prediction == [0]
    assert stats.rank == [130]
