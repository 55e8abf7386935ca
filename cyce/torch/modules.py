"""The losses as modules: subclasses of torch's."""

import torch
from torch import Tensor

from cyce.torch.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    linear_cross_entropy,
    nll_loss,
)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc]
    """`cross_entropy` as a module: a `torch.nn.CrossEntropyLoss`, computed by cyce."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss):  # type: ignore[misc]
    """`nll_loss` as a module: a `torch.nn.NLLLoss`, computed by cyce."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):  # type: ignore[misc]
    """`binary_cross_entropy_with_logits` as a module: a `torch.nn.BCEWithLogitsLoss`, computed by cyce."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class KLDivLoss(torch.nn.KLDivLoss):  # type: ignore[misc]
    """`kl_div` as a module: a `torch.nn.KLDivLoss`, computed by cyce."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):  # type: ignore[misc]
    """`linear_cross_entropy` as a module: a `torch.nn.LinearCrossEntropyLoss`, computed by cyce."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        outputs = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape((*outputs, self.linear.in_features)),
            target,
            linear_bias=None if bias is None else bias.reshape(outputs),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )
