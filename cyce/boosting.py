"""Objectives of XGBoost and LightGBM: gradients and Hessians of raw scores, as the libraries take them.

An objective is called once in each round of boosting, with the scores of all rows. `xgboost_objective` and
`lightgbm_objective` return one, whose attribute `eval_metric` is its evaluation metric. Neither library is
imported here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cyce._arguments import (
    FLOAT32,
    FLOAT64,
    as_array,
    as_label_smoothing,
    as_logits,
    as_number,
    as_size,
    as_weight,
    described,
)
from cyce.fused.cross_entropy import cross_entropy
from cyce.fused.elementwise import binary_cross_entropy_with_logits
from cyce.fused.focal import as_gamma, focal_loss, sigmoid_focal_loss
from cyce.fused.requests import HessianRequest
from cyce.memory.arrays import empty_like

__all__ = ["lightgbm_objective", "xgboost_objective"]

Library = Literal["xgboost", "lightgbm"]
Loss = Literal["cross_entropy", "focal", "binary", "binary_focal"]

_FUNCTIONS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "cross_entropy": cross_entropy,
    "focal": focal_loss,
    "binary": binary_cross_entropy_with_logits,
    "binary_focal": sigmoid_focal_loss,
}
# What each loss takes, by the names of the functions above.
_OPTIONS = {
    "cross_entropy": ("weight", "label_smoothing"),
    "focal": ("weight", "label_smoothing", "gamma", "poly1"),
    "binary": ("pos_weight", "label_smoothing"),
    "binary_focal": ("alpha", "gamma"),
}
# XGBoost's least Hessian.
_FLOOR = 1e-16


@dataclass(frozen=True, slots=True, eq=False)
class _Computation:
    """What an objective and its metric compute."""

    library: Library
    loss: Loss
    n_scores: int
    """Of each row: the number of classes, or 1 of the binary losses."""
    options: dict[str, Any]
    target: NDArray[Any] | None
    factor: float
    floor: float

    def derivatives(self, scores: Any, labels: Any, weight: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return gradient and Hessian, float32 in the memory order of the scores."""
        scores = self._as_scores(scores)
        out = empty_like(scores, FLOAT32), empty_like(scores, FLOAT32)
        request = HessianRequest(_as_weight(weight, len(scores)), out, None, self.factor, self.floor)
        if self.target is None:
            self._evaluate(scores, labels, "labels", request)
            return out
        if len(self.target) != len(scores):
            raise ValueError(
                f"target: it has {len(self.target)} rows, the training data {len(scores)}; it belongs to one "
                "set of data, and cannot be cross-validated"
            )
        self._evaluate(scores, self.target, "target", request)
        return out

    def mean_loss(self, scores: Any, labels: Any, weight: Any) -> float:
        """Return the mean of the losses, as the rows are weighted; NaN without any weight."""
        scores = self._as_scores(scores)
        losses = self._evaluate(scores, labels, "labels", None).astype(np.float64).reshape(len(scores))
        weights = _as_weight(weight, len(scores))
        if weights is None:
            return float(losses.mean())
        total = weights.sum(dtype=np.float64)
        return float(losses @ weights / total) if total > 0 else math.nan

    def _evaluate(
        self, scores: NDArray[Any], target: Any, name: str, request: HessianRequest | None
    ) -> NDArray[Any]:
        """Return the losses of the rows, and write what is requested; name: of the target, for errors."""
        options = dict(self.options)
        if self.n_scores > 1:
            target = _as_classes(target, name, scores)
        else:
            target = _as_answers(target, name, scores, options.pop("label_smoothing", 0.0))
        losses, _ = _FUNCTIONS[self.loss](scores, target, reduction="none", gradient=request, **options)
        return np.asarray(losses)

    def _as_scores(self, value: Any) -> NDArray[Any]:
        """Return the raw scores: one for each row, or one for each class of a row."""
        scores = as_logits(value, "raw scores", "preds")
        columns = scores.shape[1:]
        if columns == (self.n_scores,) or (self.n_scores == 1 and not columns):
            return scores
        if self.n_scores == 1:
            advice = "leave out the parameter num_class, or use loss='cross_entropy'"
        else:
            advice = f"set the parameter num_class to {self.n_scores}"
            if len(columns) == 1:
                advice = f"if there are {columns[0]} classes, pass n_classes={columns[0]}, else {advice}"
        if self.n_scores == 2:
            advice = f"use loss='binary' for two classes, or {advice}"
        raise ValueError(
            f"preds: {self.n_scores} for each row were expected for loss={self.loss!r}, got scores of shape "
            f"{scores.shape}; {advice}"
        )


def _as_classes(value: Any, name: str, scores: NDArray[Any]) -> NDArray[Any]:
    """Return class probabilities as they are, and class indices, which the libraries store as floats."""
    labels = as_array(value, name)
    n_rows, n_classes = scores.shape
    is_floating = labels.dtype.kind == "f"
    if is_floating and labels.shape == scores.shape:
        return labels
    if labels.dtype.kind not in "iufb" or labels.shape != (n_rows,):
        raise ValueError(
            f"{name}: must be class indices of shape ({n_rows},), or class probabilities of shape "
            f"{scores.shape}, got {described(labels)}"
        )
    with np.errstate(invalid="ignore"):
        indices = labels.astype(np.int64)
    is_wrong = (indices < 0) | (indices >= n_classes)
    if is_floating:
        is_wrong |= indices != labels
    if is_wrong.any():
        at = int(is_wrong.argmax())
        raise ValueError(f"{name}: must be class indices from 0 to {n_classes - 1}, got {labels[at]} at {at}")
    return indices


def _as_answers(value: Any, name: str, scores: NDArray[Any], smoothing: float) -> NDArray[Any]:
    """Return the probabilities of the class 1: the labels, smoothed."""
    answers = as_array(value, name)
    if answers.dtype.kind not in "iufb" or answers.size != scores.size:
        raise ValueError(
            f"{name}: must have one number for each of {scores.size} rows, got {described(answers)}"
        )
    is_right = (answers >= 0) & (answers <= 1)
    if not is_right.all():
        at = int(is_right.argmin())
        raise ValueError(f"{name}: must be from 0 to 1, got {answers.flat[at]} at {at}")
    if smoothing:
        answers = answers * (1.0 - smoothing) + smoothing / 2
    return answers.reshape(scores.shape)


def _as_weight(value: Any, n_rows: int) -> NDArray[Any] | None:
    """Return the weights of the rows; None for no weights, which XGBoost has as an empty array."""
    if value is None:
        return None
    weight = as_array(value, "sample_weight")
    if not weight.size and n_rows:
        return None
    if weight.shape != (n_rows,):
        raise ValueError(
            f"sample_weight: must have one number for each of {n_rows} rows, got {described(weight)}"
        )
    return weight


# ---------------------------------------------------------------------------------------------
# The libraries' interfaces


def _check_native(data: Any) -> None:
    """Raise unless this is the data of a native interface."""
    if not hasattr(data, "get_label"):
        raise TypeError(
            "interface: this objective has the native signature, (scores, data), and was called with arrays; "
            "for an estimator such as XGBClassifier or LGBMClassifier, pass interface='sklearn'"
        )


def _check_arrays(y_pred: Any) -> None:
    """Raise if this is the data of a native interface."""
    if hasattr(y_pred, "get_label"):
        raise TypeError(
            "interface: this objective has scikit-learn's signature, (labels, scores), and was called with "
            "the data of a library; for xgboost.train or lightgbm.train, pass interface='native'"
        )


class _Metric:
    """A mean loss, in the form of one of the libraries' interfaces."""

    def __init__(self, computation: _Computation) -> None:
        self._computation = computation
        self.__name__ = computation.loss

    def __repr__(self) -> str:
        return f"<cyce.boosting metric {self.__name__!r} for {self._computation.library}>"

    def _result(self, preds: Any, labels: Any, weight: Any) -> Any:
        """Return name and value; LightGBM also takes whether higher is better."""
        value = self._computation.mean_loss(preds, labels, weight)
        if self._computation.library == "lightgbm":
            return self.__name__, value, False
        return self.__name__, value


class _NativeMetric(_Metric):
    """For XGBoost's `custom_metric` and LightGBM's `feval`."""

    def __call__(self, preds: Any, data: Any) -> Any:
        _check_native(data)
        return self._result(preds, data.get_label(), data.get_weight())


class _SklearnMetric(_Metric):
    """For `eval_metric`."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        _check_arrays(y_pred)
        result = self._result(y_pred, y_true, sample_weight)
        # XGBoost takes the name from the function.
        return result[1] if self._computation.library == "xgboost" else result


class _Objective:
    """An objective; see `xgboost_objective` and `lightgbm_objective`."""

    eval_metric: _Metric

    def __init__(self, computation: _Computation) -> None:
        self._computation = computation
        self.__name__ = computation.loss

    def __repr__(self) -> str:
        return f"<cyce.boosting objective {self.__name__!r} for {self._computation.library}>"


class _NativeObjective(_Objective):
    """For `train`."""

    def __init__(self, computation: _Computation) -> None:
        super().__init__(computation)
        self.eval_metric = _NativeMetric(computation)

    def __call__(self, preds: Any, data: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        _check_native(data)
        return self._computation.derivatives(preds, data.get_label(), data.get_weight())


class _SklearnObjective(_Objective):
    """For estimators."""

    def __init__(self, computation: _Computation) -> None:
        super().__init__(computation)
        self.eval_metric = _SklearnMetric(computation)

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        _check_arrays(y_pred)
        return self._computation.derivatives(y_pred, y_true, sample_weight)


def _as_options(loss: str, given: dict[str, Any], n_scores: int) -> dict[str, Any]:
    """Return the options of a loss, checked; given: those of all losses, None where they are not given."""
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in _OPTIONS[loss]:
            losses = [repr(other) for other, names in _OPTIONS.items() if name in names]
            raise ValueError(f"{name}: not an option of loss={loss!r}, but of {' and '.join(losses)}")
        if name == "label_smoothing":
            options[name] = as_label_smoothing(value)
        elif name == "gamma":
            options[name] = as_gamma(value)
        elif name == "weight":
            options[name] = as_weight(value, np.empty((1, n_scores)), 1, "preds")
        else:
            options[name] = as_number(value, name, FLOAT64, positive=name == "pos_weight")
    return options


def _as_n_scores(loss: str, n_classes: Any) -> int:
    """Return how many scores a row has."""
    n = None if n_classes is None else as_size(n_classes, "n_classes")
    if loss in ("binary", "binary_focal"):
        if n not in (None, 1, 2):
            raise ValueError(
                f"n_classes: loss={loss!r} is for two classes, got {n}; for more, use loss='cross_entropy' "
                "or 'focal'"
            )
        return 1
    if n is None or n < 2:
        raise ValueError(f"n_classes: loss={loss!r} needs the number of classes, at least 2, got {n}")
    return n


def _objective(
    library: Library,
    loss: Loss,
    n_classes: int | None,
    hessian: str,
    interface: str,
    target: Any,
    given: dict[str, Any],
) -> Any:
    """Return an objective; given: the options of the losses, None where they are not given."""
    for name, value, allowed in (
        ("loss", loss, tuple(_OPTIONS)),
        ("hessian", hessian, ("library", "exact")),
        ("interface", interface, ("native", "sklearn")),
    ):
        if not isinstance(value, str) or value not in allowed:
            *others, last = map(repr, allowed)
            raise ValueError(f"{name}: must be {', '.join(others)} or {last}, got {value!r}")
    n_scores = _as_n_scores(loss, n_classes)
    options = _as_options(loss, given, n_scores)
    if target is not None:
        target = as_array(target, "target")
        if target.ndim > 1 and loss == "focal":
            raise ValueError("target: loss='focal' takes class indices, one for each row")
    factor, floor = 1.0, -math.inf
    if hessian == "library":
        if n_scores > 1:
            factor = 2.0 if library == "xgboost" else n_scores / (n_scores - 1)
        # LightGBM's own are never negative.
        if library == "xgboost" or loss in ("focal", "binary_focal"):
            floor = _FLOOR
    computation = _Computation(library, loss, n_scores, options, target, factor, floor)
    return (_NativeObjective if interface == "native" else _SklearnObjective)(computation)


def xgboost_objective(
    loss: Loss = "cross_entropy",
    *,
    n_classes: int | None = None,
    hessian: Literal["library", "exact"] = "library",
    interface: Literal["native", "sklearn"] = "native",
    target: Any = None,
    weight: Any = None,
    label_smoothing: float | None = None,
    gamma: float | None = None,
    poly1: float | None = None,
    pos_weight: float | None = None,
    alpha: float | None = None,
) -> Any:
    r"""Return an objective for XGBoost, with its gradient and Hessian from one fused pass.

    Parameters
    ----------
    loss : {"cross_entropy", "focal", "binary", "binary_focal"}, default="cross_entropy"
        The loss of a row: `cyce.functional.cross_entropy` or `focal_loss` of a score for each class; or
        `binary_cross_entropy_with_logits` or `sigmoid_focal_loss` of one score.
    n_classes : int
        Number of classes; XGBoost's parameter ``num_class`` must be the same. Not needed for the binary
        losses, where there must be no ``num_class``. For two classes, "binary" is simplest.
    hessian : {"library", "exact"}, default="library"
        "exact": the diagonal of the loss's Hessian. "library": scaled as in XGBoost's own objectives: with
        several classes, twice the exact diagonal; in all cases at least 1e-16, after weighting.
    interface : {"native", "sklearn"}, default="native"
        "native": for ``xgboost.train(params, data, obj=objective, custom_metric=objective.eval_metric)``.
        "sklearn": for ``XGBClassifier(objective=objective, eval_metric=objective.eval_metric)``.
    target : array_like of shape (N,) or (N, n_classes), default=None
        What to train on in place of the data's labels: class probabilities, one row for each row of the
        training data, such as those of another model (not of "focal"); for the binary losses, probabilities
        of the class 1. It belongs to one set of data, so that it cannot be cross-validated.
    weight : array_like of shape (n_classes,), default=None
        Weights of the classes.
    label_smoothing : float, default=0.0
        How much of the target is spread over all classes.
    gamma, poly1 : float, default=2.0, 0.0
        Of the focal losses, as in `cyce.functional.focal_loss`; `poly1` of "focal" only.
    pos_weight : float, default=1.0
        Of "binary": weight of the class 1. The libraries' own parameter ``scale_pos_weight`` has no effect on
        objectives of one's own.
    alpha : float, default=0.25
        Of "binary_focal", as in `cyce.functional.sigmoid_focal_loss`; negative for none.

    Returns
    -------
    callable
        ``objective(preds, data)``, or ``objective(y_true, y_pred, sample_weight=None)`` with
        ``interface="sklearn"``, which returns gradient and Hessian: float32, in the shape and memory order of
        the scores. Its attribute `eval_metric` is a callable for the library's parameter of that kind: the
        mean of the same loss, of raw scores and of the data's labels, weighted by the data's weights. Both
        can be pickled.

    Raises
    ------
    ValueError
        If an option is unknown, out of range or not one of the loss, or `n_classes` does not suit it. From
        the objective: if scores, labels or weights have a wrong shape, or labels are no class indices.
    TypeError
        If an option is no number. From the objective: if it is called as that of the other interface.

    See Also
    --------
    lightgbm_objective : The same for LightGBM.
    cyce.value_grad_and_hess : Gradient and Hessian of any such loss.

    Notes
    -----
    With the softmax :math:`p` of the scores, the target :math:`y` and the weight :math:`w` of the row,
    XGBoost's ``multi:softprob`` has the gradient :math:`w (p_c - y_c)` and the Hessian
    :math:`\max(2 w p_c (1 - p_c), 10^{-16})` [1]_, as "cross_entropy" here. The trees are the same, too,
    where boosting starts at the same scores: XGBoost's objectives estimate ``base_score`` unless it is given.
    Give 0.5 to both for several classes; for two, 0.5 to ``binary:logistic``, which is a probability there,
    and 0 to "binary".

    ``Booster.predict(data, output_margin=True)`` returns raw scores, of which `cyce.functional.softmax` and
    `cyce.functional.sigmoid` make probabilities; without `output_margin`, boosters of several classes return
    the predicted classes, those of two the scores. ``XGBClassifier`` predicts classes and probabilities. To
    it, `base_score` is a probability for two classes with any objective: leave it out, or give 0.5.

    References
    ----------
    .. [1] T. Chen and C. Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016, arXiv:1603.02754.

    Examples
    --------
    >>> import numpy as np
    >>> from cyce.boosting import xgboost_objective
    >>> objective = xgboost_objective(n_classes=3, interface="sklearn")
    >>> scores = np.array([[2.0, 0.5, 0.3], [0.1, 0.2, 2.5]], dtype=np.float32)
    >>> gradient, hessian = objective([0, 2], scores)
    >>> print(gradient.round(4))
    [[-0.2887  0.1587  0.1299]
     [ 0.0762  0.0842 -0.1604]]
    >>> print(hessian.round(4))
    [[0.4107 0.2671 0.2261]
     [0.1407 0.1542 0.2693]]

    With XGBoost, four lines train with smoothed labels::

        objective = cyce.boosting.xgboost_objective(n_classes=10, label_smoothing=0.1)
        params = {"num_class": 10, "disable_default_eval_metric": True}
        booster = xgboost.train(params, data, 100, obj=objective, custom_metric=objective.eval_metric)
        probabilities = cyce.softmax(booster.predict(data, output_margin=True), 1)
    """
    given = _given(weight, label_smoothing, gamma, poly1, pos_weight, alpha)
    return _objective("xgboost", loss, n_classes, hessian, interface, target, given)


def lightgbm_objective(
    loss: Loss = "cross_entropy",
    *,
    n_classes: int | None = None,
    hessian: Literal["library", "exact"] = "library",
    interface: Literal["native", "sklearn"] = "native",
    target: Any = None,
    weight: Any = None,
    label_smoothing: float | None = None,
    gamma: float | None = None,
    poly1: float | None = None,
    pos_weight: float | None = None,
    alpha: float | None = None,
) -> Any:
    r"""Return an objective for LightGBM, with its gradient and Hessian from one fused pass.

    Parameters
    ----------
    loss, n_classes, target, weight, label_smoothing, gamma, poly1, pos_weight, alpha
        As in `xgboost_objective`.
    hessian : {"library", "exact"}, default="library"
        "exact": the diagonal of the loss's Hessian. "library": scaled as in LightGBM's own objectives: with
        several classes, ``n_classes / (n_classes - 1)`` times the exact diagonal; for the focal losses, at
        least 1e-16.
    interface : {"native", "sklearn"}, default="native"
        "native": for ``lightgbm.train({"objective": objective, ...}, data, feval=objective.eval_metric)``.
        "sklearn": for ``LGBMClassifier(objective=objective, metric="None")``, and
        ``fit(..., eval_metric=objective.eval_metric)``.

    Returns
    -------
    callable
        As in `xgboost_objective`. LightGBM's scores are float64 and in Fortran order; gradient and Hessian
        are computed in float64 and rounded once, to float32 in that order, as it stores them.

    Raises
    ------
    ValueError, TypeError
        As `xgboost_objective`.

    See Also
    --------
    xgboost_objective : The same for XGBoost.

    Notes
    -----
    With :math:`K` classes, LightGBM's ``multiclass`` has the gradient :math:`w (p_c - y_c)` and the Hessian
    :math:`\frac{K}{K - 1} w p_c (1 - p_c)` [1]_. The trees are the same as here with ``boost_from_average``
    false; else LightGBM's objectives start at the logarithms of the classes' frequencies, and others at 0.

    With custom objectives, LightGBM predicts raw scores, and so does ``LGBMClassifier``. Its ``score`` method
    takes these for classes: pass searches such as ``GridSearchCV`` a scorer that takes the class of the
    highest score. Its default metric would take raw scores for probabilities, also for early stopping: pass
    ``metric="None"``.

    References
    ----------
    .. [1] G. Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", 2017, in Advances in
       Neural Information Processing Systems 30.

    Examples
    --------
    >>> import numpy as np
    >>> from cyce.boosting import lightgbm_objective
    >>> objective = lightgbm_objective("binary", interface="sklearn")
    >>> gradient, hessian = objective([1, 0], np.array([0.5, -40.0]))
    >>> print([f"{value:.4g}" for value in gradient], [f"{value:.4g}" for value in hessian])
    ['-0.3775', '4.248e-18'] ['0.235', '4.248e-18']
    """
    given = _given(weight, label_smoothing, gamma, poly1, pos_weight, alpha)
    return _objective("lightgbm", loss, n_classes, hessian, interface, target, given)


def _given(
    weight: Any, label_smoothing: Any, gamma: Any, poly1: Any, pos_weight: Any, alpha: Any
) -> dict[str, Any]:
    """Return the options of the losses by their names."""
    return {
        "weight": weight,
        "label_smoothing": label_smoothing,
        "gamma": gamma,
        "poly1": poly1,
        "pos_weight": pos_weight,
        "alpha": alpha,
    }
