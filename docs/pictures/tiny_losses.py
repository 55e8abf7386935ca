"""The loss of a confident row, by cyce and by torch."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce.functional as F

lead = np.linspace(0, 80, 321, dtype=np.float32)
logits = np.stack([lead, 0 * lead, 0 * lead], axis=1)
target = np.zeros(len(lead), np.int64)
loss = F.cross_entropy(logits, target, reduction="none")
other = torch.nn.functional.cross_entropy(
    torch.from_numpy(logits), torch.from_numpy(target), reduction="none"
)

_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.semilogy(lead, loss, label="cyce")
axes.semilogy(lead, np.where(other > 0, other, np.nan), "--", label="torch (then 0)")
axes.set(xlabel="lead of the target", ylabel="loss")
axes.legend()
axes.grid(color="0.9")
