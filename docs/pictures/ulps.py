"""Errors in ulp of losses and gradients in float32, by cyce and by torch."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce
import cyce.functional as F

rng = np.random.default_rng(0)
logits = (rng.uniform(0.1, 12, (20_000, 1)) * rng.standard_normal((20_000, 50))).astype(np.float32)
target = np.where(rng.random(20_000) < 0.5, logits.argmax(axis=1), rng.integers(50, size=20_000))
rows = np.arange(len(target))

wide = logits.astype(np.longdouble)
apart = wide - wide.max(axis=1, keepdims=True)
terms = np.exp(apart)
terms[rows, logits.argmax(axis=1)] = 0
rest = terms.sum(axis=1)
losses = np.log1p(rest) - apart[rows, target]
others = np.exp(apart) / (1 + rest[:, None])
others[rows, target] = np.nan


def ulps(value, exact):
    """Return the errors of numbers above 1e-12, in ulp of the exact ones."""
    with np.errstate(invalid="ignore"):
        error = np.abs(value - exact) / np.spacing(exact.astype(np.float32))
    return error[exact > 1e-12].astype(float)


loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none")
tensor = torch.from_numpy(logits).requires_grad_()
other_loss = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(target), reduction="none")
other_loss.sum().backward()
panels = {
    "losses": (2, losses, loss, other_loss.detach().numpy()),
    "gradients of the other classes": (3, others, gradient, tensor.grad.numpy()),
}

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
bins = np.geomspace(0.01, 1e8, 90)
for panel, (title, (bound, exact, ours, theirs)) in zip(axes, panels.items(), strict=True):
    for values, label in ((ours, "cyce"), (theirs, "torch")):
        error = ulps(values, exact)
        weights = np.full(len(error), 1 / len(error))
        panel.hist(np.clip(error, 0.01, None), bins, weights=weights, alpha=0.6, label=label)
    panel.axvline(bound, color="0.3", linewidth=1)
    panel.set(xscale="log", title=title, xlabel="error, ulp")
axes[0].set_ylabel("share")
axes[0].legend()
