"""Modules of cyce.torch, its patch, and the loss of language models."""

import copy
import pickle

import pytest
import torch

import cyce.torch as CT
from torch_losses import HALVES, LOGITS, NAMES, TARGET, TORCH, is_by_cyce


def call_by_name(logits: torch.Tensor, target: torch.Tensor):
    return CT.cross_entropy(logits, target)


def call_with_an_extension(logits: torch.Tensor, target: torch.Tensor):
    return CT.cross_entropy(logits, target, z_loss=0.1)


class TestModules:
    def test_settings_and_state(self):
        module = CT.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), ignore_index=2, label_smoothing=0.1)
        assert repr(module) == "CrossEntropyLoss()"
        assert list(module.state_dict()) == ["weight"]
        for same in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(same(LOGITS, TARGET), module(LOGITS, TARGET))
        assert module.double().weight.dtype == torch.float64
        x = LOGITS.double().requires_grad_()
        assert is_by_cyce(module(x, TARGET))


class TestPatch:
    def is_patched(self):
        x = LOGITS.clone().requires_grad_()
        return is_by_cyce(torch.nn.CrossEntropyLoss()(x, TARGET))

    def test_as_a_context_manager(self):
        with CT.patch():
            assert self.is_patched()
        assert not self.is_patched()
        for name in NAMES:
            assert getattr(torch.nn.functional, name) is TORCH[name]

    def test_as_a_call(self):
        patch = CT.patch()
        assert self.is_patched()
        patch.restore()
        assert not self.is_patched()
        patch.restore()
        with CT.patch():
            patch.restore()
            assert self.is_patched()

    def test_the_last_one_restores(self):
        first, second = CT.patch(), CT.patch()
        first.restore()
        assert self.is_patched()
        second.restore()
        assert not self.is_patched()

    def test_what_was_restored_is_not_entered(self):
        patch = CT.patch()
        patch.restore()
        with pytest.raises(RuntimeError, match=r"this patch was restored; call cyce\.torch\.patch\(\) again"):
            patch.__enter__()

    def test_exceptions(self):
        with pytest.raises(ZeroDivisionError), CT.patch():
            1 / 0  # noqa: B018
        assert not self.is_patched()

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:reduction. 'mean' divides")
    @pytest.mark.parametrize(
        ("module", "target"),
        [
            (torch.nn.CrossEntropyLoss(), TARGET),
            (torch.nn.NLLLoss(), TARGET),
            (torch.nn.BCEWithLogitsLoss(), LOGITS.sigmoid()),
            (torch.nn.KLDivLoss(), LOGITS.softmax(1)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_scripts_take_torch_s_functions(self, module, target):
        with CT.patch():
            scripted = torch.jit.script(module)
        torch.testing.assert_close(scripted(LOGITS, target), module(LOGITS, target))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    def test_scripts_that_call_cyce_take_torch_s_function(self):
        scripted = torch.jit.script(call_by_name)
        torch.testing.assert_close(scripted(LOGITS, TARGET), TORCH["cross_entropy"](LOGITS, TARGET))
        with pytest.raises(RuntimeError, match="z_loss"):
            torch.jit.script(call_with_an_extension)

    def test_what_others_put_there_stays(self, monkeypatch):
        with CT.patch():
            monkeypatch.setattr(torch.nn.functional, "nll_loss", len)
        assert torch.nn.functional.nll_loss is len


class TestCausalLanguageModels:
    def by_hand(self, logits, labels, n_items=None):
        words = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        flat = logits.float().reshape(-1, logits.shape[-1])
        if n_items is None:
            return TORCH["cross_entropy"](flat, words)
        return TORCH["cross_entropy"](flat, words, reduction="sum") / n_items

    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
    @pytest.mark.parametrize("n_items", [None, 7, torch.tensor(7)])
    def test_as_transformers_computes_it(self, without_torch, dtype, n_items):
        torch.manual_seed(0)
        logits = torch.randn(2, 6, 11).to(dtype)
        labels = torch.randint(0, 11, (2, 6))
        labels[1, 3:] = -100
        expected = self.by_hand(logits, labels, n_items)
        for outputs in (logits, {"logits": logits}, type("Outputs", (), {"logits": logits})()):
            loss = CT.causal_lm_loss(outputs, labels, n_items)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, expected)
