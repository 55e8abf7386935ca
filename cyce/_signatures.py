"""Types for type checkers: of arguments, and of what `value_and_grad` and its like take and return.

A `ParamSpec` cannot add keyword parameters to a signature, so that each loss has two protocols here. The
first matches this loss alone: where several overloads of `value_and_grad` match, mypy takes the result to be
Any. The second is the signature of the loss with `grad_output` and `out`. It returns `Pair`, or `Triple`
where the Hessian comes along: the value depends on `reduction`, and the gradient is `out` if that is given.

cross_entropy can be called like nll_loss, and binary_cross_entropy_with_logits like binary_cross_entropy.
Only a wider type of one argument tells the latter from the former: `ignore_index: SupportsIndex` of nll_loss
and `reduce: int | None` of binary_cross_entropy.
"""

from typing import Any, Literal, Protocol, SupportsIndex, TypeAlias, TypeVar

from cyce.linear.options import LinearCrossEntropyOptions

Reduction: TypeAlias = Literal["none", "mean", "sum"]
KLDivReduction: TypeAlias = Literal["none", "batchmean", "mean", "sum"]

Pair: TypeAlias = tuple[Any, Any]
Triple: TypeAlias = tuple[Any, Any, Any]
Result = TypeVar("Result", covariant=True)


class ModuleDerivative(Protocol[Result]):
    """Of a module; which settings a call may give differs between modules."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        *,
        sample_weight: Any = None,
        normalizer: float | None = None,
        class_mask: Any = None,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class CrossEntropy(Protocol):
    """cross_entropy, by `label_smoothing` and `z_loss`."""

    def __call__(self, input: Any, target: Any, *, label_smoothing: float = ..., z_loss: float = ...) -> Any:
        """Return the loss."""


class CrossEntropyDerivative(Protocol[Result]):
    """Of cross_entropy."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        axis: int | None = None,
        sample_weight: Any = None,
        normalizer: float | None = None,
        empty: Literal["nan", "zero"] = "nan",
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        class_mask: Any = None,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class FocalLoss(Protocol):
    """focal_loss, by `gamma`."""

    def __call__(self, input: Any, target: Any, *, gamma: float = ...) -> Any:
        """Return the loss."""


class FocalLossDerivative(Protocol[Result]):
    """Of focal_loss."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        gamma: float = 2.0,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        poly1: float = 0.0,
        axis: int | None = None,
        sample_weight: Any = None,
        normalizer: float | None = None,
        empty: Literal["nan", "zero"] = "nan",
        softcap: float | None = None,
        temperature: float = 1.0,
        class_mask: Any = None,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class NLLLoss(Protocol):
    """nll_loss, by the type of `ignore_index`."""

    def __call__(self, input: Any, target: Any, *, ignore_index: SupportsIndex = ...) -> Any:
        """Return the loss."""


class NLLLossDerivative(Protocol[Result]):
    """Of nll_loss."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: SupportsIndex = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        *,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class BinaryCrossEntropyWithLogits(Protocol):
    """binary_cross_entropy_with_logits, by `pos_weight`."""

    def __call__(self, input: Any, target: Any, *, pos_weight: Any = ...) -> Any:
        """Return the loss."""


class BinaryCrossEntropyWithLogitsDerivative(Protocol[Result]):
    """Of binary_cross_entropy_with_logits."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        pos_weight: Any = None,
        *,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class BinaryCrossEntropy(Protocol):
    """binary_cross_entropy, by `weight` and the type of `reduce`."""

    def __call__(self, input: Any, target: Any, *, weight: Any = ..., reduce: int | None = ...) -> Any:
        """Return the loss."""


class BinaryCrossEntropyDerivative(Protocol[Result]):
    """Of binary_cross_entropy."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: int | None = None,
        reduction: Reduction = "mean",
        *,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class KLDiv(Protocol):
    """kl_div, by `log_target`."""

    def __call__(self, input: Any, target: Any, *, log_target: bool = ...) -> Any:
        """Return the loss."""


class KLDivDerivative(Protocol[Result]):
    """Of kl_div."""

    __name__: str

    def __call__(
        self,
        input: Any,
        target: Any,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: KLDivReduction = "mean",
        log_target: bool = False,
        *,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class HessianProduct(Protocol):
    """Of `hessian_vector_product`; which arguments may follow differs between losses."""

    __name__: str

    def __call__(
        self, input: Any, target: Any, vector: Any, *, grad_output: Any = None, out: Any = None, **named: Any
    ) -> Any:
        """Return the product."""


class LinearCrossEntropy(Protocol):
    """linear_cross_entropy, by `linear_weight`."""

    def __call__(self, input: Any, linear_weight: Any, target: Any) -> Any:
        """Return the loss."""


class LinearCrossEntropyDerivative(Protocol[Result]):
    """Of linear_cross_entropy."""

    __name__: str

    def __call__(
        self,
        input: Any,
        linear_weight: Any,
        target: Any,
        *,
        linear_bias: Any = None,
        weight: Any = None,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
        sample_weight: Any = None,
        normalizer: float | None = None,
        empty: Literal["nan", "zero"] = "nan",
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        class_mask: Any = None,
        grad_output: Any = None,
        out: Any = None,
    ) -> Result:
        """Return value and gradient, or the like."""


class DistillationLoss(Protocol):
    """distillation_loss, by the names of its arguments, as the protocols that follow."""

    def __call__(self, student_logits: Any, teacher_logits: Any) -> Any:
        """Return the loss."""


class SigmoidFocalLoss(Protocol):
    """sigmoid_focal_loss."""

    def __call__(self, inputs: Any, targets: Any) -> Any:
        """Return the loss."""


class SelectiveLogSoftmax(Protocol):
    """selective_log_softmax."""

    def __call__(self, logits: Any, index: Any) -> Any:
        """Return the log-probabilities."""


class LinearSelectiveLogSoftmax(Protocol):
    """linear_selective_log_softmax."""

    def __call__(self, input: Any, linear_weight: Any, index: Any) -> Any:
        """Return the log-probabilities."""


class Entropy(Protocol):
    """entropy."""

    def __call__(self, logits: Any) -> Any:
        """Return the entropies."""


class Softmax(Protocol):
    """softmax, log_softmax and logsumexp."""

    def __call__(self, input: Any, dim: int) -> Any:
        """Return the result."""


class Sigmoid(Protocol):
    """sigmoid and logsigmoid."""

    def __call__(self, input: Any) -> Any:
        """Return the result."""


OtherFunction: TypeAlias = (
    DistillationLoss
    | SigmoidFocalLoss
    | SelectiveLogSoftmax
    | LinearSelectiveLogSoftmax
    | Entropy
    | Softmax
    | Sigmoid
)
