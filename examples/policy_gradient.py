"""
A policy gradient
=================

Learn to name digits from rewards alone: a clipped policy gradient (PPO) with an entropy bonus.

Usage::

    python examples/policy_gradient.py

The policy draws a class for each image and is told whether it is right. The objective needs the
log-probabilities of what was drawn, under the policy that drew it and under the one that learns, and the
entropy: one pass over the logits each, and one for the gradient.
"""

import numpy as np
from numpy.typing import NDArray

import cyce
import cyce.functional as F
from cyce import _demo

N_HELD_OUT = 450
N_ROUNDS = 60
N_STEPS = 4
CLIP = 0.2
ENTROPY_BONUS = 0.01
LEARNING_RATE = 2.0

logits_gradient = cyce.value_and_grad(F.selective_log_softmax)


def upstream(
    log_p: NDArray[np.float32], log_p_drawn: NDArray[np.float32], advantage: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the gradient of the clipped objective by the log-probabilities.

    With the ratio r of the probabilities, it is min(r A, clip(r) A), whose gradient is r A, or 0 where the
    clipped one is the smaller.
    """
    ratio = np.exp(log_p - log_p_drawn)
    is_clipped = np.where(advantage > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
    return np.where(is_clipped, 0, ratio * advantage).astype(np.float32)


def main() -> float:
    """Learn, and return the accuracy on digits that were never drawn."""
    rng = np.random.default_rng(0)
    pixels, digits = _demo.load_digits()
    images = np.column_stack([pixels, np.ones(len(pixels), np.float32)])
    learn, labels = images[N_HELD_OUT:], digits[N_HELD_OUT:]
    weights = np.zeros((images.shape[1], 10), np.float32)
    for number in range(N_ROUNDS):
        logits = learn @ weights
        # Gumbel's trick draws from the softmax.
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        reward = (drawn == labels).astype(np.float32)
        advantage = reward - reward.mean()
        log_p_drawn, entropy = F.selective_log_softmax(logits, drawn, return_entropy=True)
        for _ in range(N_STEPS):
            logits = learn @ weights
            of_log_p = upstream(F.selective_log_softmax(logits, drawn), log_p_drawn, advantage) / len(learn)
            of_entropy = ENTROPY_BONUS / len(learn)
            _, gradient = logits_gradient(
                logits, drawn, return_entropy=True, grad_output=(of_log_p, of_entropy), out=logits
            )
            # Uphill.
            weights += LEARNING_RATE * (learn.T @ gradient)
        if number % 10 == 9:
            print(f"round {number + 1}: reward {reward.mean():.2f}, entropy {entropy.mean():.2f} nats")
    accuracy = float(np.mean((images[:N_HELD_OUT] @ weights).argmax(axis=1) == digits[:N_HELD_OUT]))
    print(f"accuracy on digits that were held out: {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
