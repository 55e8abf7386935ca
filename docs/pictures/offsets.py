"""The error of losses when all logits get the same offset, by cyce and by torch."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce.functional as F

rng = np.random.default_rng(0)
logits = np.round(128 * 3 * rng.standard_normal((2000, 10))).astype(np.float32) / 128
target = logits.argmax(axis=1)
exact = F.cross_entropy(logits.astype(float), target, reduction="none")
offsets = 2.0 ** np.arange(17)
errors = {"cyce": [], "torch": []}
for offset in offsets.astype(np.float32):
    moved = logits + offset
    loss = F.cross_entropy(moved, target, reduction="none")
    other = torch.nn.functional.cross_entropy(
        torch.from_numpy(moved), torch.from_numpy(target), reduction="none"
    ).numpy()
    errors["cyce"].append(np.max(np.abs(loss / exact - 1)))
    errors["torch"].append(np.max(np.abs(other / exact - 1)))

_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, values in errors.items():
    axes.loglog(offsets, values, "o-" if name == "cyce" else "s--", label=name)
axes.set(xlabel="offset of all logits", ylabel="largest relative error")
axes.legend()
axes.grid(color="0.9")
