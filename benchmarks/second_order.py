"""Time gradients together with Hessians: `python -m benchmarks.second_order --help`.

Raw scores as boosting has them, in two layouts: float32 in C order (XGBoost), float64 in Fortran order
(LightGBM). cyce's objectives stand beside the loss of scikit-learn's boosting and beside NumPy. Each is in a
process of its own, which is stopped while another one is at work; answers are compared with NumPy's first.
`--rounds-of-boosting` times whole rounds of the libraries, with their own objectives and cyce's.
"""

import itertools
import sys
import time
from typing import NamedTuple

import numpy as np

from benchmarks import tables, turns

SHAPES = ("500000 x 10", "10000 x 1000")
LAYOUTS = {"xgboost": ("float32", "C"), "lightgbm": ("float64", "F")}
CHECKED_ROWS = 1000
# Columns of the data in a round of boosting.
N_FEATURES = 8


class Inputs(NamedTuple):
    """What all contenders compute from, the same in every process."""

    scores: np.ndarray
    labels: np.ndarray
    """Floating point, as the libraries have them."""


def make_inputs(shape, library):
    """Return raw scores of scale 2, and labels."""
    dtype, order = LAYOUTS[library]
    rng = np.random.Generator(np.random.SFC64(0))
    scores = 2 * rng.standard_normal(shape, dtype=np.float32)
    labels = rng.integers(shape[1], size=shape[0]).astype(np.float32)
    return Inputs(np.asarray(scores, dtype, order=order), labels)


def factor_of(library, n_classes):
    """Return what the library's own Hessian is, times that of the loss."""
    return 2.0 if library == "xgboost" else n_classes / (n_classes - 1)


def cyce_call(inputs, library, _):
    """Return the call of cyce's objective."""
    from cyce import boosting

    make = boosting.xgboost_objective if library == "xgboost" else boosting.lightgbm_objective
    objective = make(n_classes=inputs.scores.shape[1], interface="sklearn")
    return lambda: objective(inputs.labels, inputs.scores)


def numpy_call(inputs, library, _):
    """Return the call of the same in NumPy."""
    scores, factor = inputs.scores, factor_of(library, inputs.scores.shape[1])
    indices, rows = inputs.labels.astype(int), np.arange(len(inputs.scores))

    def call():
        softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        hessian = np.maximum(factor * softmax * (1 - softmax), 1e-16)
        softmax[rows, indices] -= 1
        return softmax, hessian

    return call


def sklearn_call(inputs, library, n_threads):
    """Return the call of scikit-learn's own loss, and the Hessian's factor."""
    from sklearn._loss import HalfMultinomialLoss

    loss = HalfMultinomialLoss(n_classes=inputs.scores.shape[1])
    labels = inputs.labels.astype(inputs.scores.dtype)
    factor = factor_of(library, inputs.scores.shape[1])

    def call():
        gradient, hessian = loss.gradient_hessian(labels, inputs.scores, n_threads=n_threads)
        np.multiply(hessian, factor, out=hessian)
        return gradient, hessian

    return call


CONTENDERS = {"cyce": cyce_call, "scikit-learn": sklearn_call, "NumPy": numpy_call}


class Worker:
    """A contender with the case that it is at."""

    def __init__(self, name, n_threads):
        self._make_call = CONTENDERS[name]
        self._n_threads = n_threads
        self._call = None
        module = __import__({"scikit-learn": "sklearn"}.get(name, name.lower()))
        if name == "cyce":
            module.set_num_threads(n_threads)
        self.versions = {module.__name__: module.__version__}

    def prepare(self, library, shape):
        """Check the answer on some rows, and make the call."""
        few = make_inputs((min(shape[0], CHECKED_ROWS), shape[1]), library)
        answers = self._make_call(few, library, self._n_threads)()
        exact = Inputs(few.scores.astype(float), few.labels)
        for answer, expected in zip(answers, numpy_call(exact, library, 1)(), strict=True):
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-6)
        self._call = self._make_call(make_inputs(shape, library), library, self._n_threads)

    def round(self, seconds):
        """Call for some time; return the shortest time of a call, in seconds."""
        return turns.shortest(self._call, seconds)


# ---------------------------------------------------------------------------------------------
# Whole rounds of boosting


def boosting_round(library, objective, shape, n_threads, n_rounds):
    """Return the seconds of a round of boosting, after two."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((shape[0], N_FEATURES), dtype=np.float32)
    labels = (features[:, :5] @ rng.standard_normal((5, shape[1]))).argmax(axis=1)
    if library == "xgboost":
        import xgboost

        params = {"num_class": shape[1], "nthread": n_threads, "base_score": 0.5, "tree_method": "hist"}
        params["disable_default_eval_metric"] = True
        named = {} if objective else {"objective": "multi:softprob"}
        data = xgboost.DMatrix(features, label=labels)
        booster = xgboost.train(params | named, data, 2, obj=objective)
        began = time.perf_counter()
        xgboost.train(params | named, data, n_rounds, obj=objective, xgb_model=booster)
        return (time.perf_counter() - began) / n_rounds
    import lightgbm

    params = {"num_class": shape[1], "num_threads": n_threads, "boost_from_average": False, "verbose": -1}
    params["objective"] = objective or "multiclass"
    data = lightgbm.Dataset(features, label=labels, params={"verbose": -1}).construct()
    seconds = []
    lightgbm.train(params, data, 2)
    for n in (2, 2 + n_rounds):
        began = time.perf_counter()
        lightgbm.train(params, data, n)
        seconds.append(time.perf_counter() - began)
    return (seconds[1] - seconds[0]) / n_rounds


def time_boosting(library, shape, n_threads, n_rounds):
    """Return milliseconds of a round with the built-in objective and with cyce's, the shorter of two each."""
    from cyce import boosting

    make = boosting.xgboost_objective if library == "xgboost" else boosting.lightgbm_objective
    objectives = (None, make(n_classes=shape[1]))
    times = [
        [boosting_round(library, objective, shape, n_threads, n_rounds) for objective in objectives]
        for _ in range(2)
    ]
    return 1e3 * np.min(times, axis=0)


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.second_order",
        "Time gradients together with Hessians, and rounds of boosting.",
        rounds=3,
        seconds=0.5,
        contenders=CONTENDERS,
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="'ROWS x CLASSES'")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument(
        "--rounds-of-boosting",
        type=int,
        default=0,
        metavar="N",
        help="also time N rounds of boosting on as many rows and classes as the first shape",
    )
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.second_order", settings, arguments)
    run.begin_table("Gradient and Hessian", ["", "layout", *settings.contenders])
    shapes = {name: tuple(map(int, name.split(" x "))) for name in settings.shapes}
    for name, library in itertools.product(settings.shapes, settings.layouts):
        labels = name, " ".join(LAYOUTS[library])
        run.time(name, labels, Worker, (library, shapes[name]), [settings.seconds])
    if settings.rounds_of_boosting:
        run.begin_table("A round of boosting", ["", "its own objective", "cyce's"])
    for library in settings.layouts if settings.rounds_of_boosting else ():
        shape = shapes[settings.shapes[0]]
        built_in, ours = time_boosting(library, shape, settings.threads, settings.rounds_of_boosting)
        run.row(library, f"{built_in:.0f}", f"{ours:.0f} ({ours / built_in:.2f}x)")
    return run.end(
        f"Milliseconds, medians over {settings.rounds} rounds of each round's shortest call; in parentheses, "
        f"how many times as long as the first. Boosting is of {settings.shapes[0]}, the shorter of two means"
    )


if __name__ == "__main__":
    sys.exit(main())
