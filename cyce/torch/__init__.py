"""torch's losses, and some that it does not have, computed by cyce: tensors in, tensors out, differentiable.

The functions compute the gradient together with the loss, if `input` requires it, and scale it in the
backward pass. What cyce does not compute goes to torch's own function: other devices and dtypes, functorch,
forward mode, subclasses of tensors, and whatever torch raises an error for. So nothing that works with torch
fails, and errors are torch's.

`distillation_loss`, `focal_loss`, `selective_log_softmax` and `entropy` are not in torch. Calls of these that
cyce does not compute are composed of torch's functions, and errors are cyce's. `selective_log_softmax` and
`entropy` compute their gradient in the backward pass.

Needs torch (the extra `torch`). `cyce.functional` takes tensors, too, but returns arrays.
"""

from cyce.torch.beyond import distillation_loss, entropy, focal_loss, selective_log_softmax
from cyce.torch.functional import (
    binary_cross_entropy_with_logits,
    causal_lm_loss,
    cross_entropy,
    kl_div,
    linear_cross_entropy,
    nll_loss,
)
from cyce.torch.modules import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    LinearCrossEntropyLoss,
    NLLLoss,
)
from cyce.torch.patching import Patch, patch

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LinearCrossEntropyLoss",
    "NLLLoss",
    "Patch",
    "binary_cross_entropy_with_logits",
    "causal_lm_loss",
    "cross_entropy",
    "distillation_loss",
    "entropy",
    "focal_loss",
    "kl_div",
    "linear_cross_entropy",
    "nll_loss",
    "patch",
    "selective_log_softmax",
]
