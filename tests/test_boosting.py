"""Objectives for boosting: their formulas, and the libraries themselves."""

import pickle
import re

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.boosting import lightgbm_objective, xgboost_objective

MAKERS = {"xgboost": xgboost_objective, "lightgbm": lightgbm_objective}


class Data:
    """Labels and weights, as a DMatrix and a Dataset have them."""

    def __init__(self, label, weight=None):
        self.label, self.weight = np.asarray(label, np.float32), weight

    def get_label(self):
        return self.label

    def get_weight(self):
        return self.weight


def of_library(library, rng, shape):
    """Return raw scores as a library has them."""
    scores = 3 * rng.standard_normal(shape)
    return scores.astype(np.float32) if library == "xgboost" else np.asfortranarray(scores)


@pytest.fixture(params=MAKERS)
def library(request):
    """Return the name of a library."""
    return request.param


class TestFormulas:
    @pytest.mark.parametrize("n_classes", [2, 10, 300])
    @pytest.mark.parametrize("hessian", ["library", "exact"])
    def test_several_classes(self, level, rng, library, n_classes, hessian):
        scores, labels = of_library(library, rng, (40, n_classes)), rng.integers(n_classes, size=40)
        weight = rng.uniform(0.5, 2, 40).astype(np.float32)
        objective = MAKERS[library](n_classes=n_classes, hessian=hessian)
        gradient, diagonal = objective(scores, Data(labels, weight))
        p = np.exp(scores.astype(float) - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        factor = {"exact": 1, "library": {"xgboost": 2, "lightgbm": n_classes / (n_classes - 1)}[library]}
        np.testing.assert_allclose(
            gradient, weight[:, None] * (p - np.eye(n_classes)[labels]), rtol=1e-4, atol=1e-7
        )
        expected = factor[hessian] * weight[:, None] * p * (1 - p)
        np.testing.assert_allclose(diagonal, expected, rtol=1e-4, atol=1e-9)
        for array in (gradient, diagonal):
            assert array.dtype == np.float32
            assert array.strides == tuple(n * 4 // scores.itemsize for n in scores.strides)

    def test_the_least_hessian(self, level):
        scores = np.array([[200.0, 0.0, 0.0]], np.float32)
        assert (xgboost_objective(n_classes=3)(scores, Data([0]))[1] == np.float32(1e-16)).all()
        assert (xgboost_objective(n_classes=3, hessian="exact")(scores, Data([0]))[1] == 0).all()
        assert (lightgbm_objective(n_classes=3)(scores.astype(float), Data([0]))[1] < 1e-40).all()
        # XGBoost has it where the weight is 0, too.
        for shape in ((2, 3), (2, 300)):
            data = Data([0, 1], np.array([0.0, 1.0]))
            gradient, diagonal = xgboost_objective(n_classes=shape[1])(np.zeros(shape, np.float32), data)
            assert (gradient[0] == 0).all()
            assert (diagonal[0] == np.float32(1e-16)).all()

    @pytest.mark.parametrize("loss", ["focal", "binary_focal"])
    def test_hessians_of_focal_losses_are_positive(self, level, rng, library, loss):
        scores = of_library(library, rng, (500, 4) if loss == "focal" else (500,)) * 3
        n_classes = 4 if loss == "focal" else None
        labels = rng.integers(n_classes or 2, size=500)
        _, exact = MAKERS[library](loss, n_classes=n_classes, hessian="exact")(scores, Data(labels))
        _, diagonal = MAKERS[library](loss, n_classes=n_classes)(scores, Data(labels))
        assert (exact < 0).any()
        assert (diagonal > 0).all()

    def test_options(self, level, rng, library):
        scores, labels = of_library(library, rng, (30, 5)), rng.integers(5, size=30)
        for loss, function, options in (
            ("cross_entropy", F.cross_entropy, {"weight": rng.random(5), "label_smoothing": 0.1}),
            ("focal", F.focal_loss, {"gamma": 1.5, "poly1": 0.5, "label_smoothing": 0.1}),
        ):
            objective = MAKERS[library](loss, n_classes=5, hessian="exact", **options)
            losses, gradient, hessian = cyce.value_grad_and_hess(function)(
                scores, labels, reduction="none", **options
            )
            for ours, theirs in zip(objective(scores, Data(labels)), (gradient, hessian), strict=True):
                np.testing.assert_array_equal(ours, theirs.astype(np.float32))
            metric = objective.eval_metric(scores, Data(labels))
            assert metric[0] == loss
            assert metric[1] == pytest.approx(losses.mean(), rel=1e-6)
            assert metric[2:] == ((False,) if library == "lightgbm" else ())

    @pytest.mark.parametrize("loss", ["binary", "binary_focal"])
    def test_two_classes(self, level, rng, library, loss):
        scores, labels = of_library(library, rng, 40), rng.integers(2, size=40)
        weight = rng.uniform(0.5, 2, 40)
        options = {"pos_weight": 3.0, "label_smoothing": 0.1} if loss == "binary" else {"alpha": 0.6}
        objective = MAKERS[library](loss, **options)
        gradient, hessian = objective(scores, Data(labels, weight))
        if loss == "binary":
            smoothed = 0.9 * labels + 0.05
            p = 1 / (1 + np.exp(-scores.astype(float)))
            expected = weight * ((1 - smoothed) * p - 3 * smoothed * (1 - p))
            second = weight * ((1 - smoothed) + 3 * smoothed) * p * (1 - p)
        else:
            _, expected, second = cyce.value_grad_and_hess(F.sigmoid_focal_loss)(
                scores, labels, 0.6, reduction="none", grad_output=weight
            )
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(hessian, np.maximum(second, 1e-16), rtol=1e-4, atol=1e-7)
        assert hessian.shape == (40,)

    def test_soft_labels(self, level, rng, library):
        scores, soft = of_library(library, rng, (30, 5)), rng.dirichlet(np.ones(5), 30)
        objective = MAKERS[library](n_classes=5, target=soft, hessian="exact")
        gradient, hessian = objective(scores, Data(np.zeros(30)))
        _, expected, second = cyce.value_grad_and_hess(F.cross_entropy)(scores, soft, reduction="sum")
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(hessian, second, rtol=1e-5)

    def test_the_metric_weighs_rows(self, rng, library):
        scores, labels = of_library(library, rng, (30, 5)), rng.integers(5, size=30)
        weight = rng.random(30)
        losses = F.cross_entropy(scores, labels, reduction="none")
        for interface in ("native", "sklearn"):
            metric = MAKERS[library](n_classes=5, interface=interface).eval_metric
            if interface == "native":
                result = metric(scores, Data(labels, weight))
            else:
                result = metric(labels, scores, weight)
            value = result[1] if isinstance(result, tuple) else result
            assert value == pytest.approx(np.average(losses, weights=weight), rel=1e-6)
            assert isinstance(result, float) == ((library, interface) == ("xgboost", "sklearn"))


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "n_classes: loss='cross_entropy' needs the number of classes, at least 2, got None"),
            ({"n_classes": 1}, "n_classes: .* at least 2, got 1"),
            (
                {"loss": "hinge"},
                "loss: must be 'cross_entropy', 'focal', 'binary' or 'binary_focal', got 'hinge'",
            ),
            ({"n_classes": 3, "hessian": "diagonal"}, "hessian: must be 'library' or 'exact'"),
            ({"n_classes": 3, "interface": "scikit"}, "interface: must be 'native' or 'sklearn'"),
            ({"n_classes": 3, "gamma": 2.0}, "gamma: not an option of .* but of 'focal' and 'binary_focal'"),
            ({"n_classes": 3, "label_smoothing": 2.0}, "label_smoothing must be between"),
            ({"loss": "binary", "n_classes": 3}, "n_classes: loss='binary' is for two classes, got 3"),
            ({"loss": ["focal"]}, "loss: must be 'cross_entropy'"),
            ({"loss": "focal", "n_classes": 3, "gamma": -1.0}, "gamma: must not be negative"),
            ({"n_classes": 3, "weight": [1.0, 2.0]}, "weight tensor should be defined .* for all 3 classes"),
            ({"loss": "binary", "pos_weight": 0.0}, "pos_weight: must be a positive"),
            ({"loss": "focal", "n_classes": 3, "target": np.ones((2, 3))}, "target: .* class indices"),
        ],
    )
    def test_arguments(self, library, arguments, message):
        with pytest.raises(ValueError, match=message):
            MAKERS[library](**arguments)

    @pytest.mark.parametrize(
        ("scores", "labels", "weight", "error", "message"),
        [
            (
                (4, 5),
                [0] * 4,
                None,
                ValueError,
                r"preds: 3 for each row .*\(4, 5\); if there are 5 classes, pass n_classes=5, else set",
            ),
            ((12,), [0] * 4, None, ValueError, "preds: .* num_class"),
            ((4, 3), [0, 1, 2, 3], None, ValueError, r"labels: .* from 0 to 2, got 3.0 at 3"),
            ((4, 3), [0, 1, 2, 0.5], None, ValueError, "labels: .* got 0.5 at 3"),
            ((4, 3), [0, 1, 2, np.nan], None, ValueError, "labels: .* got nan at 3"),
            (
                (4, 3),
                np.zeros((4, 2)),
                None,
                ValueError,
                r"labels: .* of shape \(4,\), or class probabilities",
            ),
            ((4, 3), np.array([0, 1, 2, -100]), None, ValueError, "labels: .* got -100.0 at 3"),
            (
                (4, 3),
                [0] * 4,
                np.ones(3),
                ValueError,
                "sample_weight: .* each of 4 rows, got an array of shape",
            ),
        ],
    )
    def test_data(self, library, scores, labels, weight, error, message):
        with pytest.raises(error, match=message):
            MAKERS[library](n_classes=3)(np.zeros(scores, np.float32), Data(labels, weight))

    def test_data_of_two_classes(self, library):
        for loss in ("binary", "binary_focal"):
            objective = MAKERS[library](loss)
            with pytest.raises(
                ValueError, match=r"preds: 1 for each row .* leave out the parameter num_class"
            ):
                objective(np.zeros((4, 3), np.float32), Data([0] * 4))
            with pytest.raises(ValueError, match=r"labels: must be from 0 to 1, got 2\.0 at 1"):
                objective(np.zeros(2, np.float32), Data([0, 2]))
            with pytest.raises(ValueError, match="labels: must have one number for each of 3 rows"):
                objective(np.zeros(3, np.float32), Data([0, 1]))

    def test_the_other_interface(self, library):
        make, data, scores = MAKERS[library], Data([0, 1]), np.zeros((2, 3), np.float32)
        for part in ("objective", "metric"):
            native, of_sklearn = (make(n_classes=3, interface=name) for name in ("native", "sklearn"))
            if part == "metric":
                native, of_sklearn = native.eval_metric, of_sklearn.eval_metric
            with pytest.raises(TypeError, match=r"interface: .* pass interface='sklearn'"):
                native(data.label, scores)
            with pytest.raises(TypeError, match=r"interface: .* pass interface='native'"):
                of_sklearn(scores, data)

    def test_a_target_of_other_rows(self, library):
        scores = np.zeros((2, 3), np.float32)
        objective = MAKERS[library](n_classes=3, target=np.full((4, 3), 1 / 3))
        with pytest.raises(ValueError, match="target: it has 4 rows, the training data 2"):
            objective(scores, Data([0, 1]))
        with pytest.raises(ValueError, match="target: must be class indices from 0 to 2, got 3 at 1"):
            MAKERS[library](n_classes=3, target=[0, 3])(scores, Data([0, 1]))

    def test_two_classes_of_the_general_loss(self, library):
        with pytest.raises(
            ValueError, match=r"preds: 2 for each row .* use loss='binary' for two classes, or"
        ):
            MAKERS[library](n_classes=2)(np.zeros(4, np.float32), Data([0] * 4))

    def test_they_can_be_pickled(self, rng, library):
        scores, labels = of_library(library, rng, (30, 5)), rng.integers(5, size=30)
        objective = MAKERS[library](n_classes=5, label_smoothing=0.1)
        again = pickle.loads(pickle.dumps(objective))
        for ours, theirs in zip(again(scores, Data(labels)), objective(scores, Data(labels)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert again.eval_metric(scores, Data(labels)) == objective.eval_metric(scores, Data(labels))
        assert library in repr(objective)
        assert library in repr(objective.eval_metric)


@pytest.mark.integration
class TestLibraries:
    """The same trees as the libraries' own objectives grow."""

    ROUNDS = 20

    @pytest.fixture(params=[False, True], ids=["", "weighted"])
    def digits(self, request, rng):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        weight = rng.uniform(0.5, 1.5, len(labels)).astype(np.float32) if request.param else None
        return pixels.astype(np.float32), labels, weight

    @pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
    def test_xgboost(self, digits, loss):
        import xgboost

        pixels, labels, weight = digits
        labels, n_classes = (labels, 10) if loss == "cross_entropy" else (labels % 2, None)
        data = xgboost.DMatrix(pixels, label=labels, weight=weight)
        params = {"max_depth": 4, "nthread": 1, "eta": 0.3, "disable_default_eval_metric": True}
        params |= {"num_class": 10} if n_classes else {}
        built_in = "multi:softprob" if n_classes else "binary:logistic"
        # A base score of 0.5 is one of 0 for the raw scores of binary:logistic.
        expected = xgboost.train(params | {"objective": built_in, "base_score": 0.5}, data, self.ROUNDS)
        objective, history = xgboost_objective(loss, n_classes=n_classes), {}
        booster = xgboost.train(
            params | {"base_score": 0.5 if n_classes else 0.0},
            data,
            self.ROUNDS,
            obj=objective,
            custom_metric=objective.eval_metric,
            evals=[(data, "train")],
            evals_result=history,
            verbose_eval=False,
        )
        splits, expected_splits = (
            re.findall(r"\[(.*?)\]", "".join(model.get_dump())) for model in (booster, expected)
        )
        assert len(splits) > 100
        assert splits == expected_splits
        scores, expected_scores = (model.predict(data, output_margin=True) for model in (booster, expected))
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
        if n_classes:
            losses = F.cross_entropy(scores, labels, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        mean = np.average(losses, weights=weight)
        assert history["train"][loss][-1] == pytest.approx(mean, rel=1e-4)

    @pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
    def test_lightgbm(self, digits, loss):
        import lightgbm

        pixels, labels, weight = digits
        labels, n_classes = (labels, 10) if loss == "cross_entropy" else (labels % 2, None)
        params = {"verbose": -1, "num_threads": 1, "deterministic": True, "boost_from_average": False}
        params |= {"num_class": 10} if n_classes else {}

        def train(objective, **named):
            data = lightgbm.Dataset(pixels, label=labels, weight=weight, params={"verbose": -1})
            return lightgbm.train(
                params | {"objective": objective}, data, self.ROUNDS, valid_sets=[data], **named
            )

        expected = train("multiclass" if n_classes else "binary")
        objective = lightgbm_objective(loss, n_classes=n_classes)
        booster = train(objective, feval=objective.eval_metric)
        splits, expected_splits = (
            re.findall("split_feature=.*|threshold=.*", model.model_to_string())
            for model in (booster, expected)
        )
        assert len(splits) > 30
        assert splits == expected_splits
        scores, expected_scores = (model.predict(pixels, raw_score=True) for model in (booster, expected))
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
        name = "multi_logloss" if n_classes else "binary_logloss"
        assert booster.best_score["training"][loss] == pytest.approx(
            expected.best_score["training"][name], rel=1e-4
        )

    # LightGBM has other names for it from 4.7 on.
    @pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
    @pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
    def test_scikit_learn_s_interfaces(self, digits, library, loss):
        from sklearn.base import clone

        pixels, labels, weight = digits
        objective = MAKERS[library](loss, n_classes=10, interface="sklearn", label_smoothing=0.1)
        if library == "xgboost":
            from xgboost import XGBClassifier

            estimator = XGBClassifier(
                n_estimators=10, n_jobs=1, objective=objective, eval_metric=objective.eval_metric
            )
            clone(estimator)
            estimator.fit(pixels, labels, sample_weight=weight, eval_set=[(pixels, labels)], verbose=False)
            losses = estimator.evals_result()["validation_0"][loss]
            scores = estimator.predict(pixels, output_margin=True)
        else:
            from lightgbm import LGBMClassifier

            estimator = clone(
                LGBMClassifier(n_estimators=10, n_jobs=1, verbose=-1, objective=objective, metric="None")
            )
            estimator.fit(
                pixels,
                labels,
                sample_weight=weight,
                eval_set=[(pixels, labels)],
                eval_metric=objective.eval_metric,
            )
            (history,) = estimator.evals_result_.values()
            assert list(history) == [loss]
            losses = history[loss]
            scores = estimator.predict(pixels, raw_score=True)
        assert np.mean(scores.argmax(axis=1) == labels) > 0.97
        assert losses[-1] < losses[0] / 2
