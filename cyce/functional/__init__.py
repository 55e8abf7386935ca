"""torch's loss functions, as in `torch.nn.functional`; start reading with `cross_entropy`."""

from cyce.functional._cross_entropy import (
    CrossEntropyMeans,
    CrossEntropyStats,
    cross_entropy,
    cross_entropy_stats,
)
from cyce.functional._distillation import distillation_loss
from cyce.functional._elementwise import binary_cross_entropy, binary_cross_entropy_with_logits, kl_div
from cyce.functional._focal import focal_loss, sigmoid_focal_loss
from cyce.functional._linear import (
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_selective_log_softmax,
)
from cyce.functional._log_probabilities import entropy, selective_log_softmax, topk_log_softmax
from cyce.functional._nll_loss import nll_loss
from cyce.functional._one_hot import one_hot
from cyce.functional._sigmoid import logsigmoid, sigmoid
from cyce.functional._softmax import log_softmax, logsumexp, softmax, softmin

__all__ = [
    "CrossEntropyMeans",
    "CrossEntropyStats",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cross_entropy_stats",
    "distillation_loss",
    "entropy",
    "focal_loss",
    "kl_div",
    "linear_cross_entropy",
    "linear_cross_entropy_stats",
    "linear_selective_log_softmax",
    "log_softmax",
    "logsigmoid",
    "logsumexp",
    "nll_loss",
    "one_hot",
    "selective_log_softmax",
    "sigmoid",
    "sigmoid_focal_loss",
    "softmax",
    "softmin",
    "topk_log_softmax",
]


def __dir__() -> list[str]:
    """List the public names; the modules of the families are internals."""
    return sorted(__all__)
