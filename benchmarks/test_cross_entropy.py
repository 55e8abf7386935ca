"""Times of the cross-entropy and its gradient, one contender per process."""

import pytest


@pytest.mark.benchmark(group="loss")
def test_loss(benchmark, contender, inputs):
    benchmark(contender.loss(*inputs))


@pytest.mark.benchmark(group="loss + fresh gradient")
def test_fresh_gradient(benchmark, contender, inputs):
    benchmark(contender.loss_and_gradient(*inputs))


@pytest.mark.benchmark(group="loss + gradient into a reused buffer")
def test_reused_gradient(benchmark, contender, inputs):
    benchmark(contender.loss_and_reused_gradient(*inputs))
