"""The error of losses when all logits get the same offset: cyce, torch, and the formula in steps."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce.functional as F

rng = np.random.default_rng(0)
logits = np.round(128 * 3 * rng.standard_normal((2000, 10))).astype(np.float32) / 128
target = rng.integers(10, size=2000)
exact = F.cross_entropy(logits.astype(float), target, reduction="none")
counts = exact > 0.01
offsets = 2.0 ** np.arange(17)


def in_steps(logits):
    """Return the losses by the log-sum-exp, minus the target's logit."""
    maxima = logits.max(axis=1)
    lse = maxima + np.log(np.exp(logits - maxima[:, None]).sum(axis=1))
    return lse - logits[np.arange(len(logits)), target]


def by_torch(logits):
    """Return torch's losses."""
    given = torch.from_numpy(logits), torch.from_numpy(target)
    return torch.nn.functional.cross_entropy(*given, reduction="none").numpy()


contenders = {
    "cyce": lambda logits: F.cross_entropy(logits, target, reduction="none"),
    "torch": by_torch,
    "log-sum-exp minus logit": in_steps,
}
_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for (name, call), style in zip(contenders.items(), ("o-", "s--", "^:"), strict=True):
    errors = [
        np.abs(call(logits + offset) / exact - 1)[counts].max() for offset in offsets.astype(np.float32)
    ]
    axes.loglog(offsets, errors, style, label=name)
axes.set(xlabel="offset of all logits", ylabel="largest relative error")
axes.legend()
axes.grid(color="0.9")
