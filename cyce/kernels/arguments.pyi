"""Types of the compiled `arguments.pyx`: what the facade hands to a kernel."""

from typing import Any

from numpy.typing import NDArray

class CrossEntropyArguments:
    """All arrays are native and aligned, and float or double like the logits unless stated otherwise.

    None, or 0 for numbers, means unset. At most one of target, probabilities and chosen is set.
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
    chosen: Any
    """Classes that carry masses of their own, or that log-probabilities are wanted of: int64, (n_positions,
    n_chosen), C-contiguous, of this call alone."""
    chosen_mass: Any
    """What they carry, C-contiguous."""
    class_mask: Any
    """Bool, of the logits' shape, any strides; False where there is no such class."""
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
    is_focal: bool
    """Whether losses are times (1 - p)**gamma, with poly1 * (1 - p)**(gamma + 1)."""
    gamma: float
    poly1: float
    softcap: float
    temperature: float
    upstream: float
    grad_output: Any
    """The upstream gradient of each position, C-contiguous."""
    loss_out: Any
    """One for each position, C-contiguous."""
    grad_out: Any
    """Of the logits' shape, float or double, any strides; may be the logits."""
    hessian_out: Any
    """The diagonal of the Hessian, of the logits' shape, any strides and storage; along with grad_out."""
    hessian_factor: float
    """What the Hessian is multiplied by, before `hessian_floor` is the least that it is."""
    hessian_floor: float
    vector: Any
    """Of the logits' shape, any strides and storage. Then grad_out becomes its product with the Hessian."""
    stats_out: list[NDArray[Any]] | None
    """(lse, probability, entropy, prediction, rank), one for each position, the last two int64; and, if
    wanted, (confidence, brier_score, slope, variance)."""
    chosen_out: Any
    """The log-softmax of the chosen classes, (n_positions, n_chosen), C-contiguous."""
    entropy_grad: Any
    """The upstream gradient of the entropy of each position, C-contiguous; part of grad_out."""
    entropy_out: Any
    """One for each position, C-contiguous."""
    first_class: int
    """Of a shard: the number of its first class."""
    n_all_classes: int
    """Of a shard: the number of classes of all shards."""
    num_threads: int

    def copy(self) -> CrossEntropyArguments: ...

class DistillationArguments:
    """Logits are native and aligned, in any storage and with any strides. None means unset."""

    student: Any
    """The positions' axes and, at `axis`, that of the classes."""
    teacher: Any
    """Of the same shape; of the formula "product", any numbers."""
    axis: int
    formula: str
    """"forward", "reverse", "js" or "product"; see distillation.pxd."""
    temperature: float
    beta: float
    """Of "js"."""
    class_mask: Any
    """Of "product": as of the cross-entropy."""
    counts: Any
    """Bool, one for each position, C-contiguous; the others have value and gradient 0."""
    scale: Any
    """Factors of the gradient, float64, one for each position, C-contiguous; 1 if unset."""
    value_out: Any
    """Float64, one for each position, C-contiguous."""
    grad_out: Any
    """Of the logits' shape, any strides; may be the student's."""
    num_threads: int

class ElementwiseArguments:
    """All arrays have the shape and the dtype of the input, any strides, and are native and aligned."""

    input: Any
    target: Any
    weight: Any
    pos_weight: Any
    alpha: float
    """Of sigmoid_focal_loss, as is gamma."""
    gamma: float
    divisor: float
    """What the sum of the losses is divided by."""
    upstream: float
    grad_output: Any
    loss_out: Any
    grad_out: Any
    """May be the input."""
    is_grad_new: bool
    """Whether it is dropped where an error is raised, and need not keep what it has."""
    hessian_out: Any
    hessian_factor: float
    hessian_floor: float
    vector: Any
    """What the Hessian is multiplied by, too."""
    num_threads: int
