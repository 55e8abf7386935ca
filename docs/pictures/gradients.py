"""The gradient at the target of a confident row, by cyce and by torch."""

import matplotlib.pyplot as plt
import numpy as np
import torch

import cyce
import cyce.functional as F

lead = np.linspace(0, 80, 321, dtype=np.float32)
logits = np.stack([lead, 0 * lead, 0 * lead], axis=1)
target = np.zeros(len(lead), np.int64)
_, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="sum")
tensor = torch.from_numpy(logits).requires_grad_()
torch.nn.functional.cross_entropy(tensor, torch.from_numpy(target), reduction="sum").backward()
other = np.abs(tensor.grad[:, 0].numpy())

_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.semilogy(lead, -gradient[:, 0], label="cyce")
axes.semilogy(lead, np.where(other > 0, other, np.nan), "--", label="torch (then 0)")
axes.set(xlabel="lead of the target", ylabel="1 - probability of the target")
axes.legend()
axes.grid(color="0.9")
