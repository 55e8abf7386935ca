"""CrossEntropyLoss: torch's constructor, attributes and repr."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

import cyce
import cyce.functional as F


def test_the_constructor_is_torch_s():
    ours = inspect.signature(cyce.CrossEntropyLoss).parameters
    theirs = inspect.signature(torch.nn.CrossEntropyLoss).parameters
    torch_s = [(name, p) for name, p in ours.items() if p.kind is not p.KEYWORD_ONLY]
    assert [(name, p.default, p.kind) for name, p in torch_s] == [
        (name, p.default, p.kind) for name, p in theirs.items()
    ]


def test_the_function_is_torch_s():
    ours = inspect.signature(F.cross_entropy).parameters
    theirs = inspect.signature(torch.nn.functional.cross_entropy).parameters
    torch_s = [(name, p) for name, p in ours.items() if p.kind is not p.KEYWORD_ONLY]
    assert [(name, p.default, p.kind) for name, p in torch_s] == [
        (name, p.default, p.kind) for name, p in theirs.items()
    ]


def test_linear_cross_entropy_is_torch_s():
    for ours, theirs in (
        (cyce.LinearCrossEntropyLoss, torch.nn.LinearCrossEntropyLoss),
        (F.linear_cross_entropy, torch.nn.functional.linear_cross_entropy),
        (cyce.LinearCrossEntropyOptions, torch.nn.LinearCrossEntropyOptions),
    ):
        parameters = inspect.signature(ours).parameters
        for name, theirs_of_name in inspect.signature(theirs).parameters.items():
            assert parameters[name].default == theirs_of_name.default
            assert parameters[name].kind == theirs_of_name.kind
        extensions = list(parameters)[len(inspect.signature(theirs).parameters) :]
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extensions)


def test_attributes_hold_what_was_given():
    weight = np.array([1.0, 2.0])
    criterion = cyce.CrossEntropyLoss(weight, None, 5, None, "sum", 0.25)
    assert criterion.weight is weight
    assert (criterion.ignore_index, criterion.reduction, criterion.label_smoothing) == (5, "sum", 0.25)


def test_repr_is_torch_s():
    assert repr(cyce.CrossEntropyLoss(weight=[1.0, 2.0], reduction="sum")) == "CrossEntropyLoss()"
    assert repr(torch.nn.CrossEntropyLoss(weight=torch.ones(2))) == "CrossEntropyLoss()"


def test_calling_it_computes_the_function(rng):
    logits, target = rng.standard_normal((6, 2)), rng.integers(2, size=6)
    options = {"weight": [1.0, 3.0], "ignore_index": 1, "reduction": "none", "label_smoothing": 0.1}
    criterion = cyce.CrossEntropyLoss(**options)
    expected = F.cross_entropy(logits, target, **options)
    for losses in (
        criterion(logits, target),
        criterion.forward(logits, target),
        criterion(target=target, input=logits),
    ):
        np.testing.assert_array_equal(losses, expected)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(duplicate):
    criterion = duplicate(cyce.CrossEntropyLoss(weight=np.array([1.0, 2.0]), reduction="sum"))
    np.testing.assert_array_equal(criterion.weight, [1.0, 2.0])
    assert criterion(np.zeros((1, 2)), [1]) == pytest.approx(2 * np.log(2))


def test_a_subclass_may_compute_its_own(rng):
    class Doubled(cyce.CrossEntropyLoss):
        def forward(self, input, target):
            return 2 * super().forward(input, target)

    assert Doubled()(np.zeros((1, 2)), [0]) == pytest.approx(2 * np.log(2))
    assert repr(Doubled()) == "Doubled()"
    with pytest.raises(TypeError, match="loss: Doubled overrides forward"):
        cyce.value_and_grad(Doubled())
