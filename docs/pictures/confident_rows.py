"""The loss of a confident row and the gradient at its target, by cyce and by torch."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce
import cyce.functional as F

lead = np.linspace(0, 80, 321, dtype=np.float32)
logits = np.stack([lead, 0 * lead, 0 * lead], axis=1)
target = np.zeros(len(lead), np.int64)
loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none")
tensor = torch.from_numpy(logits).requires_grad_()
other = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(target), reduction="none")
other.sum().backward()
panels = {
    "loss": (loss, other.detach().numpy()),
    "gradient at the target, negative": (-gradient[:, 0], -tensor.grad[:, 0].numpy()),
}

_, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
for panel, (title, (ours, theirs)) in zip(axes, panels.items(), strict=True):
    panel.semilogy(lead, ours, label="cyce")
    panel.semilogy(lead, np.where(theirs > 0, theirs, np.nan), "--", label="torch (then 0)")
    panel.set(title=title, xlabel="lead of the target")
    panel.grid(color="0.9")
axes[0].legend()
