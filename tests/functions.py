"""Every function that computes from an array, in a form in which tests can call it.

What holds for all of them is tested over NAMES. A new function is one line of FUNCTIONS.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.gradients import Derivative


class Function(NamedTuple):
    """A function, its arguments, and what its gradient is with respect to."""

    function: Callable[..., Any]
    arguments: Callable[[np.ndarray], dict[str, Any]]
    """Named arguments made from an array (N, C) of probabilities. The first one is `input` or its like."""
    slopes_of: tuple[str, ...] = ("input",)
    """Names of the arguments that it is differentiated by; none if there is no gradient."""
    n_outs: int = 1
    """How many arrays `out` is of, the last ones of the result, where it is no derivative of `slopes_of`."""

    @property
    def n_derivatives(self):
        """How many arrays of the result are derivatives."""
        return self.n_outs if isinstance(self.function, Derivative) else len(self.slopes_of)

    @property
    def callable(self):
        """The function, together with its gradient if there is one."""
        return cyce.value_and_grad(self.function) if self.slopes_of else self.function

    def __call__(self, arguments, **named):
        """Return the result for these arguments."""
        return self.callable(**arguments, **named)

    def out(self, arguments):
        """Return what may be passed as `out`, full of 77; None if there is no such argument."""
        if "out" not in inspect.signature(self.callable).parameters:
            return None
        written = [arguments[name] for name in self.slopes_of]
        written = written or arrays_of(self(arguments))[-self.n_outs :]
        arrays = tuple(np.full(np.shape(array), 77, array.dtype.newbyteorder("=")) for array in written)
        return arrays if len(arrays) > 1 else arrays[0]


def classes(x, n_classes=None):
    """Return a class index for each row; every fifth row has one that is left out, -100."""
    target = np.arange(len(x)) % (x.shape[1] if n_classes is None else n_classes)
    target[4::5] = -100
    return target


def several(x):
    """Return three classes for each row, the first two of which may be the same."""
    number = np.arange(len(x))[:, None]
    return (number * [1, 2, 3] + [0, 0, 1]) % x.shape[1]


def sparse(x):
    """Return a target on three classes for each row, some of them empty."""
    indices = several(x)
    indices[3::5, 1] = -1
    return cyce.SparseTarget(indices, np.broadcast_to([0.5, 0.25, 0.125], indices.shape))


def mask(x, target):
    """Return a class mask that leaves out half of the classes, but no target."""
    array = (np.add.outer(np.arange(len(x)), np.arange(x.shape[1])) % 2).astype(bool)
    if array.size:
        np.put_along_axis(array, target.reshape(len(x), -1) * (target.reshape(len(x), -1) >= 0), True, 1)
    return array


def per_class(x):
    """Return a weight for each class."""
    return np.linspace(0.5, 2, x.shape[1])


FUNCTIONS = {
    "cross_entropy": Function(F.cross_entropy, lambda x: {"input": x, "target": classes(x)}),
    "cross_entropy of probabilities": Function(F.cross_entropy, lambda x: {"input": x, "target": x}),
    "cross_entropy of each position": Function(
        F.cross_entropy, lambda x: {"input": x, "target": classes(x), "reduction": "none"}
    ),
    "cross_entropy with weights": Function(
        F.cross_entropy,
        lambda x: {
            "input": x,
            "target": classes(x),
            "weight": per_class(x),
            "label_smoothing": 0.1,
            "sample_weight": x[:, 0],
        },
    ),
    "cross_entropy of other logits": Function(
        F.cross_entropy,
        lambda x: {"input": x, "target": classes(x), "softcap": 20.0, "temperature": 0.9, "z_loss": 1e-3},
    ),
    "cross_entropy of a sparse target": Function(
        F.cross_entropy,
        lambda x: {"input": x, "target": sparse(x), "weight": per_class(x), "label_smoothing": 0.1},
    ),
    "cross_entropy with a class mask": Function(
        F.cross_entropy,
        lambda x: {
            "input": x,
            "target": classes(x),
            "label_smoothing": 0.1,
            "class_mask": mask(x, classes(x)),
        },
    ),
    "focal_loss": Function(
        F.focal_loss,
        lambda x: {"input": x, "target": classes(x), "gamma": 1.5, "weight": per_class(x), "poly1": 0.5},
    ),
    "sigmoid_focal_loss": Function(
        F.sigmoid_focal_loss, lambda x: {"inputs": x, "targets": x}, slopes_of=("inputs",)
    ),
    "Hessian of cross_entropy": Function(
        cyce.value_grad_and_hess(F.cross_entropy),
        lambda x: {
            "input": x,
            "target": classes(x),
            "weight": per_class(x),
            "label_smoothing": 0.1,
            "z_loss": 0.01,
            "temperature": 0.9,
        },
        slopes_of=(),
        n_outs=2,
    ),
    "Hessian of focal_loss": Function(
        cyce.value_grad_and_hess(F.focal_loss),
        lambda x: {"input": x, "target": classes(x), "gamma": 1.5, "weight": per_class(x), "poly1": 0.5},
        slopes_of=(),
        n_outs=2,
    ),
    "Hessian of binary_cross_entropy_with_logits": Function(
        cyce.value_grad_and_hess(F.binary_cross_entropy_with_logits),
        lambda x: {"input": x, "target": x, "weight": x, "pos_weight": per_class(x)},
        slopes_of=(),
        n_outs=2,
    ),
    "Hessian of sigmoid_focal_loss": Function(
        cyce.value_grad_and_hess(F.sigmoid_focal_loss),
        lambda x: {"inputs": x, "targets": x},
        slopes_of=(),
        n_outs=2,
    ),
    "product with the Hessian of cross_entropy": Function(
        cyce.hessian_vector_product(F.cross_entropy),
        lambda x: {"input": x, "target": classes(x), "vector": x[::-1], "weight": per_class(x)},
        slopes_of=(),
    ),
    "product with the Hessian of binary_cross_entropy_with_logits": Function(
        cyce.hessian_vector_product(F.binary_cross_entropy_with_logits),
        lambda x: {"input": x, "target": x, "vector": x[::-1], "pos_weight": per_class(x)},
        slopes_of=(),
    ),
    "sigmoid": Function(F.sigmoid, lambda x: {"input": x}, slopes_of=()),
    "gradient of sigmoid": Function(F.sigmoid, lambda x: {"input": x}),
    "logsigmoid": Function(F.logsigmoid, lambda x: {"input": x}, slopes_of=()),
    "gradient of logsigmoid": Function(F.logsigmoid, lambda x: {"input": x}),
    "selective_log_softmax": Function(
        F.selective_log_softmax,
        lambda x: {"logits": x, "index": several(x), "return_entropy": True, "temperature": 0.9},
        slopes_of=("logits",),
    ),
    "entropy": Function(F.entropy, lambda x: {"logits": x}, slopes_of=("logits",)),
    "topk_log_softmax": Function(
        F.topk_log_softmax, lambda x: {"logits": x, "k": min(3, x.shape[1])}, slopes_of=()
    ),
    "distillation_loss": Function(
        F.distillation_loss,
        lambda x: {"student_logits": x, "teacher_logits": x[::-1], "temperature": 0.7},
        slopes_of=("student_logits",),
    ),
    "distillation_loss, reverse": Function(
        F.distillation_loss,
        lambda x: {
            "student_logits": x,
            "teacher_logits": x[::-1],
            "divergence": "reverse",
            "sample_weight": x[:, 0],
        },
        slopes_of=("student_logits",),
    ),
    "distillation_loss, Jensen-Shannon": Function(
        F.distillation_loss,
        lambda x: {
            "student_logits": x,
            "teacher_logits": x[::-1],
            "divergence": "js",
            "beta": 0.25,
            "reduction": "none",
        },
        slopes_of=("student_logits",),
    ),
    "cross_entropy_stats": Function(
        F.cross_entropy_stats, lambda x: {"input": x, "target": classes(x)}, slopes_of=()
    ),
    "nll_loss": Function(
        F.nll_loss, lambda x: {"input": x, "target": classes(x), "weight": per_class(x), "reduction": "sum"}
    ),
    "linear_cross_entropy": Function(
        F.linear_cross_entropy,
        lambda x: {"input": x, "linear_weight": x[:300], "target": classes(x, max(1, len(x[:300])))},
        slopes_of=("input", "linear_weight"),
    ),
    "linear_cross_entropy with a bias": Function(
        F.linear_cross_entropy,
        lambda x: {
            "input": x,
            "linear_weight": x[:300],
            "linear_bias": x[:300, 0],
            "target": classes(x, max(1, len(x[:300]))),
        },
        slopes_of=("input", "linear_weight", "linear_bias"),
    ),
    "linear_cross_entropy of a sparse target": Function(
        F.linear_cross_entropy,
        lambda x: {
            "input": x,
            # A copy: for the product of an array with itself, BLAS has a function of its own.
            "linear_weight": np.array(x[:300]),
            "target": sparse(x[:, : max(1, len(x[:300]))]),
        },
        slopes_of=("input", "linear_weight"),
    ),
    "linear_cross_entropy_stats": Function(
        F.linear_cross_entropy_stats,
        lambda x: {"input": x, "linear_weight": x[:300], "target": classes(x, max(1, len(x[:300])))},
        slopes_of=(),
    ),
    "linear_selective_log_softmax": Function(
        F.linear_selective_log_softmax,
        lambda x: {
            "input": x,
            "linear_weight": np.array(x[:300]),
            "index": np.arange(len(x)) % max(1, len(x[:300])),
            "return_entropy": True,
        },
        slopes_of=("input", "linear_weight"),
    ),
    "binary_cross_entropy_with_logits": Function(
        F.binary_cross_entropy_with_logits, lambda x: {"input": x, "target": x}
    ),
    "binary_cross_entropy_with_logits with weights": Function(
        F.binary_cross_entropy_with_logits,
        lambda x: {"input": x, "target": x, "weight": x, "pos_weight": per_class(x), "reduction": "sum"},
    ),
    "binary_cross_entropy": Function(F.binary_cross_entropy, lambda x: {"input": x, "target": x}),
    "kl_div": Function(F.kl_div, lambda x: {"input": x, "target": x, "reduction": "sum"}),
    "kl_div, broadcast": Function(
        F.kl_div, lambda x: {"input": x, "target": np.stack([x, x]), "reduction": "sum"}
    ),
    "kl_div of logarithms": Function(
        F.kl_div, lambda x: {"input": x, "target": x, "reduction": "batchmean", "log_target": True}
    ),
    "softmax": Function(F.softmax, lambda x: {"input": x, "dim": 1}, slopes_of=()),
    "log_softmax": Function(F.log_softmax, lambda x: {"input": x, "dim": 1}, slopes_of=()),
    "gradient of softmax": Function(F.softmax, lambda x: {"input": x, "dim": 1}),
    "gradient of log_softmax": Function(F.log_softmax, lambda x: {"input": x, "dim": 1}),
    "gradient of logsumexp": Function(F.logsumexp, lambda x: {"input": x, "dim": (0, 1)}),
    "softmax with a class mask": Function(
        F.softmax,
        lambda x: {"input": x, "dim": 1, "class_mask": mask(x, np.arange(len(x)) % x.shape[1])},
        slopes_of=(),
    ),
    "softmin": Function(F.softmin, lambda x: {"input": x, "dim": 1}, slopes_of=()),
    "softmax over rows": Function(F.softmax, lambda x: {"input": x, "dim": 0}, slopes_of=()),
    "logsumexp": Function(F.logsumexp, lambda x: {"input": x, "dim": 1}, slopes_of=()),
    "one_hot": Function(
        F.one_hot, lambda x: {"tensor": np.arange(len(x)) % 7, "num_classes": 7}, slopes_of=()
    ),
}


# Variants of others, which run in the integration stage.
RARE = {
    "Hessian of binary_cross_entropy_with_logits",
    "Hessian of sigmoid_focal_loss",
    "cross_entropy of each position",
    "distillation_loss, reverse",
    "gradient of logsigmoid",
    "gradient of log_softmax",
    "gradient of logsumexp",
    "kl_div of logarithms",
    "kl_div, broadcast",
    "linear_cross_entropy with a bias",
    "logsigmoid",
    "softmin",
    "product with the Hessian of binary_cross_entropy_with_logits",
    "softmax with a class mask",
    "linear_cross_entropy of a sparse target",
    "distillation_loss, Jensen-Shannon",
    "linear_selective_log_softmax",
}
NAMES = [pytest.param(name, marks=pytest.mark.integration) if name in RARE else name for name in FUNCTIONS]
"""Names of all functions, to parametrize a test by."""


def arrays_of(result):
    """Return all arrays and scalars of a result, which may be tuples in tuples."""
    if isinstance(result, tuple):
        return [array for part in result for array in arrays_of(part)]
    return [np.asarray(result)]


def bits(result):
    """Return the bytes of a result."""
    return [array.tobytes() for array in arrays_of(result)]
