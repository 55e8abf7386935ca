"""Times of the cross-entropy and its gradient, one contender per process."""

import pytest


@pytest.mark.benchmark(group="loss")
def test_loss(benchmark, prepare):
    benchmark(prepare("loss"))


@pytest.mark.benchmark(group="loss + fresh gradient")
def test_fresh_gradient(benchmark, prepare):
    benchmark(prepare("fresh"))


@pytest.mark.benchmark(group="loss + gradient into a reused buffer")
def test_reused_gradient(benchmark, prepare):
    benchmark(prepare("reused"))
