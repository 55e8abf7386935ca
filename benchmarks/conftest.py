"""Options and inputs of the benchmarks."""

import numpy as np
import pytest
from contenders import CONTENDERS, assert_right

CASES = {
    "64 x 10": (64, 10),
    "1024 x 1000": (1024, 1000),
    "1,000,000 x 10": (1_000_000, 10),
    "2048 x 32000": (2048, 32_000),
    "512 x 128256": (512, 128_256),
    "(8, 21, 512, 512)": (8, 21, 512, 512),
}


def pytest_addoption(parser):
    """Add --contender and --threads."""
    parser.addoption(
        "--contender", choices=CONTENDERS, default="cyce", help="whose cross-entropy to time (default: cyce)"
    )
    parser.addoption("--threads", type=int, default=2, help="number of threads (default: 2)")


@pytest.fixture(scope="session")
def contender(pytestconfig):
    """Return the contender of this process: one, because idle threads of two runtimes slow each other."""
    return CONTENDERS[pytestconfig.getoption("contender")](pytestconfig.getoption("threads"))


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def inputs(request, contender):
    """Return float32 logits N(0, 1) and int64 targets, once the contender has them right."""
    rng = np.random.default_rng(0)
    shape = request.param
    logits = rng.standard_normal(shape, dtype=np.float32)
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    assert_right(contender, logits, target)
    return logits, target
