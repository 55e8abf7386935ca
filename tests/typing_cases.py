"""Right and wrong uses of the typed interface, for `test_types.py`; nothing here is run.

A type checker must report exactly the lines that end in ``# error: WORD``, with the word in its message.
"""

from collections.abc import Callable
from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import cyce
import cyce.functional as F

logits: NDArray[np.float32] = np.zeros((2, 3), np.float32)
target = [0, 1]
one_of_them: Literal["none", "mean", "sum"] = "mean" if target else "none"
any_string: str = "mean"


def values(reduction: Literal["none", "mean", "sum"]) -> None:
    assert_type(F.cross_entropy(logits, target), np.floating[Any])
    assert_type(F.cross_entropy(logits, target, None, None, 0, None, "sum", 0.1), np.floating[Any])
    assert_type(F.cross_entropy(logits, target, reduction="mean", axis=-1), np.floating[Any])
    assert_type(F.cross_entropy(logits, target, reduction="none"), NDArray[Any])
    assert_type(F.cross_entropy(logits, target, reduction=reduction), np.floating[Any] | NDArray[Any])
    assert_type(F.cross_entropy(logits, target, reduce=False), np.floating[Any] | NDArray[Any])
    assert_type(F.nll_loss(logits, target), np.floating[Any])
    assert_type(F.nll_loss(logits, target, reduction="none"), NDArray[Any])
    assert_type(F.binary_cross_entropy_with_logits(logits, logits), np.floating[Any])
    assert_type(
        F.binary_cross_entropy_with_logits(logits, logits, reduction="none", pos_weight=2.0), NDArray[Any]
    )
    assert_type(F.binary_cross_entropy(logits, logits, reduction="sum"), np.floating[Any])
    assert_type(F.binary_cross_entropy(logits, logits, reduction="none"), NDArray[Any])
    assert_type(F.kl_div(logits, logits, reduction="batchmean"), np.floating[Any])
    assert_type(F.kl_div(logits, logits, reduction="none", log_target=True), NDArray[Any])
    assert_type(F.linear_cross_entropy(logits, logits, target, softcap=3.0), np.floating[Any])
    assert_type(F.linear_cross_entropy(logits, logits, target, reduction="none"), NDArray[Any])
    F.linear_cross_entropy(logits, logits, target, reduction=reduction).sum()
    assert_type(F.cross_entropy_stats(logits, target), cyce.CrossEntropyStats)
    assert_type(F.cross_entropy_stats(logits, target).prediction, NDArray[np.int64])
    cyce.cross_entropy(logits, target, reduction="none").reshape(-1)
    cyce.cross_entropy(logits, target).item()


def other_functions() -> None:
    cyce.value_and_grad(F.focal_loss)(logits, target, gamma=1.0, poly1=0.5)
    cyce.value_and_grad(F.distillation_loss)(logits, logits, divergence="js")
    cyce.value_and_grad(F.selective_log_softmax)(logits, target, return_entropy=True)
    cyce.value_and_grad(F.entropy)(logits, axis=1)
    cyce.value_and_grad(F.softmax)(logits, 1, grad_output=logits)
    cyce.value_and_grad(F.logsumexp)(logits, (0, 1))
    cyce.value_and_grad(F.sigmoid)(logits)
    cyce.value_and_grad(F.focal_loss)(logits, target, gama=1.0)  # error: gama
    F.distillation_loss(logits, logits, divergence="kl")  # error: divergence
    F.cross_entropy(logits, cyce.SparseTarget([[0], [1]], [[1.0], [1.0]]), class_mask=np.ones(3, bool))


def wrong_arguments() -> None:
    F.cross_entropy(logits, target, reduction="avg")  # error: cross_entropy
    F.cross_entropy(logits, target, reduction=any_string)  # error: cross_entropy
    F.cross_entropy(logits, target, reducton="sum")  # error: cross_entropy
    F.cross_entropy(logits, target, reduction="batchmean")  # error: cross_entropy
    F.cross_entropy(logits, target, gradient=None)  # error: cross_entropy
    print(F.cross_entropy(logits, target).no_such)  # error: no_such
    F.nll_loss(logits, target, label_smoothing=0.1)  # error: nll_loss
    F.kl_div(logits, logits, reduction="avg")  # error: kl_div
    F.binary_cross_entropy(logits, logits, reduction="batchmean")  # error: binary_cross_entropy
    F.linear_cross_entropy(logits, logits, target, reduction="avg")  # error: linear_cross_entropy
    cyce.CrossEntropyLoss(reduction="avg")  # error: avg
    cyce.KLDivLoss(reduction="average")  # error: average
    cyce.BCELoss(reduction="batchmean")  # error: batchmean


def gradients() -> None:
    of_cross_entropy = cyce.value_and_grad(F.cross_entropy)
    loss, gradient = of_cross_entropy(
        logits, target, reduction="none", label_smoothing=0.1, grad_output=2.0, out=logits
    )
    print(f"{loss:.4f}", gradient.round(4), of_cross_entropy.__name__)
    of_cross_entropy(logits, target, [1.0, 1.0, 2.0], None, 0, None, "sum", 0.1)
    cyce.value_and_grad(F.nll_loss)(logits, target, ignore_index=0, out=None)
    cyce.value_and_grad(F.binary_cross_entropy_with_logits)(logits, logits, pos_weight=2.0, out=None)
    cyce.value_and_grad(F.binary_cross_entropy)(logits, logits, weight=2.0, out=None)
    cyce.value_and_grad(F.kl_div)(logits, logits, reduction="batchmean", log_target=True, out=None)
    _, (_of_input, _of_weight) = cyce.value_and_grad(F.linear_cross_entropy)(
        logits, logits, target, z_loss=1e-4, options=cyce.LinearCrossEntropyOptions(), out=None
    )
    criterion = cyce.CrossEntropyLoss(reduction="sum")
    loss, gradient = cyce.value_and_grad(criterion)(logits, target, sample_weight=[1, 2], out=logits)
    cyce.value_and_grad(cyce.KLDivLoss(reduction="batchmean"))(logits, logits, grad_output=2.0)
    cyce.value_and_grad(cyce.LinearCrossEntropyLoss(3, 4))(input=logits, target=target)


def second_order() -> None:
    value, gradient, hessian = cyce.value_grad_and_hess(F.cross_entropy)(
        logits, target, label_smoothing=0.1, out=(None, logits)
    )
    print(f"{value:.4f}", gradient.round(4), hessian.round(4))
    _, _, _ = cyce.value_grad_and_hess(F.focal_loss)(logits, target, gamma=1.0)
    _, _, _ = cyce.value_grad_and_hess(F.binary_cross_entropy_with_logits)(logits, logits, pos_weight=2.0)
    _, _, _ = cyce.value_grad_and_hess(F.sigmoid_focal_loss)(logits, logits)
    _, _, _ = cyce.value_grad_and_hess(cyce.CrossEntropyLoss())(logits, target, sample_weight=[1, 2])
    product = cyce.hessian_vector_product(F.cross_entropy)(logits, target, logits, label_smoothing=0.1)
    objective = cyce.boosting.xgboost_objective("focal", n_classes=3, interface="sklearn")
    print(product.round(4), objective.eval_metric, cyce.boosting.lightgbm_objective("binary"))


def wrong_second_order() -> None:
    cyce.value_grad_and_hess(F.cross_entropy)(logits, target, reducton="sum")  # error: reducton
    cyce.value_grad_and_hess(F.focal_loss)(logits)  # error: target
    cyce.value_grad_and_hess(F.one_hot)  # error: value_grad_and_hess
    cyce.hessian_vector_product(F.one_hot)  # error: hessian_vector_product
    cyce.hessian_vector_product(F.cross_entropy)(logits, target)  # error: vector
    cyce.boosting.xgboost_objective("hinge")  # error: hinge
    cyce.boosting.lightgbm_objective(n_classes=3, interface="scikit")  # error: scikit


def gradients_of_any_loss(loss: Callable[..., Any], either: cyce.CrossEntropyLoss | cyce.NLLLoss) -> None:
    value, _ = cyce.value_and_grad(loss)(logits, target, reduction="none", out=None)
    value, _ = cyce.value_and_grad(either)(logits, target, out=None)
    print(value)


def wrong_arguments_of_gradients() -> None:
    cyce.value_and_grad(F.cross_entropy)(logits, target, reducton="sum")  # error: reducton
    cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="avg")  # error: avg
    cyce.value_and_grad(F.cross_entropy)(logits)  # error: target
    cyce.value_and_grad(F.nll_loss)(logits, target, label_smoothing=0.1)  # error: label_smoothing
    cyce.value_and_grad(F.binary_cross_entropy_with_logits)(logits, logits, axis=0)  # error: axis
    cyce.value_and_grad(F.binary_cross_entropy)(logits, logits, pos_weight=1.0)  # error: pos_weight
    cyce.value_and_grad(F.kl_div)(logits, logits, weight=1.0)  # error: weight
    cyce.value_and_grad(F.linear_cross_entropy)(logits, logits, target, axis=0)  # error: axis
    cyce.value_and_grad(cyce.CrossEntropyLoss())(logits, target, sample_wieght=None)  # error: sample_wieght
    cyce.value_and_grad(cyce.CrossEntropyLoss)  # error: value_and_grad
    cyce.value_and_grad(F.one_hot)  # error: value_and_grad
    cyce.value_and_grad(np.sum)  # error: value_and_grad


def evaluations() -> None:
    result: cyce.Evaluation = cyce.evaluate("logits.npy", "target.npy", temperature="fit", top_k=[1, 3])
    number: float = result.loss + result.top_k[1] + result.per_class.mean_iou
    evaluator: cyce.Evaluator = cyce.Evaluator(top_k=(1,)).update(logits, target).merge(cyce.Evaluator())
    change: cyce.Divergence = cyce.divergence(logits, logits)
    number = change.kl + cyce.fit_temperature([(logits, target)])
    print(number, evaluator.reset())


def wrong_evaluations() -> None:
    number: float = cyce.divergence(logits, logits).perplexity  # error: None
    cyce.Evaluator().compute().loss = number  # error: loss
    cyce.evaluate(logits, target, temperature="auto")  # error: auto
    cyce.evaluate(logits, target, n_bin=3)  # error: n_bin
    cyce.Evaluator(top_k=1)  # error: top_k


def lazy_modules() -> None:
    cyce.plotting.probabilities(logits, target)
    print(cyce.ploting)  # error: ploting
