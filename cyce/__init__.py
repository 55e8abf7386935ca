"""Cross-entropy of classifiers and its gradient, on the CPU, for NumPy arrays.

`cyce` stands for `torch.nn`, `cyce.functional` for `torch.nn.functional`: the same names, arguments
and answers, without torch. See `cyce.functional.cross_entropy` for the formulas and
`cyce.value_and_grad` for gradients.
"""

from cyce import functional
from cyce._config import show_config
from cyce._threads import get_num_threads, set_num_threads
from cyce.functional import cross_entropy
from cyce.gradients import value_and_grad
from cyce.modules import CrossEntropyLoss

__version__ = "0.1.0"

__all__ = [
    "CrossEntropyLoss",
    "cross_entropy",
    "functional",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "value_and_grad",
]
