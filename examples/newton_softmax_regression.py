"""
Softmax regression by Newton's method
=====================================

Fit softmax regression by Newton's method: SciPy's trust region, with Hessian-vector products of cyce.

Usage::

    python examples/newton_softmax_regression.py

The objective is that of scikit-learn's LogisticRegression(C=1.0). Probabilities and times are compared with
scikit-learn's, on dense and on sparse pixels, in one thread. It needs scipy and scikit-learn.
"""

import functools
import timeit
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import cyce
import cyce.functional as F
from cyce import _demo

Array = NDArray[np.float64]

C = 1.0
EXCESS = 1e-8
loss_and_gradient = cyce.value_and_grad(F.cross_entropy)
hessian_product = cyce.hessian_vector_product(F.cross_entropy)


class Objective:
    """Mean cross-entropy plus the L2 penalty of the weights, as a function of flat parameters."""

    def __init__(self, inputs: Any, target: NDArray[Any]) -> None:
        self.inputs, self.transposed, self.target = inputs, inputs.T, target
        self.shape = inputs.shape[1], int(target.max()) + 1
        self.penalty = np.full((inputs.shape[1], 1), 1 / (C * len(target)))
        # The last column of the inputs is all ones, for the intercepts. They have no penalty.
        self.penalty[-1] = 0
        self.at, self.work = np.full(self.shape, np.nan), np.empty((len(target), self.shape[1]))

    def logits(self, parameters: Array) -> Array:
        """Return the logits, computed once for all calls with the same parameters."""
        # Not always those of the last evaluation: SciPy goes back when it rejects a step.
        if not np.array_equal(parameters, self.at):
            self.at = parameters.copy()
            self.logits_there: Array = self.inputs @ parameters
        return self.logits_there

    def value_and_gradient(self, flat: Array) -> tuple[float, Array]:
        """Return the objective and its gradient."""
        parameters = flat.reshape(self.shape)
        loss, gradient = loss_and_gradient(self.logits(parameters), self.target, out=self.work)
        penalty = self.penalty * parameters
        gradient = self.transposed @ gradient + penalty
        return float(loss + np.vdot(penalty, parameters) / 2), gradient.ravel()

    def hessian_product(self, flat: Array, direction: Array) -> Array:
        """Return the product of the Hessian with a direction."""
        logits, vector = self.logits(flat.reshape(self.shape)), direction.reshape(self.shape)
        product = hessian_product(logits, self.target, self.inputs @ vector, out=self.work)
        return (self.transposed @ product + self.penalty * vector).ravel()


def newton(inputs: Any, digits: NDArray[Any], tolerance: float) -> Array:
    """Return the parameters, where the norm of the gradient is below the tolerance."""
    objective = Objective(inputs, digits)
    start = np.zeros(objective.shape).ravel()
    options = {"method": "trust-ncg", "hessp": objective.hessian_product, "options": {"gtol": tolerance}}
    return optimize.minimize(objective.value_and_gradient, start, jac=True, **options).x


def scikit_learn(solver: str, pixels: Any, digits: NDArray[Any], tolerance: float) -> Array:
    """Return the parameters that scikit-learn finds."""
    model = LogisticRegression(C=C, solver=solver, tol=tolerance, max_iter=100_000).fit(pixels, digits)
    return np.vstack([model.coef_.T, model.intercept_]).ravel()


def compare(pixels: Any, inputs: Any, digits: NDArray[Any]) -> None:
    """Print times, and differences from scikit-learn's probabilities."""
    objective = Objective(inputs, digits)
    fits: dict[str, Any] = {"cyce and SciPy's trust-ncg": functools.partial(newton, inputs, digits)}
    for solver in ("newton-cg", "lbfgs"):
        fits[f"scikit-learn's {solver}"] = functools.partial(scikit_learn, solver, pixels, digits)
    converged = [fit(1e-8 if name.startswith("cyce") else 1e-10) for name, fit in fits.items()]
    ours, *others = (F.softmax(inputs @ flat.reshape(objective.shape), 1) for flat in converged)
    for name, theirs in zip(list(fits)[1:], others, strict=True):
        print(f"  probabilities differ from {name:24} by at most {np.abs(ours - theirs).max():.1e}")
    highest = (1 + EXCESS) * min(objective.value_and_gradient(flat)[0] for flat in converged)
    for name, fit in fits.items():
        # The loosest tolerance that suffices.
        tolerances = (10**-exponent for exponent in np.arange(3, 12, 0.5))
        tolerance = next(t for t in tolerances if objective.value_and_gradient(fit(t))[0] <= highest)
        fastest = min(timeit.repeat(functools.partial(fit, tolerance), number=1, repeat=5))
        print(f"  {name:26} {1e3 * fastest:6.1f} ms, with tolerance {tolerance:.1e}")


def main() -> None:
    """Compare on dense and on sparse pixels."""
    pixels, digits = _demo.load_digits()
    inputs = np.column_stack([pixels, np.ones(len(pixels))])
    print(f"Times in one thread, to an objective within {EXCESS:g} of the optimum, relatively")
    with threadpool_limits(1):
        for name, of_kind in (("dense", np.ascontiguousarray), ("sparse", sparse.csr_array)):
            print(f"{name} pixels:")
            compare(of_kind(inputs[:, :-1]), of_kind(inputs), digits)


if __name__ == "__main__":
    main()
