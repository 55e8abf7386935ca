"""What the tests of cyce.torch share: logits, and which way a loss was computed."""

import torch

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
NAMES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "kl_div", "linear_cross_entropy")
TORCH = {name: getattr(torch.nn.functional, name) for name in NAMES}

LOGITS = torch.tensor([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [1.0, 1.5, 0.0]])
TARGET = torch.tensor([0, 2, 1])


def is_by_cyce(loss):
    """Return whether a loss with a gradient was computed by cyce."""
    return loss.grad_fn.name() == "DifferentiableBackward"
