"""torch's loss functions, as in `torch.nn.functional`; start reading with `cross_entropy`."""

from cyce.functional._cross_entropy import (
    CrossEntropyMeans,
    CrossEntropyStats,
    cross_entropy,
    cross_entropy_stats,
)
from cyce.functional._elementwise import binary_cross_entropy, binary_cross_entropy_with_logits, kl_div
from cyce.functional._linear import linear_cross_entropy
from cyce.functional._nll_loss import nll_loss
from cyce.functional._one_hot import one_hot
from cyce.functional._softmax import log_softmax, logsumexp, softmax, softmin

__all__ = [
    "CrossEntropyMeans",
    "CrossEntropyStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_stats",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "one_hot",
    "softmax",
    "softmin",
]


def __dir__() -> list[str]:
    """List the public names; the modules of the families are internals."""
    return sorted(__all__)
