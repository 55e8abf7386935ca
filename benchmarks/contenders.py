"""Whose cross-entropy is timed.

A contender is made for a number of threads. Its methods take the arrays of a case and return a call
without arguments that does the work: `loss` returns the mean loss; `fresh`, `reused` and `in_place`
the mean loss and its gradient. What a library does not offer raises Unsupported, or is the nearest
that it does.
"""

import ctypes
import functools
import importlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.cases import IGNORE_INDEX, Inputs


class Unsupported(Exception):  # noqa: N818
    """The library has no such thing."""


class Cyce:
    """The kernels in use (see CYCE_LEVEL)."""

    packages = ("cyce",)

    def __init__(self, n_threads):
        import cyce

        cyce.set_num_threads(n_threads)
        self._loss = cyce.cross_entropy
        self._loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)

    def loss(self, inputs):
        """Return a call that computes the loss."""
        return lambda: self._loss(inputs.logits, inputs.target, **inputs.options)

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        return lambda: self._loss_and_gradient(inputs.logits, inputs.target, **inputs.options)

    def reused(self, inputs):
        """Return a call that writes the gradient to the same memory each time."""
        buffer = np.zeros_like(inputs.logits)
        return lambda: self._loss_and_gradient(inputs.logits, inputs.target, out=buffer, **inputs.options)

    def in_place(self, inputs):
        """Return a call that overwrites the logits with the gradient."""
        logits = inputs.logits
        return lambda: self._loss_and_gradient(logits, inputs.target, out=logits, **inputs.options)


def refuse_half_precision(inputs):
    """Raise Unsupported unless the logits are float32 or float64."""
    if inputs.logits.dtype.itemsize < 4:
        raise Unsupported("float32 and float64 only")


def as_array(value):
    """Return an array, or a tensor, which may be of bfloat16, as an array."""
    return value.detach().double().numpy() if hasattr(value, "detach") else np.asarray(value)


class Torch:
    """torch's eager mode; backward() cannot be told where to write."""

    packages = ("torch",)

    def __init__(self, n_threads):
        import torch

        torch.set_num_threads(n_threads)
        self._torch = torch

    def _function(self):
        return self._torch.nn.functional.cross_entropy

    def _tensor(self, array):
        if array.dtype.name == "bfloat16":
            return self._torch.from_numpy(array.view(np.uint16)).view(self._torch.bfloat16)
        return self._torch.from_numpy(array)

    def _arguments(self, inputs):
        options = dict(inputs.options)
        if "weight" in options:
            options["weight"] = self._tensor(options["weight"])
        return self._tensor(inputs.logits), self._tensor(inputs.target), options

    def loss(self, inputs):
        """Return a call that computes the loss."""
        logits, target, options = self._arguments(inputs)
        function = self._function()

        def call():
            with self._torch.no_grad():
                return function(logits, target, **options)

        return call

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        logits, target, options = self._arguments(inputs)
        logits.requires_grad_()
        function = self._function()

        def call():
            logits.grad = None
            loss = function(logits, target, **options)
            loss.backward()
            return loss, logits.grad

        return call

    reused = in_place = fresh


class TorchCompile(Torch):
    """torch.compile of the same function."""

    def _function(self):
        self._torch._dynamo.reset()
        return self._torch.compile(self._torch.nn.functional.cross_entropy, dynamic=False)


class Jax:
    """JAX's jit of the textbook's loss; threads follow the CPUs that the process may use."""

    packages = ("jax",)

    def __init__(self, _n_threads):
        import jax

        jax.config.update("jax_enable_x64", True)
        self._jax = jax

    def _arguments(self, inputs):
        arrays = {"logits": inputs.logits, "target": inputs.target, "weight": inputs.weight}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return self._jax.device_put(arrays)

    def _function(self, inputs):
        jnp, nn = self._jax.numpy, self._jax.nn
        smoothing = inputs.label_smoothing

        def function(logits, target, weight=None):
            negative = -nn.log_softmax(logits, axis=1)
            if not inputs.by_index:
                return (target * negative).sum() / (target.size // target.shape[1])
            counts = target != IGNORE_INDEX
            classes = jnp.where(counts, target, 0)
            picked = jnp.take_along_axis(negative, jnp.expand_dims(classes, 1), 1).squeeze(1)
            if smoothing:
                picked = (1 - smoothing) * picked + smoothing * negative.mean(axis=1)
            mass = counts.astype(logits.dtype) if weight is None else counts * weight[classes]
            return (mass * picked).sum() / mass.sum()

        return function

    def loss(self, inputs):
        """Return a call that computes the loss."""
        arguments = self._arguments(inputs)
        function = self._jax.jit(self._function(inputs))
        return lambda: function(**arguments).block_until_ready()

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        arguments = self._arguments(inputs)
        logits = arguments.pop("logits")
        function = self._jax.jit(self._jax.value_and_grad(self._function(inputs)))
        return lambda: self._jax.block_until_ready(function(logits, **arguments))

    reused = in_place = fresh


class ScikitLearn:
    """scikit-learn's HalfMultinomialLoss, which its LogisticRegression is made of."""

    packages = ("sklearn",)

    def __init__(self, n_threads):
        from sklearn._loss.loss import HalfMultinomialLoss

        self._n_threads = n_threads
        self._class = HalfMultinomialLoss

    def _arguments(self, inputs):
        refuse_half_precision(inputs)
        n_classes = inputs.logits.shape[1]
        if inputs.logits.ndim > 2 or n_classes == 1 or not inputs.by_index or inputs.label_smoothing:
            raise Unsupported("(samples, several classes) and class indices only, no smoothing")
        counts = inputs.target != IGNORE_INDEX
        classes = np.where(counts, inputs.target, 0)
        mass = counts.astype(np.float64) if inputs.weight is None else counts * inputs.weight[classes]
        # It has no mean: weights that sum to 1 make one.
        dtype = inputs.logits.dtype
        return self._class(n_classes=n_classes), {
            "y_true": classes.astype(dtype),
            "raw_prediction": inputs.logits,
            "sample_weight": (mass / mass.sum()).astype(dtype),
            "n_threads": self._n_threads,
        }

    def loss(self, inputs):
        """Return a call that computes the loss."""
        loss, arguments = self._arguments(inputs)
        return lambda: loss.loss(**arguments).sum(dtype=np.float64)

    def _call(self, inputs, **buffers):
        loss, arguments = self._arguments(inputs)

        def call():
            losses, gradient = loss.loss_gradient(**arguments, **buffers)
            return losses.sum(dtype=np.float64), gradient

        return call

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        return self._call(inputs)

    def reused(self, inputs):
        """Return a call that writes the gradient to the same memory each time."""
        losses = np.empty(len(inputs.logits), inputs.logits.dtype)
        return self._call(inputs, loss_out=losses, gradient_out=np.zeros_like(inputs.logits))

    in_place = reused


def denominator_of(target, inputs):
    """Return what the mean over these targets divides by: their (weighted) count."""
    if not inputs.by_index:
        return target.size / target.shape[1]
    classes = target[target != IGNORE_INDEX]
    return float(classes.size if inputs.weight is None else inputs.weight[classes].sum(dtype=np.float64))


def textbook(inputs, log_softmax, gradient=None, denominator=None):
    """Return the mean loss; turn `gradient`, the softmax on entry, into the gradient unless it is None."""
    logits, target, weight, smoothing = inputs
    if denominator is None:
        denominator = denominator_of(target, inputs)
    if not inputs.by_index:
        if gradient is not None:
            gradient -= target
            gradient /= denominator
        return -np.vdot(target, log_softmax) / denominator
    counts = target != IGNORE_INDEX
    classes = np.expand_dims(np.where(counts, target, 0), 1)
    mass = np.expand_dims(counts.astype(logits.dtype), 1)
    if weight is not None:
        mass *= weight[classes]
    picked = np.take_along_axis(log_softmax, classes, 1)
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * log_softmax.mean(axis=1, keepdims=True)
    if gradient is not None:
        np.put_along_axis(gradient, classes, np.take_along_axis(gradient, classes, 1) - (1 - smoothing), 1)
        if smoothing:
            gradient -= smoothing / logits.shape[1]
        gradient *= mass / denominator
    return -(mass * picked).sum() / denominator


class NumPy:
    """The textbook in NumPy."""

    packages = ("numpy",)

    def __init__(self, _n_threads):
        pass

    def loss(self, inputs):
        """Return a call that computes the loss."""
        refuse_half_precision(inputs)

        def call():
            log_softmax = inputs.logits - inputs.logits.max(axis=1, keepdims=True)
            log_softmax -= np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
            return textbook(inputs, log_softmax)

        return call

    def _call(self, inputs, make_buffer):
        refuse_half_precision(inputs)

        def call():
            gradient = make_buffer()
            log_softmax = inputs.logits - inputs.logits.max(axis=1, keepdims=True)
            np.exp(log_softmax, out=gradient)
            total = gradient.sum(axis=1, keepdims=True)
            gradient /= total
            log_softmax -= np.log(total)
            return textbook(inputs, log_softmax, gradient), gradient

        return call

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        return self._call(inputs, lambda: np.empty_like(inputs.logits))

    def reused(self, inputs):
        """Return a call that writes the gradient to the same memory each time."""
        buffer = np.zeros_like(inputs.logits)
        return self._call(inputs, lambda: buffer)

    def in_place(self, inputs):
        """Return a call that overwrites the logits with the gradient."""
        return self._call(inputs, lambda: inputs.logits)


class SciPy:
    """The textbook with the softmax and log-softmax of SciPy."""

    packages = ("scipy",)

    def __init__(self, _n_threads):
        from scipy import special

        self._special = special

    def loss(self, inputs):
        """Return a call that computes the loss."""
        refuse_half_precision(inputs)
        return lambda: textbook(inputs, self._special.log_softmax(inputs.logits, axis=1))

    def fresh(self, inputs):
        """Return a call that computes the loss and a fresh gradient."""
        refuse_half_precision(inputs)

        def call():
            gradient = self._special.softmax(inputs.logits, axis=1)
            return textbook(inputs, self._special.log_softmax(inputs.logits, axis=1), gradient), gradient

        return call

    reused = in_place = fresh


def address(array):
    """Return the address of an array's first element, for ctypes."""
    return ctypes.c_void_p(array.__array_interface__["data"][0])


LINE = 64
"""Bytes of a cache line."""


class Limit:
    """No cross-entropy: the same bytes read or copied by all threads, in the fastest way of limits.c."""

    packages = ()

    def __init__(self, n_threads):
        self._n_threads = n_threads
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "limits.so")
            source = Path(__file__).with_name("limits.c")
            flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", str(library), str(source)]
            # Not every compiler knows these: 512 bits where there are, and no call of memcpy.
            for more in (["-mprefer-vector-width=512", "-fno-tree-loop-distribute-patterns"], []):
                command = [os.environ.get("CC", "cc"), *more, *flags]
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode == 0:
                    break
            else:
                raise ImportError(f"no C compiler with OpenMP: {done.stderr.strip()[-200:]}")
            self._library = ctypes.CDLL(str(library))
        for way in ("read_plainly", "read_prefetched"):
            getattr(self._library, way).restype = ctypes.c_uint64

    def calls(self, ways, arrays):
        """Return calls of functions of limits.c."""
        # Whole lines: a few bytes more do not matter here.
        n_bytes = ctypes.c_ssize_t(arrays[0].nbytes)
        n_threads = ctypes.c_int(self._n_threads)
        pointers = [address(array) for array in arrays]

        def call(function, _kept):
            return function(*pointers, n_bytes, n_threads)

        return [functools.partial(call, getattr(self._library, way), arrays) for way in ways]

    def _read(self, array):
        return fastest(self.calls(("read_plainly", "read_prefetched"), [array]))

    def loss(self, inputs):
        """Return a call that reads the logits, and probabilities."""
        read = self._read(inputs.logits)
        if inputs.by_index:
            return read
        other = self._read(inputs.target)
        return lambda: (read(), other())

    def _copy(self, inputs, out):
        ways = ["copy_plainly", "copy_prefetched"]
        if address(out).value % LINE == 0:
            ways += ["copy_streamed", "copy_streamed_prefetched"]
        copy = fastest(self.calls(ways, [inputs.logits, out]))
        if inputs.by_index:
            return copy
        other = self._read(inputs.target)
        return lambda: (copy(), other())

    def reused(self, inputs):
        """Return a call that copies the logits, and reads probabilities."""
        n = inputs.logits.nbytes
        memory = np.zeros(n + LINE, np.uint8)
        start = -address(memory).value % LINE
        return self._copy(inputs, memory[start : start + n])

    fresh = reused

    def in_place(self, inputs):
        """Return a call that writes the logits to where they are."""
        return self._copy(inputs, inputs.logits)


def fastest(calls):
    """Return the fastest of several calls, by the shortest of a few of each."""

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(calls, key=lambda call: min(seconds(call) for _ in range(7)))


CONTENDERS = {
    "cyce": Cyce,
    "torch": Torch,
    "torch.compile": TorchCompile,
    "JAX": Jax,
    "scikit-learn": ScikitLearn,
    "SciPy": SciPy,
    "NumPy": NumPy,
    "limit": Limit,
}
"""By name; "cyce" may be followed by a colon and a level."""


def versions(contender):
    """Return the versions of a contender's packages."""
    return {name: importlib.import_module(name).__version__ for name in contender.packages}


class Expected:
    """The loss of a case and the gradient of its first, middle and last batch entry, in float64."""

    def __init__(self, inputs):
        logits, target, _, _ = inputs
        batch = len(logits)
        denominator = denominator_of(target, inputs)
        n_at_once = max(1, 4_000_000 // (logits.size // batch))
        self.loss = sum(
            self._of(inputs, slice(first, first + n_at_once), denominator)[0]
            for first in range(0, batch, n_at_once)
        )
        self.gradients = {
            entry: self._of(inputs, slice(entry, entry + 1), denominator)[1][0]
            for entry in (0, batch // 2, batch - 1)
        }

    @staticmethod
    def _of(inputs, part, denominator):
        logits, target, weight, smoothing = inputs
        part_logits = logits[part].astype(np.float64)
        shifted = part_logits - part_logits.max(axis=1, keepdims=True)
        gradient = np.exp(shifted)
        total = gradient.sum(axis=1, keepdims=True)
        gradient /= total
        loss = textbook(
            Inputs(part_logits, target[part], weight, smoothing),
            shifted - np.log(total),
            gradient,
            denominator,
        )
        return loss, gradient

    def check(self, outcome, mode, dtype):
        """Raise an AssertionError unless a call of a mode returned what it should."""
        # Sums in float32, and losses in half precision, are what several peers have to offer.
        rtol = {"float32": 1e-4, "float64": 1e-9, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
        least = 2.0**-24 if dtype == "float16" else 0.0
        loss, gradient = (outcome, None) if mode == "loss" else outcome
        np.testing.assert_allclose(as_array(loss).astype(np.float64), self.loss, rtol=rtol, err_msg="loss")
        if mode != "loss":
            for entry, expected in self.gradients.items():
                np.testing.assert_allclose(
                    as_array(gradient[entry]).astype(np.float64),
                    expected,
                    rtol=10 * rtol,
                    # An ordinary entry: the targets' are larger by the number of classes.
                    atol=max(least, rtol * float(np.median(np.abs(expected)))),
                    err_msg=f"gradient of batch entry {entry}",
                )
