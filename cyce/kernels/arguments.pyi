"""Types of the compiled `arguments.pyx`: what the facade hands to a kernel."""

from typing import Any

from numpy.typing import NDArray

class CrossEntropyArguments:
    """All arrays are native and aligned, and float or double like the logits unless stated otherwise.

    None, or 0 for numbers, means unset. Exactly one of target and probabilities is set.
    """

    logits: Any
    """The positions' axes and, at `axis`, that of the classes; any strides."""
    axis: int
    target: Any
    """Class indices of any integer dtype, one for each position, C-contiguous."""
    target_logit: Any
    """Of a shard: the logits of the targets, in whatever shard these are, C-contiguous. Its states then have
    what statistics need."""
    probabilities: Any
    """Class probabilities of the logits' shape, float or double, any strides."""
    weight: Any
    """Of the classes of the logits, (n_classes,)."""
    ignore_index: int
    label_smoothing: float
    sample_weight: Any
    """One for each position, C-contiguous."""
    mean: bool
    """Whether the sum of the losses is divided by the sum of the weights."""
    normalizer: float
    """What it is divided by instead."""
    zero_if_empty: bool
    z_loss: float
    softcap: float
    temperature: float
    upstream: float
    grad_output: Any
    """The upstream gradient of each position, C-contiguous."""
    loss_out: Any
    """One for each position, C-contiguous."""
    grad_out: Any
    """Of the logits' shape, float or double, any strides; may be the logits."""
    stats_out: list[NDArray[Any]] | None
    """(lse, probability, entropy, prediction, rank), one for each position, the last two int64; and, if
    wanted, (confidence, brier_score, slope, variance)."""
    first_class: int
    """Of a shard: the number of its first class."""
    n_all_classes: int
    """Of a shard: the number of classes of all shards."""
    num_threads: int

    def copy(self) -> CrossEntropyArguments: ...

class ElementwiseArguments:
    """All arrays have the shape and the dtype of the input, any strides, and are native and aligned."""

    input: Any
    target: Any
    weight: Any
    pos_weight: Any
    divisor: float
    """What the sum of the losses is divided by."""
    upstream: float
    grad_output: Any
    loss_out: Any
    grad_out: Any
    """May be the input."""
    num_threads: int
