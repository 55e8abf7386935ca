"""Options and inputs of the pytest-benchmark cases."""

import pytest

from benchmarks.cases import DATA, DTYPES, SHAPES, TARGETS, make_inputs
from benchmarks.contenders import CONTENDERS, Expected, Unsupported

ALL_SHAPES = [(shape, "float32", "indices", "normal") for shape in SHAPES.values()]
SPECIAL = [
    (SHAPES[name], dtype, target, data)
    for name in ("1024 x 1000", "1,000,000 x 10", "(8, 21, 512, 512)")
    for dtype in DTYPES
    for target in TARGETS
    for data in DATA
    # one thing at a time is unusual
    if (dtype, target, data).count("float32") + (target == "indices") + (data == "normal") == 2
]


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


@pytest.fixture(
    scope="module",
    params=ALL_SHAPES + SPECIAL,
    ids=lambda arrays: "-".join(["x".join(map(str, arrays[0].sizes)), *arrays[1:]]),
)
def arrays(request):
    """Return the arrays of a case, what is right of them, and their dtype."""
    inputs = make_inputs(*request.param)
    return inputs, Expected(inputs), request.param[1]


@pytest.fixture
def prepare(contender, arrays):
    """Return a function that makes the call of a mode, once its answer was right."""
    inputs, expected, dtype = arrays

    def call_of(mode):
        try:
            call = getattr(contender, mode.replace(" ", "_"))(inputs)
        except Unsupported as error:
            pytest.skip(str(error))
        expected.check(call(), mode, dtype)
        return call

    return call_of
