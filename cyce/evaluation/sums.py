"""What is kept of many positions: means and quantiles that merge, in memory that does not grow with them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# A bucket holds what has the same upper half of the bits of a float32: sign, exponent and 7 binary digits.
N_BUCKETS = 1 << 15


def packed(value: Any) -> Any:
    """Return a value of Python's own types, for pickles that every version of NumPy reads."""
    if isinstance(value, dict):
        return {name: packed(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "bytes": value.tobytes()}
    return value


def unpacked(value: Any) -> Any:
    """Return the value that was packed."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "bytes"}:
        # A copy: those of bytes are read-only.
        array: Array = np.frombuffer(value["bytes"], value["dtype"]).reshape(value["shape"]).copy()
        return array
    return {name: unpacked(item) for name, item in value.items()}


def sum_of(values: Array, weight: Array | None) -> float:
    """Return the sum of values times their weights, in double; exact for counts."""
    if weight is None:
        return float(np.count_nonzero(values) if values.dtype == bool else values.sum(dtype=np.float64))
    return float((weight * values).sum())


def add_at(total: Array, index: Array, values: Array | None = None) -> None:
    """Add values, or 1, to the elements of `total` at an index, which may repeat."""
    # An array of all classes for each piece takes longer, where these are many.
    if index.size < total.size // 8:
        # In the dtype of the total: others take ten times as long.
        np.add.at(total, index, 1 if values is None else values.astype(total.dtype))
    else:
        total += np.bincount(index, values, total.size)


class Mean:
    """A weighted mean and its standard error.

    Sums of squares are kept about the mean, so that nothing cancels, and moved when it changes (T. F. Chan,
    G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", 1983); and relative to the
    weight, so that its scale does not matter.
    """

    __slots__ = ("deviation", "mean", "n", "square_weight", "variation", "weight")

    def __init__(self) -> None:
        self.n = 0
        """Number of values."""
        self.weight = 0.0
        """Sum of the weights."""
        self.mean = 0.0
        self.square_weight = 0.0
        """Sum of w**2, with weights w that sum to 1."""
        self.deviation = 0.0
        """Sum of w**2 (value - mean)."""
        self.variation = 0.0
        """Sum of w**2 (value - mean)**2."""

    def add(self, values: Array, weights: Array | None = None) -> None:
        """Add values, one or more; weights: not negative."""
        other = Mean()
        values = values.astype(np.float64)
        with np.errstate(all="ignore"):
            if weights is None:
                other.n, other.weight, other.square_weight = values.size, values.size, 1 / values.size
                other.mean = float(values.mean())
                apart = (values - other.mean) / values.size
                other.deviation, other.variation = (
                    float(apart.sum()) / values.size,
                    float((apart * apart).sum()),
                )
            else:
                # Sums of the largest numbers would overflow.
                largest = float(weights.max())
                shares = weights.astype(np.float64) / largest
                total = float(shares.sum())
                other.n = int(np.count_nonzero(weights))
                if other.n:
                    other.weight, shares = largest * total, shares / total
                    # A value of no weight adds nothing, even if it is infinite.
                    values = np.where(weights == 0, 0, values)
                    other.mean = float((shares * values).sum())
                    apart = shares * (values - other.mean)
                    other.square_weight = float((shares * shares).sum())
                    other.deviation = float((shares * apart).sum())
                    other.variation = float((apart * apart).sum())
        self.merge(other)

    def merge(self, other: "Mean") -> None:
        """Add all values of another one."""
        if other.n == 0:
            return
        if self.n == 0:
            for name in self.__slots__:
                setattr(self, name, getattr(other, name))
            return
        weight = self.weight + other.weight
        # Not weight / (weight + weight), which may be infinite.
        ours = 1 / (1 + other.weight / self.weight)
        theirs = 1 / (1 + self.weight / other.weight)
        with np.errstate(all="ignore"):
            mean = float(np.float64(self.mean) * ours + np.float64(other.mean) * theirs)
            deviation, variation = 0.0, 0.0
            for part, share in ((self, ours), (other, theirs)):
                shift = mean - part.mean
                deviation += share**2 * (part.deviation - shift * part.square_weight)
                variation += share**2 * (
                    part.variation - 2 * shift * part.deviation + shift * shift * part.square_weight
                )
        self.square_weight = ours**2 * self.square_weight + theirs**2 * other.square_weight
        self.deviation, self.variation = deviation, variation
        self.n += other.n
        self.weight, self.mean = weight, mean

    @property
    def value(self) -> float:
        """The mean; NaN if there are no values."""
        return self.mean if self.n else float("nan")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, as a ratio of two sums; NaN for less than two values."""
        if self.n < 2:
            return float("nan")
        return math.sqrt(max(self.variation, 0.0) * self.n / (self.n - 1))

    def state(self) -> dict[str, float]:
        """Return plain numbers, for pickles."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_state(cls, state: dict[str, float]) -> "Mean":
        """Return the mean with that state."""
        mean = cls()
        for name, value in state.items():
            setattr(mean, name, value)
        return mean


def bucket_of(values: Array) -> Array:
    """Return the numbers of the buckets of values, which ascend with these; N_BUCKETS is that of 0.0."""
    with np.errstate(all="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> np.uint32(16)
    magnitude = (bits & np.uint32(N_BUCKETS - 1)).astype(np.intp)
    return np.where(bits & np.uint32(N_BUCKETS), N_BUCKETS - 1 - magnitude, N_BUCKETS + magnitude)


def edges_of(buckets: Array) -> Array:
    """Return the lower edges of buckets of positive numbers."""
    # Beyond infinity's, there would be NaN.
    bits = np.minimum(np.asarray(buckets) - N_BUCKETS, 0x7F80).astype(np.uint32) << np.uint32(16)
    edges: Array = bits.view(np.float32).astype(np.float64)
    return edges


class Quantiles:
    """Quantiles of any number of values, to a relative error of 2**-8 = 0.4 %, where float32 is normal.

    Values below 2**-126 count as 0, those beyond 3.4e38 as infinite. A histogram over the leading bits of the
    values: merging adds counts, exactly, in whatever order.
    """

    __slots__ = ("highest", "lowest", "weights")

    def __init__(self) -> None:
        self.weights: Array = np.zeros(2 * N_BUCKETS)
        self.lowest = float("inf")
        self.highest = float("-inf")

    def add(self, values: Array, weights: Array | None = None) -> None:
        """Add values; NaN is left out."""
        known = ~np.isnan(values)
        if not known.all():
            values = values[known]
            weights = None if weights is None else weights[known]
        if values.size:
            buckets = bucket_of(values)
            # Losses are in few buckets: the first to the last of them.
            first = int(buckets.min())
            counts = np.bincount(buckets - first, weights)
            self.weights[first : first + len(counts)] += counts
            self.lowest = min(self.lowest, float(values.min()))
            self.highest = max(self.highest, float(values.max()))

    def merge(self, other: "Quantiles") -> None:
        """Add all values of another one."""
        self.weights += other.weights
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    def at(self, shares: Array) -> Array:
        """Return the least values that at least these shares of the weight are no greater than."""
        cumulative = np.cumsum(self.weights)
        if not cumulative[-1] > 0:
            return np.full(np.shape(shares), np.nan)
        wanted = np.asarray(shares) * cumulative[-1]
        # Rounded down a little: shares such as 0.1 * 10 may have come out above a whole number.
        buckets = np.searchsorted(cumulative, wanted * (1 - 1e-12), side="left")
        first = int(np.argmax(self.weights > 0))
        buckets = np.clip(buckets, first, 2 * N_BUCKETS - 1)
        is_negative = buckets < N_BUCKETS
        magnitude = np.where(is_negative, 2 * N_BUCKETS - 1 - buckets, buckets)
        lower, upper = edges_of(magnitude), edges_of(magnitude + 1)
        with np.errstate(all="ignore"):
            # The bucket of 0 has all that is subnormal, too.
            middle = np.where(magnitude == N_BUCKETS, 0, (lower + upper) / 2)
        middle = np.where(np.isfinite(upper), middle, lower)
        values = np.clip(np.where(is_negative, -middle, middle), self.lowest, self.highest)
        values = np.where(np.asarray(shares) <= 0, self.lowest, values)
        return np.where(np.asarray(shares) >= 1, self.highest, values)

    def histogram(self) -> tuple[Array, Array]:
        """Return edges and weights of bins of the values that are not negative, four to each power of two.

        Empty bins at both ends are left out, and infinite values.
        """
        # The upper half of infinity's bits.
        weights = self.weights[N_BUCKETS : N_BUCKETS + 0x7F80].reshape(-1, 32).sum(axis=1)
        filled = np.flatnonzero(weights)
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, -1)
        edges = edges_of(N_BUCKETS + 32 * np.arange(first, last + 2))
        return edges, weights[first : last + 1]

    def state(self) -> dict[str, Any]:
        """Return plain arrays and numbers, for pickles."""
        buckets = np.flatnonzero(self.weights)
        return {
            "buckets": buckets,
            "weights": self.weights[buckets],
            "lowest": self.lowest,
            "highest": self.highest,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Quantiles":
        """Return the quantiles with that state."""
        quantiles = cls()
        quantiles.weights[state["buckets"]] = state["weights"]
        quantiles.lowest, quantiles.highest = state["lowest"], state["highest"]
        return quantiles
