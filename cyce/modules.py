"""torch's loss modules: settings held in an object that calls `cyce.functional`."""

from collections.abc import Callable
from typing import Any

from cyce import functional
from cyce._losses import LossModule

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(LossModule):
    """Cross-entropy between logits and targets, as `torch.nn.CrossEntropyLoss`.

    The settings of `cyce.functional.cross_entropy`, held in an object. As in torch, they are plain
    attributes and nothing is checked before the loss is computed.

    Parameters
    ----------
    weight : array_like of shape (C,), default=None
        A weight for each class.
    size_average : bool, default=None
        Deprecated, see `reduction`.
    ignore_index : int, default=-100
        Target value of the positions that are left out.
    reduce : bool, default=None
        Deprecated, see `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How the losses of the positions become one number, or that they stay as they are.
    label_smoothing : float in [0, 1], default=0.0
        How much of each target is spread evenly over all classes.

    Warns
    -----
    DeprecationWarning
        If `size_average` or `reduce` is given.

    See Also
    --------
    cyce.functional.cross_entropy : The formula, the shapes, the errors.
    cyce.value_and_grad : Loss and gradient in one pass.

    Examples
    --------
    >>> import cyce
    >>> criterion = cyce.CrossEntropyLoss(ignore_index=-1)
    >>> loss = criterion([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5], [9.0, 9.0, 9.0]], [0, 2, -1])
    >>> print(f"{loss:.4f}")
    0.2577
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def loss_and_settings(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return `cyce.functional.cross_entropy` and its keyword arguments."""
        return functional.cross_entropy, {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
        }
