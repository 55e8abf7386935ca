"""Cross-entropy of classifiers and its gradient, on the CPU, for NumPy arrays.

`cyce` corresponds to `torch.nn`, `cyce.functional` to `torch.nn.functional`: the same names, arguments
and results, without torch. See `cyce.functional.cross_entropy` for the formulas and
`cyce.value_and_grad` for gradients.
"""

import importlib
from typing import TYPE_CHECKING, Any

# First: it explains why the compiled modules cannot be imported if they cannot.
import cyce._check_build  # noqa: F401
from cyce import functional
from cyce._config import show_config
from cyce._targets import SparseTarget
from cyce.evaluation.divergence import Divergence, divergence
from cyce.evaluation.evaluate import evaluate, fit_temperature
from cyce.evaluation.evaluator import Evaluator
from cyce.evaluation.record import Evaluation
from cyce.functional import (
    CrossEntropyMeans,
    CrossEntropyStats,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    cross_entropy_stats,
    distillation_loss,
    entropy,
    focal_loss,
    kl_div,
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_selective_log_softmax,
    log_softmax,
    logsigmoid,
    logsumexp,
    nll_loss,
    one_hot,
    selective_log_softmax,
    sigmoid,
    sigmoid_focal_loss,
    softmax,
    softmin,
    topk_log_softmax,
)
from cyce.gradients import value_and_grad
from cyce.hessians import hessian_vector_product, value_grad_and_hess
from cyce.linear.options import LinearCrossEntropyOptions
from cyce.modules import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    LinearCrossEntropyLoss,
    LogSoftmax,
    NLLLoss,
    Softmax,
    Softmax2d,
    Softmin,
)
from cyce.threads.budget import get_num_threads, num_threads, set_num_threads

if TYPE_CHECKING:
    from cyce import boosting as boosting
    from cyce import plotting as plotting
    from cyce import sharded as sharded

__version__ = "0.1.0"

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "CrossEntropyMeans",
    "CrossEntropyStats",
    "Divergence",
    "Evaluation",
    "Evaluator",
    "KLDivLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "LogSoftmax",
    "NLLLoss",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "SparseTarget",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_stats",
    "distillation_loss",
    "divergence",
    "entropy",
    "evaluate",
    "fit_temperature",
    "focal_loss",
    "functional",
    "get_num_threads",
    "hessian_vector_product",
    "kl_div",
    "linear_cross_entropy",
    "linear_cross_entropy_stats",
    "linear_selective_log_softmax",
    "log_softmax",
    "logsigmoid",
    "logsumexp",
    "nll_loss",
    "num_threads",
    "one_hot",
    "selective_log_softmax",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "sigmoid_focal_loss",
    "softmax",
    "softmin",
    "topk_log_softmax",
    "value_and_grad",
    "value_grad_and_hess",
]

# Modules that are imported when they are first used: they need an extra, or time to import. Type checkers
# know them from the imports under TYPE_CHECKING.
_LAZY = ("boosting", "dask", "plotting", "sharded", "torch")

if not TYPE_CHECKING:
    # To a type checker, a package with __getattr__ has every name.

    def __getattr__(name: str) -> Any:
        """Import a lazy module."""
        if name in _LAZY:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, including lazy modules."""
    return sorted({*__all__, *_LAZY, "__version__"})
