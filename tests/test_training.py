"""Whole training runs in torch, with cyce.torch and with torch's own losses."""

import contextlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import cyce
import cyce.torch as CT

pytestmark = pytest.mark.integration

# Real text, which is at hand.
TEXT = Path(cyce.__file__).with_name("functional").joinpath("_cross_entropy.py").read_text(encoding="utf-8")


def patched(is_patched):
    """Return a context in which torch's names are cyce's, or one that changes nothing."""
    return CT.patch() if is_patched else contextlib.nullcontext()


def train(model, batches, loss_of):
    """Return the losses of some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_the_same_training(make_model, batches, loss_of):
    """Assert that the losses of all steps are the same with and without cyce, and fall."""
    results = []
    for is_patched in (False, True):
        torch.manual_seed(0)
        with patched(is_patched):
            results.append(train(make_model(), batches, loss_of))
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert results[0][-1] < results[0][0]


def words(n_steps=20, length=64):
    """Return batches of bytes of a text."""
    text = torch.tensor(list(TEXT.encode()), dtype=torch.int64)
    return [(text[i * length : (i + 4) * length].reshape(4, length),) for i in range(n_steps)]


def language_model():
    """Return a small GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=256, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


@pytest.mark.filterwarnings("ignore")
class TestLanguageModels:
    def test_twenty_steps(self):
        assert_the_same_training(
            language_model, words(), lambda model, ids: model(input_ids=ids, labels=ids).loss
        )

    def test_the_patch_is_what_transformers_calls(self, monkeypatch):
        def refuse(*arguments, **named):
            raise AssertionError("torch's own function was called")

        monkeypatch.setitem(CT.functional.TORCH, "cross_entropy", refuse)
        (ids,) = words(1)[0]
        with CT.patch():
            language_model()(input_ids=ids, labels=ids).loss.backward()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_loss_for_trainers(self, dtype):
        torch.manual_seed(0)
        model = language_model().to(dtype)
        (ids,) = words(1)[0]
        outputs = model(input_ids=ids)
        expected = model.loss_function(logits=outputs.logits, labels=ids, vocab_size=256)
        torch.testing.assert_close(CT.causal_lm_loss(outputs, ids), expected)
        expected = model.loss_function(
            logits=outputs.logits, labels=ids, vocab_size=256, num_items_in_batch=torch.tensor(100)
        )
        torch.testing.assert_close(CT.causal_lm_loss(outputs, ids, torch.tensor(100)), expected)

    def test_trainer(self, tmp_path):
        from transformers import Trainer, TrainingArguments

        (ids,) = words(1)[0]
        data = [{"input_ids": row, "labels": row} for row in ids]
        losses = []
        for loss in (None, CT.causal_lm_loss):
            arguments = TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=3,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                report_to=[],
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                disable_tqdm=True,
                seed=0,
            )
            torch.manual_seed(0)
            trainer = Trainer(language_model(), arguments, train_dataset=data, compute_loss_func=loss)
            trainer.train()
            losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert len(losses[0]) == 3
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_segmentation():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 2, 3, 32, 32, generator=generator)
    masks = (images[:, :, 0] > 0).long() + (images[:, :, 1] > 1).long()
    masks[:, :, :2] = 255

    def make():
        layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
        return torch.nn.Sequential(*layers)

    criterion = torch.nn.CrossEntropyLoss(ignore_index=255)
    batches = list(zip(images, masks, strict=True))
    assert_the_same_training(make, batches, lambda model, x, y: criterion(model(x), y))


class Digits(torch.utils.data.Dataset):
    """The digits of the demo."""

    def __init__(self):
        from cyce._demo import load_digits

        pixels, digits = load_digits()
        self.pixels, self.digits = torch.from_numpy(pixels), torch.from_numpy(digits.astype(np.int64))

    def __len__(self):
        return 640

    def __getitem__(self, i):
        # A loss in a worker, which is a forked process.
        row = self.pixels[i]
        assert CT.cross_entropy(row[None, :10], self.digits[i : i + 1]).isfinite()
        return row, self.digits[i]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_classifier_whose_data_come_from_workers(n_workers):
    torch.set_num_threads(2)
    CT.cross_entropy(torch.zeros(4096, 1000), torch.zeros(4096, dtype=torch.int64))
    # A list: processes are started once.
    batches = list(torch.utils.data.DataLoader(Digits(), batch_size=32, num_workers=n_workers))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    assert_the_same_training(
        lambda: torch.nn.Linear(64, 10), batches, lambda model, x, y: criterion(model(x), y)
    )


def run_rank(rank, port, folder):
    """Train a part of the batches in one of two processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    data = Digits()
    losses = []
    for is_patched in (False, True):
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 10))
        batches = [(data.pixels[i : i + 32], data.digits[i : i + 32]) for i in range(32 * rank, 640, 64)]
        with patched(is_patched):
            losses.append(
                train(model, batches, lambda model, x, y: torch.nn.functional.cross_entropy(model(x), y))
            )
    torch.distributed.destroy_process_group()
    np.save(Path(folder, f"{rank}.npy"), losses)
    # Gloo's threads live on, and one that drops a Python object while the interpreter ends aborts the process
    # (https://github.com/pytorch/pytorch/pull/179291).
    os._exit(0)


@pytest.mark.filterwarnings("ignore")
def test_two_processes_over_gloo(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_rank, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        by_torch, by_cyce = np.load(tmp_path / f"{rank}.npy")
        np.testing.assert_allclose(by_cyce, by_torch, rtol=1e-5)
        assert by_torch[-1] < by_torch[0]
