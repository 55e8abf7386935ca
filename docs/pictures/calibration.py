"""The reliability of a classifier that is too sure of itself, and after its temperature was fitted."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import cyce
from cyce import plotting

pixels, digits = load_digits(return_X_y=True)
# A quarter of the pixels, few digits to learn from, and no regularisation to speak of.
pixels = pixels.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
model = LogisticRegression(C=1e4, max_iter=10_000).fit(pixels[:150], digits[:150])
logits = model.decision_function(pixels[150:])
held_out, test = np.array_split(np.arange(len(logits)), 2)
temperature = cyce.fit_temperature(logits[held_out], digits[150:][held_out])

_, panels = plt.subplots(1, 2, figsize=(8, 5), layout="constrained")
for axes, divisor, title in zip(
    panels, (1.0, temperature), ("as trained", f"temperature {temperature:.1f}"), strict=True
):
    plotting.reliability_diagram(logits[test] / divisor, digits[150:][test], n_bins=10, ax=axes)
    axes.set_title(f"{title}: {axes.get_title().removeprefix('expected ')}", fontsize="medium")
