"""The largest error of each function over one grid, in ulp of the exact result: a table beside torch's.

Run as a program, it prints the table of docs/accuracy.md; with `--search 2000`, the largest errors of losses
of that many draws of rows whose roundings add up, in two layouts, at the level in use. The grid: 2 to 262,144
classes, logits of scales 0.1 to 50 and at offsets of 0, 1e4 and -1e4, and confident rows with margins of 1 to
80.
"""

import contextlib
import sys

import numpy as np

import oracle
from oracle import LONG

BOUNDS = {
    # quantity: largest error in ulp, float32 and float64
    "cross_entropy, loss of 0.1 or more": (2, 2),
    "cross_entropy, loss from 1e-36 to 0.1": (2, 2),
    "cross_entropy, gradient at the target": (2, 4),
    "cross_entropy, other gradients above 1e-12": (3, 5),
    "cross_entropy with label_smoothing, loss": (2, 2),
    "cross_entropy with label_smoothing, gradient": (5, 5),
    "cross_entropy of class probabilities, loss": (2, 3),
    "cross_entropy of class probabilities, gradient": (4, 6),
    "cross_entropy of class probabilities with label_smoothing, loss": (3, 4),
    "cross_entropy of class probabilities with label_smoothing, gradient": (5, 6),
    "cross_entropy with z_loss, loss": (3, 4),
    "cross_entropy with z_loss, gradient": (7, 8),
    "cross_entropy, diagonal of the Hessian above 1e-12": (5, 6),
    "softmax, above 1e-12": (3, 5),
    "log_softmax": (2, 2),
    "logsumexp, no smaller than the maximum": (2, 2),
    "statistics, entropy": (3, 5),
    "entropy, gradient above 1e-12": (5, 7),
    "focal_loss, loss above 1e-30": (5, 9),
    "focal_loss, gradient above 1e-12": (5, 12),
    "statistics, confidence": (2, 3),
    "statistics, Brier score above 1e-30": (4, 8),
    "binary_cross_entropy_with_logits, loss": (1, 2),
    "binary_cross_entropy_with_logits, gradient": (1, 3),
    "binary_cross_entropy_with_logits, Hessian": (1, 4),
    "binary_cross_entropy, loss": (1, 2),
    "binary_cross_entropy, gradient": (3, 3),
    "kl_div, where nothing cancels": (1, 4),
}
"""What cyce promises of each quantity at every level; `test_accuracy` holds it to that."""

CLASSES = ((2, 5000), (3, 3000), (10, 2000), (31, 300), (32, 300), (33, 300), (100, 200), (127, 100))
CLASSES += ((128, 100), (129, 100), (257, 80), (1000, 40), (8193, 10), (32_000, 3), (262_144, 1))
"""Numbers of classes, among them those around the kernels' vectors and blocks, and numbers of rows."""
SCALES = (0.1, 1.0, 10.0, 50.0)
OFFSETS = (0.0, 1e4, -1e4)
MARGINS = (1.0, 2.2, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0)


def grid(dtype, sizes):
    """Yield logits (N, C) and targets (N,), for some of CLASSES."""
    rng = np.random.default_rng(0)
    for n_classes, n_rows in sizes:
        for scale in SCALES:
            for offset in OFFSETS:
                logits = rng.standard_normal((n_rows, n_classes)) * scale + offset
                yield logits.astype(dtype), rng.integers(n_classes, size=n_rows)
        for margin in MARGINS:
            logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
            target = logits.argmax(axis=1)
            logits[np.arange(n_rows), target] += dtype.type(margin)
            yield logits, target


def hard_rows(rng, dtype):
    """Return logits (N, C) of one of several kinds whose roundings add up, and targets (N,)."""
    n_classes = int(rng.choice([2, 3, 4, 5, 7, 10, 17, 33, 64, 100, 130, 400, 5000, 9000]))
    n_rows = max(8, 50_000 // n_classes)
    offset = rng.choice([0, 0, 0, 1, 100, 5000, 1e4, -1e4])
    kind = rng.integers(5)
    rows = np.arange(n_rows)
    if kind == 0:
        logits = rng.standard_normal((n_rows, n_classes)) * 10 ** rng.uniform(-3, 2.5) + offset
    elif kind == 1:
        logits = rng.uniform(-1, 1, (n_rows, n_classes)) * 10 ** rng.uniform(-2, 3, (n_rows, 1)) + offset
    elif kind == 2:
        logits = rng.standard_normal((n_rows, n_classes))
    elif kind == 3:
        # Rivals of one or two values, which round alike.
        values = rng.uniform(-40, 0, (n_rows, 2))
        logits = np.take_along_axis(values, rng.integers(2, size=(n_rows, n_classes)), 1) + offset
    else:
        # Blocks of classes, each with one above its equal rivals.
        rivals = rng.uniform(-20, 20, n_rows)
        logits = np.repeat(rivals[:, None], n_classes, axis=1)
        logits[:, :: min(n_classes, 4096)] = (rivals + rng.uniform(0, 2, n_rows))[:, None]
    if kind >= 2:
        logits[rows, rng.integers(n_classes, size=n_rows)] += rng.uniform(0, 60, n_rows)
    logits = logits.astype(dtype)
    target = rng.integers(n_classes, size=n_rows)
    return logits, np.where(rng.random(n_rows) < 0.5, target, logits.argmax(axis=1))


def class_probabilities(rng, logits):
    """Return probabilities of the classes: spread out, or nearly all on one class, or all."""
    powers = rng.choice([1, 8], size=(len(logits), 1))
    mass = rng.random(logits.shape) ** powers
    certain = np.arange(0, len(logits), 4)
    mass[certain] = 0
    mass[certain, rng.integers(logits.shape[1], size=certain.size)] = 1
    return (mass / mass.sum(axis=1, keepdims=True)).astype(logits.dtype)


def ulps(values, exact, where=True, scales=None):
    """Return the largest error in spacings of the exact result, or of scales, where that is not subnormal."""
    values = np.asarray(values)
    scales = np.abs(exact) if scales is None else scales
    tiny = {4: 1e-36, 8: 1e-300}[values.dtype.itemsize]
    where = np.broadcast_to(where & (scales > tiny), exact.shape)
    if not where.any():
        return 0.0
    spacing = np.spacing(scales[where].astype(values.dtype)).astype(LONG)
    return float(np.max(np.abs(values[where] - exact[where]) / spacing))


class Cyce:
    """cyce, at one level."""

    def __init__(self, level):
        import cyce
        from cyce.kernels import dispatch

        self._cyce = cyce
        self._F = cyce.functional
        self._dispatch = dispatch
        self._modules = [dispatch.load_level(level, name) for name in ("cross_entropy", "elementwise")]

    @contextlib.contextmanager
    def _level(self):
        before = self._dispatch.kernels, self._dispatch.elementwise
        self._dispatch.kernels, self._dispatch.elementwise = self._modules
        try:
            yield
        finally:
            self._dispatch.kernels, self._dispatch.elementwise = before

    def loss_and_gradient(self, name, *arguments, **options):
        """Return the losses and the gradient of their sum."""
        with self._level():
            loss = self._cyce.value_and_grad(getattr(self._F, name))
            return loss(*arguments, reduction="none", **options)

    def call(self, name, *arguments):
        """Return what a function of the last axis returns."""
        with self._level():
            return getattr(self._F, name)(*arguments)

    def hessian(self, name, *arguments):
        """Return the diagonal of the Hessian of the losses' sum."""
        with self._level():
            loss = self._cyce.value_grad_and_hess(getattr(self._F, name))
            return loss(*arguments, reduction="sum")[2]

    def entropy_gradient(self, logits):
        """Return the gradient of the entropies' sum."""
        with self._level():
            return self._cyce.value_and_grad(self._F.entropy)(logits)[1]

    def statistics(self, logits, target):
        """Return entropy, confidence and Brier score of each position."""
        from cyce.evaluation.evaluator import position_stats

        with self._level():
            stats = position_stats(logits, target, 1, -100, 1.0)
        return stats.entropy, stats.confidence, stats.brier_score


class Torch:
    """torch, eager, on the CPU."""

    def __init__(self):
        import torch

        self._torch = torch

    def loss_and_gradient(self, name, input, *arguments, z_loss=0, **options):
        """Return the losses and the gradient of their sum."""
        variable = self._torch.tensor(input, requires_grad=True)
        arguments = map(self._torch.tensor, arguments)
        loss = "cross_entropy" if name == "focal_loss" else name
        losses = getattr(self._torch.nn.functional, loss)(variable, *arguments, reduction="none", **options)
        if name == "focal_loss":
            losses = (1 - self._torch.exp(-losses)) ** 2 * losses
        if z_loss:
            losses = losses + z_loss * self._torch.logsumexp(variable, 1) ** 2
        losses.sum().backward()
        return losses.detach().numpy(), variable.grad.numpy()

    def call(self, name, input, dim):
        """Return what a function of the last axis returns."""
        functions = self._torch if name == "logsumexp" else self._torch.nn.functional
        return getattr(functions, name)(self._torch.tensor(input), dim).numpy()

    def hessian(self, name, logits, _target):
        """Return the diagonal of the Hessian of the losses' sum."""
        x = self._torch.tensor(logits)
        p = x.softmax(1) if name == "cross_entropy" else x.sigmoid()
        return (p * (1 - p)).numpy()

    def entropy_gradient(self, logits):
        """Return the gradient of the entropies' sum."""
        variable = self._torch.tensor(logits, requires_grad=True)
        self._torch.special.entr(variable.softmax(1)).sum().backward()
        return variable.grad.numpy()

    def statistics(self, logits, target):
        """Return entropy, confidence and Brier score of each position."""
        functions = self._torch.nn.functional
        variable = self._torch.tensor(logits)
        p = variable.softmax(1)
        entropy = self._torch.special.entr(p).sum(1)
        labels = functions.one_hot(self._torch.tensor(target), logits.shape[1])
        return entropy.numpy(), p.max(1).values.numpy(), ((p - labels) ** 2).sum(1).numpy()


def errors(libraries, dtype, sizes=CLASSES):
    """Return the largest error of each quantity of BOUNDS, in ulp, for each of several libraries.

    All are held against the same exact values, which take longer than what they are there for.
    """
    largest = [dict.fromkeys(BOUNDS, 0.0) for _ in libraries]

    def note(quantity, values, *arguments):
        for errors_of_one, of_one in zip(largest, values, strict=True):
            errors_of_one[quantity] = max(errors_of_one[quantity], ulps(of_one, *arguments))

    def losses_and_gradients(*arguments, **options):
        results = [library.loss_and_gradient(*arguments, **options) for library in libraries]
        return zip(*results, strict=True)

    def call(*arguments):
        return [library.call(*arguments) for library in libraries]

    rng = np.random.default_rng(2)
    for number, (logits, target) in enumerate(grid(dtype, sizes)):
        # Each option with a fifth of the rows: together they take as long as all of them without.
        some, classes = logits[number % 5 :: 5], target[number % 5 :: 5]
        probabilities = class_probabilities(rng, some)
        row_max = some.max(axis=1).astype(LONG)
        lse = row_max + np.log(np.exp(some - row_max[:, None]).sum(axis=1))
        for name, target_of_option, options in (
            ("with label_smoothing", classes, {"label_smoothing": 0.1}),
            ("with label_smoothing", classes, {"label_smoothing": 0.5}),
            ("of class probabilities", probabilities, {}),
            ("of class probabilities with label_smoothing", probabilities, {"label_smoothing": 0.1}),
            ("with z_loss", classes, {"z_loss": 1e-4}),
            ("with z_loss", classes, {"z_loss": 1.0}),
        ):
            losses, gradients = losses_and_gradients("cross_entropy", some, target_of_option, **options)
            exact = oracle.per_position(some, target_of_option, **options)
            # Below, the maximum and the logarithm of the sum cancel.
            counts = ("z_loss" not in options) | (np.abs(lse) >= np.abs(row_max))
            note(f"cross_entropy {name}, loss", losses, exact.losses, counts)
            # Of the largest of its terms: softmax and target may be nearly the same, and cancel.
            large = (exact.scales > 1e-12) & np.expand_dims(counts, -1)
            note(f"cross_entropy {name}, gradient", gradients, exact.gradients, large, exact.scales)

        exact = oracle.per_position(logits, target)
        losses, gradients = losses_and_gradients("cross_entropy", logits, target)
        note("cross_entropy, loss of 0.1 or more", losses, exact.losses, exact.losses >= 0.1)
        note("cross_entropy, loss from 1e-36 to 0.1", losses, exact.losses, exact.losses < 0.1)
        at_target = np.arange(logits.shape[1]) == target[:, None]
        note("cross_entropy, gradient at the target", gradients, exact.gradients, at_target)

        x = logits.astype(LONG)
        at_max = x.argmax(axis=1)[:, None]
        row_max = np.take_along_axis(x, at_max, 1)
        terms = np.exp(x - row_max)
        np.put_along_axis(terms, at_max, 0, 1)
        rest = terms.sum(axis=1, keepdims=True)
        log_softmax = (x - row_max) - np.log1p(rest)
        np.put_along_axis(terms, at_max, 1, 1)
        softmax = terms / (1 + rest)
        lse = (row_max + np.log1p(rest))[:, 0]
        others = ~at_target & (softmax > 1e-12)
        note("cross_entropy, other gradients above 1e-12", gradients, softmax, others)
        note("softmax, above 1e-12", call("softmax", logits, 1), softmax, softmax > 1e-12)
        at_top = np.arange(logits.shape[1]) == at_max
        exact_hessian = softmax * np.where(at_top, rest / (1 + rest), 1 - softmax)
        hessians = [library.hessian("cross_entropy", logits, target) for library in libraries]
        note(
            "cross_entropy, diagonal of the Hessian above 1e-12",
            hessians,
            exact_hessian,
            exact_hessian > 1e-12,
        )
        note("log_softmax", call("log_softmax", logits, 1), log_softmax)
        of_target = np.take_along_axis(softmax, target[:, None], 1)[:, 0]
        of_others = np.where(target == at_max[:, 0], (rest / (1 + rest))[:, 0], 1 - of_target)
        squares = (softmax**2 * ~at_target).sum(axis=1) + of_others**2
        statistics = [library.statistics(logits, target) for library in libraries]
        entropy, confidence, brier_score = zip(*statistics, strict=True)
        note("statistics, entropy", entropy, -(softmax * log_softmax).sum(axis=1))
        gaps = row_max - x
        mean_gap = (softmax * gaps).sum(axis=1, keepdims=True)
        terms = softmax * np.maximum(gaps, mean_gap)
        slopes = [library.entropy_gradient(logits) for library in libraries]
        note("entropy, gradient above 1e-12", slopes, softmax * (gaps - mean_gap), terms > 1e-12, terms)
        miss, nll = of_others, exact.losses
        focal, slopes = losses_and_gradients("focal_loss", logits, target)
        note("focal_loss, loss above 1e-30", focal, miss**2 * nll, miss**2 * nll > 1e-30)
        factor = (miss**2 + 2 * of_target * miss * nll)[:, None]
        exact_slopes = factor * np.where(at_target, -miss[:, None], softmax)
        note("focal_loss, gradient above 1e-12", slopes, exact_slopes, np.abs(exact_slopes) > 1e-12)
        note("statistics, confidence", confidence, softmax.max(axis=1))
        note("statistics, Brier score above 1e-30", brier_score, squares, squares > 1e-30)
        # Below, the maximum and the logarithm of the sum cancel.
        beyond = np.abs(lse) >= np.abs(row_max[:, 0])
        note("logsumexp, no smaller than the maximum", call("logsumexp", logits, 1), lse, beyond)

    rng = np.random.default_rng(1)
    magnitudes = np.concatenate([rng.uniform(0, 80, 100_000), np.exp(rng.uniform(-60, 4, 100_000))])
    logits = (magnitudes * rng.choice([-1, 1], magnitudes.size)).astype(dtype)
    labels = rng.integers(2, size=logits.size).astype(dtype)
    losses, gradients = losses_and_gradients("binary_cross_entropy_with_logits", logits, labels)
    # of the answer that is asked for: log(1 + exp(-z)) and -1 / (1 + exp(z))
    z = np.where(labels == 1, 1, -1) * logits.astype(LONG)
    note("binary_cross_entropy_with_logits, loss", losses, np.maximum(-z, 0) + np.log1p(np.exp(-np.abs(z))))
    slopes = -np.where(z > 0, np.exp(-np.abs(z)), 1) / (1 + np.exp(-np.abs(z)))
    note("binary_cross_entropy_with_logits, gradient", gradients, np.where(labels == 1, 1, -1) * slopes)
    name = "binary_cross_entropy_with_logits"
    hessians = [library.hessian(name, logits, labels) for library in libraries]
    tail = np.exp(-np.abs(z))
    note("binary_cross_entropy_with_logits, Hessian", hessians, tail / (1 + tail) ** 2)

    probabilities = np.concatenate([rng.uniform(0, 1, 100_000), np.exp(rng.uniform(-40, 0, 100_000))])
    probabilities = np.clip(probabilities.astype(dtype), dtype.type(1e-37), 1 - np.finfo(dtype).epsneg)
    losses, gradients = losses_and_gradients("binary_cross_entropy", probabilities, labels)
    p = probabilities.astype(LONG)
    note("binary_cross_entropy, loss", losses, -np.where(labels == 1, np.log(p), np.log1p(-p)))
    slopes = (p - labels) / np.maximum(p * (1 - p), LONG("1e-12"))
    note("binary_cross_entropy, gradient", gradients, slopes)

    target = rng.uniform(0, 1, logits.size).astype(dtype)
    losses, _ = losses_and_gradients("kl_div", logits, target)
    t = target.astype(LONG)
    divergence = t * (np.log(t) - logits.astype(LONG))
    well_posed = np.abs(divergence) > t * np.maximum(np.abs(np.log(t)), np.abs(logits)) / 2
    note("kl_div, where nothing cancels", losses, divergence, well_posed)
    return largest


def digits(value):
    """Return an error in few characters."""
    return f"{value:.2f}" if value < 100 else f"{value:.1e}".replace("e+0", "e")


def table():
    """Return the lines of the table in Markdown."""
    lines = ["| | bound | cyce | torch | bound | cyce | torch |", "|---|---|---|---|---|---|---|"]
    from cyce.kernels import dispatch

    libraries = Cyce(dispatch.level), Torch()
    columns = [column for name in ("float32", "float64") for column in errors(libraries, np.dtype(name))]
    for quantity, (single, double) in BOUNDS.items():
        cells = [digits(column[quantity]) for column in columns]
        lines.append(
            f"| {quantity} | {single} | {cells[0]} | {cells[1]} | {double} | {cells[2]} | {cells[3]} |"
        )
    return lines


def search(function, dtype, layout, n_draws):
    """Yield quantities of BOUNDS and errors of the losses of hard rows, drawn so many times.

    function: `cyce.functional.cross_entropy`. layout: of the logits, such as np.asfortranarray.
    """
    rng = np.random.default_rng([{4: 0, 8: 1}[dtype.itemsize], layout is np.asfortranarray])
    for _ in range(n_draws):
        logits, target = hard_rows(rng, dtype)
        probabilities = class_probabilities(rng, logits)
        for name, target_of_option, options in (
            (", loss of 0.1 or more", target, {}),
            (" with label_smoothing, loss", target, {"label_smoothing": rng.choice([0.1, 0.5, 1.0])}),
            (" of class probabilities, loss", probabilities, {}),
        ):
            losses = function(layout(logits), target_of_option, reduction="none", **options)
            exact = oracle.per_position(logits, target_of_option, **options).losses
            yield f"cross_entropy{name}", len(losses), ulps(losses, exact)


def print_search(n_draws):
    """Print how many rows were searched at the level in use, and the largest errors."""
    import cyce

    for name in ("float32", "float64"):
        most, n_rows = {}, 0
        for layout in (np.ascontiguousarray, np.asfortranarray):
            for quantity, n, error in search(cyce.cross_entropy, np.dtype(name), layout, n_draws):
                most[quantity] = max(error, most.get(quantity, 0))
                n_rows += n
        print(f"{name}, {cyce.show_config('dicts')['level']}, {n_rows / 1e6:.1f} million losses:")
        for quantity, error in most.items():
            print(f"  {quantity}: {error:.2f} ulp")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        print_search(int(sys.argv[2]))
    else:
        print("\n".join(table()))
