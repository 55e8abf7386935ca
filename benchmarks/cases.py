"""What is timed: shapes, dtypes, targets, data and modes, and the arrays that belong to them."""

from typing import NamedTuple

import numpy as np

MODES = {
    "loss": "loss",
    "reused": "loss + gradient into a reused buffer",
    "in place": "loss + gradient in place of the logits",
    "fresh": "loss + gradient into a fresh array",
}
"""How a loss is asked for; what cannot write a gradient where it is told to returns a fresh one."""

TARGETS = {
    "indices": "class indices",
    "ignored": "class indices, 30 % of them ignored",
    "weighted": "class indices, class weights",
    "smoothed": "class indices, label smoothing 0.1",
    "probabilities": "class probabilities",
}

DATA = {
    "normal": "N(0, 1)",
    "peaked": "N(0, 1), 5 more at the target",
    "sorted": "N(0, 1), ascending along the classes",
    "descending": "N(0, 1), descending along the classes",
    "steep": "N(0, 1), and 0.03 more with each class",
    "spikes": "N(0, 1), one of 4096 classes 100 higher",
    "offset": "N(1e4, 1)",
    "masked": "N(0, 1), 30 % of the classes but not the target at -inf",
}

DTYPES = ("float32", "float64")

HALVES = ("float16", "bfloat16")
"""Besides, on request: for the same cases as float32."""

IGNORE_INDEX = -100


def dtype_of(name: str) -> np.dtype:
    """Return NumPy's dtype of a name."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Shape(NamedTuple):
    """Logits of a classifier: batch and classes, and maybe more dimensions."""

    name: str
    sizes: tuple[int, ...]


SHAPES = {
    name: Shape(name, sizes)
    for name, sizes in {
        "64 x 10": (64, 10),
        "256 x 100": (256, 100),
        "1024 x 1000": (1024, 1000),
        "128 x 21841": (128, 21_841),
        "1,000,000 x 10": (1_000_000, 10),
        "100,000 x 2": (100_000, 2),
        "2048 x 32000": (2048, 32_000),
        "1024 x 50257": (1024, 50_257),
        "512 x 128256": (512, 128_256),
        "8 x 262144": (8, 262_144),
        "1 x 1,000,000": (1, 1_000_000),
        "(8, 21, 512, 512)": (8, 21, 512, 512),
        "(16, 19, 513, 513)": (16, 19, 513, 513),
    }.items()
}
"""Digits, image classifiers, language models, segmentation."""

WIDTHS = {
    f"{4_000_000 // width} x {width}": Shape(f"{4_000_000 // width} x {width}", (4_000_000 // width, width))
    for width in (1, 7, 8, 15, 16, 17, 31, 33, 65, 1025)
}
"""Numbers of classes around those where kernels change their ways."""


class Case(NamedTuple):
    """One thing to time."""

    shape: Shape
    mode: str
    dtype: str = "float32"
    n_threads: int = 2
    target: str = "indices"
    data: str = "normal"

    @property
    def arrays(self) -> tuple[Shape, str, str, str]:
        """What the arrays depend on: the arguments of `make_inputs`."""
        return self.shape, self.dtype, self.target, self.data

    @property
    def logits_bytes(self) -> int:
        """Size of the logits."""
        return int(np.prod(self.shape.sizes)) * dtype_of(self.dtype).itemsize

    @property
    def moved_bytes(self) -> int:
        """What must at least be moved: logits and probabilities read, a gradient written."""
        return self.logits_bytes * (1 + (self.target == "probabilities") + (self.mode != "loss"))

    def describe(self) -> str:
        """Return what is special about this case, its shape and mode apart."""
        special = [self.dtype, f"{self.n_threads} thread" + "s" * (self.n_threads > 1)]
        if self.target != "indices":
            special.append(TARGETS[self.target])
        if self.data != "normal":
            special.append(DATA[self.data])
        return ", ".join(special)


class Inputs(NamedTuple):
    """The arrays of a case, the same in every process; classes are at axis 1."""

    logits: np.ndarray
    target: np.ndarray
    """int64 of the positions' shape, or probabilities of the logits' shape and dtype."""
    weight: np.ndarray | None
    label_smoothing: float

    @property
    def options(self) -> dict:
        """The options under torch's names."""
        options = {}
        if self.weight is not None:
            options["weight"] = self.weight
        if self.label_smoothing:
            options["label_smoothing"] = self.label_smoothing
        return options

    @property
    def by_index(self) -> bool:
        """Whether targets are class indices."""
        return self.target.ndim < self.logits.ndim


def make_inputs(shape: Shape, dtype: str, target: str, data: str) -> Inputs:
    """Return the arrays of a case."""
    rng = np.random.Generator(np.random.SFC64(0))
    n_classes = shape.sizes[1]
    stored = dtype_of(dtype)
    drawn = np.dtype(np.float32) if dtype in HALVES else stored
    logits = rng.standard_normal(shape.sizes, dtype=drawn)
    classes = rng.integers(n_classes, size=shape.sizes[:1] + shape.sizes[2:])
    if data == "sorted":
        logits.sort(axis=1)
    elif data == "descending":
        logits.sort(axis=1)
        logits = np.ascontiguousarray(np.flip(logits, 1))
    elif data == "steep":
        rise = 0.03 * np.arange(n_classes, dtype=logits.dtype)
        logits += np.expand_dims(rise, tuple(range(1, logits.ndim - 1)))
    elif data == "spikes":
        logits[:, 100::4096] += 100
    elif data == "offset":
        logits += 10_000
    elif data == "peaked":
        at_target = np.expand_dims(classes, 1)
        np.put_along_axis(logits, at_target, np.take_along_axis(logits, at_target, 1) + 5, 1)
    elif data == "masked":
        at_target = np.expand_dims(classes, 1)
        kept = np.take_along_axis(logits, at_target, 1)
        logits[:, rng.random(n_classes) < 0.3] = -np.inf
        np.put_along_axis(logits, at_target, kept, 1)
    weight = None
    if target == "weighted":
        weight = (rng.random(n_classes).astype(drawn) + drawn.type(0.5)).astype(stored, copy=False)
    elif target == "ignored":
        classes[rng.random(classes.shape) < 0.3] = IGNORE_INDEX
    elif target == "probabilities":
        classes = rng.random(shape.sizes, dtype=drawn)
        classes /= classes.sum(axis=1, keepdims=True)
        classes = classes.astype(stored, copy=False)
    return Inputs(logits.astype(stored, copy=False), classes, weight, 0.1 if target == "smoothed" else 0.0)


def quick() -> list[Case]:
    """Return a few cases of each kind, for two minutes."""
    return [
        Case(SHAPES[name], mode)
        for name in ("64 x 10", "1024 x 1000", "1,000,000 x 10", "1024 x 50257")
        for mode in ("loss", "reused")
    ]


def usual() -> list[Case]:
    """Return all shapes in all modes, in float32 with 2 threads."""
    return [Case(shape, mode) for shape in SHAPES.values() for mode in MODES]


def full() -> list[Case]:
    """Return, besides, the other dtype, threads, targets, data and widths."""
    cases = usual()
    cases += [
        Case(shape, mode, dtype, n_threads)
        for dtype in DTYPES
        for n_threads in (2, 1)
        for shape in SHAPES.values()
        for mode in ("loss", "reused")
    ]
    cases += [Case(shape, mode, dtype) for dtype in DTYPES for shape in WIDTHS.values() for mode in MODES]
    typical = ("64 x 10", "1024 x 1000", "1,000,000 x 10", "1024 x 50257", "(8, 21, 512, 512)")
    special = [(target, "normal") for target in TARGETS] + [("indices", data) for data in DATA]
    cases += [
        Case(SHAPES[name], mode, dtype, 2, target, data)
        for dtype in DTYPES
        for target, data in special
        for name in typical
        for mode in ("loss", "reused")
    ]
    return list(dict.fromkeys(cases))


def in_half_precision(cases: list[Case]) -> list[Case]:
    """Return the cases in float32 in half precision."""
    return [case._replace(dtype=half) for half in HALVES for case in cases if case.dtype == "float32"]


SELECTIONS = {"quick": quick, "usual": usual, "full": full}
