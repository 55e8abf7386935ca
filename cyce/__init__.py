"""Cross-entropy of classifiers and its gradient, on the CPU, for NumPy arrays.

`cyce` stands for `torch.nn`, `cyce.functional` for `torch.nn.functional`: the same names, arguments
and answers, without torch. See `cyce.functional.cross_entropy` for the formulas and
`cyce.value_and_grad` for gradients.
"""

# First: it tells why the compiled modules cannot be imported, where that is so.
import cyce._check_build  # noqa: F401
from cyce import functional
from cyce._config import show_config
from cyce._threads import get_num_threads, num_threads, set_num_threads
from cyce.functional import (
    CrossEntropyMeans,
    CrossEntropyStats,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    cross_entropy_stats,
    kl_div,
    linear_cross_entropy,
    log_softmax,
    logsumexp,
    nll_loss,
    one_hot,
    softmax,
    softmin,
)
from cyce.gradients import value_and_grad
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

__version__ = "0.1.0"

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "CrossEntropyMeans",
    "CrossEntropyStats",
    "KLDivLoss",
    "LinearCrossEntropyLoss",
    "LinearCrossEntropyOptions",
    "LogSoftmax",
    "NLLLoss",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_stats",
    "functional",
    "get_num_threads",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "num_threads",
    "one_hot",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmin",
    "value_and_grad",
]
