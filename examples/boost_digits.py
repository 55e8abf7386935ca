"""
Boosting with other losses
==========================

Boost trees on digits, with losses that XGBoost and LightGBM lack: smoothed labels, and the focal loss.

Usage::

    python examples/boost_digits.py

The objectives come from cyce.boosting. With the plain cross-entropy, the trees are those of the libraries'
own objectives. Smoothing and focus make the probabilities less sharp. It needs xgboost-cpu and lightgbm.
"""

from typing import Any

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray

import cyce
from cyce import _demo
from cyce.boosting import lightgbm_objective, xgboost_objective

N_HELD_OUT = 450
N_ROUNDS = 20
N_THREADS = 1

# None: the library's own objective.
OBJECTIVES: dict[str, dict[str, Any] | None] = {
    "built in": None,
    "cross-entropy": {"loss": "cross_entropy"},
    "smoothed by 0.1": {"loss": "cross_entropy", "label_smoothing": 0.1},
    "focal loss": {"loss": "focal", "gamma": 2.0},
}


def boost_in_xgboost(options: dict[str, Any] | None) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return raw scores of the digits held out, and the metric of these after each round."""
    pixels, digits = _demo.load_digits()
    held_out = xgboost.DMatrix(pixels[:N_HELD_OUT], digits[:N_HELD_OUT])
    learn = xgboost.DMatrix(pixels[N_HELD_OUT:], digits[N_HELD_OUT:])
    # The built-in objective would estimate scores to start at.
    params: dict[str, Any] = {"num_class": 10, "nthread": N_THREADS, "base_score": 0.5}
    arguments: dict[str, Any] = {}
    if options is None:
        params["objective"] = "multi:softprob"
    else:
        objective = xgboost_objective(n_classes=10, **options)
        params["disable_default_eval_metric"] = True
        arguments = {"obj": objective, "custom_metric": objective.eval_metric}
    history: dict[str, Any] = {}
    arguments |= {"evals": [(held_out, "held_out")], "evals_result": history, "verbose_eval": False}
    booster = xgboost.train(params, learn, N_ROUNDS, **arguments)
    return booster.predict(held_out, output_margin=True), history["held_out"]


def boost_in_lightgbm(options: dict[str, Any] | None) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return raw scores of the digits held out, and the metric of these after each round."""
    pixels, digits = _demo.load_digits()
    learn = lightgbm.Dataset(pixels[N_HELD_OUT:], digits[N_HELD_OUT:])
    held_out = learn.create_valid(pixels[:N_HELD_OUT], digits[:N_HELD_OUT])
    # The built-in objective would start at the logarithms of the digits' frequencies.
    params: dict[str, Any] = {"num_class": 10, "num_threads": N_THREADS, "boost_from_average": False}
    objective = None if options is None else lightgbm_objective(n_classes=10, **options)
    params |= {"objective": objective or "multiclass", "verbose": -1}
    history: dict[str, Any] = {}
    booster = lightgbm.train(
        params,
        learn,
        N_ROUNDS,
        valid_sets=[held_out],
        valid_names=["held_out"],
        feval=objective and objective.eval_metric,
        callbacks=[lightgbm.record_evaluation(history)],
    )
    return np.asarray(booster.predict(pixels[:N_HELD_OUT], raw_score=True)), history["held_out"]


def main() -> None:
    """Print how well each library and objective predicts the digits held out."""
    digits = _demo.load_digits()[1][:N_HELD_OUT]
    print(f"{'':9} {'objective':15} accuracy  log loss  metric")
    for library, boost in (("XGBoost", boost_in_xgboost), ("LightGBM", boost_in_lightgbm)):
        scores = {}
        for name, options in OBJECTIVES.items():
            scores[name], history = boost(options)
            accuracy = np.mean(scores[name].argmax(axis=1) == digits)
            log_loss = cyce.cross_entropy(scores[name], digits)
            ((metric, values),) = history.items()
            print(f"{library:9} {name:15} {accuracy:8.1%} {log_loss:9.4f}  {values[-1]:.4f} ({metric})")
        difference = np.abs(scores["built in"] - scores["cross-entropy"]).max()
        answer = "the same" if difference < 1e-5 else "different"
        print(f"{library:9} {answer} raw scores, built in and of cyce; largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
