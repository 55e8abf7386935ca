"""Whose cross-entropy is timed: each offers the same three calls over NumPy arrays."""

import numpy as np


class Cyce:
    """The kernels in use (see CYCE_LEVEL)."""

    def __init__(self, n_threads):
        import cyce

        cyce.set_num_threads(n_threads)
        self._loss = cyce.cross_entropy
        self._loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)

    def loss(self, logits, target):
        """Return a call that computes the loss."""
        return lambda: self._loss(logits, target)

    def loss_and_gradient(self, logits, target):
        """Return a call that computes the loss and a fresh gradient."""
        return lambda: self._loss_and_gradient(logits, target)

    def loss_and_reused_gradient(self, logits, target):
        """Return a call that writes the gradient to the same memory each time."""
        gradient = np.zeros_like(logits)
        return lambda: self._loss_and_gradient(logits, target, out=gradient)


class Torch:
    """torch's eager mode."""

    def __init__(self, n_threads):
        import torch

        torch.set_num_threads(n_threads)
        self._torch = torch
        self._cross_entropy = torch.nn.functional.cross_entropy

    def loss(self, logits, target):
        """Return a call that computes the loss."""
        tensor, classes = self._torch.from_numpy(logits), self._torch.from_numpy(target)

        def call():
            with self._torch.no_grad():
                return self._cross_entropy(tensor, classes).numpy()

        return call

    def loss_and_gradient(self, logits, target):
        """Return a call that computes the loss and a fresh gradient."""
        variable = self._torch.from_numpy(logits).requires_grad_()
        classes = self._torch.from_numpy(target)

        def call():
            variable.grad = None
            loss = self._cross_entropy(variable, classes)
            loss.backward()
            return loss.detach().numpy(), variable.grad.numpy()

        return call

    # There is no way to tell backward() where to write.
    loss_and_reused_gradient = loss_and_gradient


CONTENDERS = {"cyce": Cyce, "torch": Torch}


def assert_right(contender, logits, target):
    """Assert that the contender computes the loss, and the gradient of a few positions, in float64."""
    n_classes = logits.shape[1]
    positions = np.moveaxis(logits, 1, -1)
    total = 0.0
    for row, classes in zip(positions, target, strict=True):
        x = np.atleast_2d(row).astype(np.float64).reshape(-1, n_classes)
        lse = np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1)) + x.max(axis=1)
        total += (lse - x[np.arange(len(x)), np.atleast_1d(classes).ravel()]).sum()
    np.testing.assert_allclose(contender.loss(logits, target)(), total / target.size, rtol=1e-5)
    for make in (contender.loss_and_gradient, contender.loss_and_reused_gradient):
        loss, gradient = make(logits, target)()
        np.testing.assert_allclose(loss, total / target.size, rtol=1e-5)
        for row in (0, -1):
            x = np.atleast_2d(positions[row]).astype(np.float64).reshape(-1, n_classes)
            softmax = np.exp(x - x.max(axis=1, keepdims=True))
            softmax /= softmax.sum(axis=1, keepdims=True)
            softmax[np.arange(len(x)), np.atleast_1d(target[row]).ravel()] -= 1
            np.testing.assert_allclose(
                np.moveaxis(gradient, 1, -1)[row].reshape(-1, n_classes),
                softmax / target.size,
                rtol=1e-4,
                atol=1e-12,
            )
