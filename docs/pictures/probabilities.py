"""Predicted probabilities of some handwritten digits: the first ones, and those with the largest losses."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import cyce.functional as F
from cyce import plotting

pixels, digits = load_digits(return_X_y=True)
model = LogisticRegression(max_iter=2000).fit(pixels[450:] / 16, digits[450:])
logits, target = model.decision_function(pixels[:450] / 16), digits[:450]
losses = F.cross_entropy(logits, target, reduction="none")
shown = np.concatenate([np.arange(4), 4 + np.argsort(-losses[4:])[:4]])

figure = plt.figure(figsize=(9, 4.2), layout="constrained")
grid = figure.add_gridspec(2, len(shown), height_ratios=[1, 2.5])
for column, number in enumerate(shown):
    axes = figure.add_subplot(grid[0, column])
    axes.imshow(pixels[number].reshape(8, 8), cmap="gray_r")
    axes.set(xticks=[], yticks=[], title=f"a {target[number]}")
plotting.probabilities(logits[shown], target[shown], ax=figure.add_subplot(grid[1, :]))
