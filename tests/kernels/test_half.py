"""float16 and bfloat16 in memory: every number read, and every border of rounding written."""

import ml_dtypes
import numpy as np
import pytest

from cyce.kernels import dispatch

pytestmark = pytest.mark.smoke

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
ALL_BITS = np.arange(2**16, dtype=np.uint16)
INFINITY = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}


@pytest.fixture(params=[FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def half(request):
    """Return a dtype of half precision."""
    return request.param


def stored(array):
    """Return an array as the kernels take it."""
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def read(array, dtype=np.float32):
    """Return numbers in half precision as the kernels read them."""
    out = np.empty(array.shape, dtype)
    dispatch.elementwise.copy(stored(array), out)
    return out


def written(values, half):
    """Return numbers in half precision as the kernels write them."""
    out = np.empty(values.shape, half)
    dispatch.elementwise.copy(values, stored(out))
    return out


def finite_halves(half):
    """Return all finite numbers that are not negative, in order, as float64, which holds them exactly."""
    return ALL_BITS[: INFINITY[half]].view(half).astype(np.float64)


def bits(array):
    """Return the bits of numbers, which tell 0 from -0, and one NaN from another."""
    return array.view(f"u{array.itemsize}")


def test_all_numbers_are_read(level, half):
    numbers = ALL_BITS.view(half)
    is_nan = INFINITY[half] < (ALL_BITS & 0x7FFF)
    for dtype in (np.float32, np.float64):
        result = read(numbers, dtype)
        np.testing.assert_array_equal(bits(result[~is_nan]), bits(numbers[~is_nan].astype(dtype)))
        assert np.isnan(result[is_nan]).all()
    # The same bits at all levels, of NaN, too: sign and payload are kept.
    result = bits(read(numbers))[is_nan]
    if half == FLOAT16:
        expected = ((ALL_BITS & 0x8000).astype(np.uint32) << 16) | 0x7FC00000
        expected |= (ALL_BITS & 0x03FF).astype(np.uint32) << 13
    else:
        expected = ALL_BITS.astype(np.uint32) << 16
    np.testing.assert_array_equal(result, expected[is_nan])


def test_all_numbers_are_written_as_they_were_read(level, half):
    numbers = ALL_BITS.view(half)
    is_nan = INFINITY[half] < (ALL_BITS & 0x7FFF)
    result = written(read(numbers), half)
    np.testing.assert_array_equal(bits(result)[~is_nan], ALL_BITS[~is_nan])
    # quiet
    np.testing.assert_array_equal(
        bits(result)[is_nan], ALL_BITS[is_nan] | (0x0200 if half == FLOAT16 else 0x0040)
    )


def rounded(values, half):
    """Return what numbers that are not negative round to, from the definition: the nearest, ties to even."""
    halves = finite_halves(half)
    # As if the exponents had no end: what rounds to the next power of two is infinite.
    beyond = 2 * halves[-1] - halves[-2]
    low = np.searchsorted(halves, values, side="right") - 1
    high = np.append(halves[1:], beyond)[low]
    middle = (halves[low] + high) / 2
    number = low + ((values > middle) | ((values == middle) & (low % 2 == 1)))
    return np.minimum(number, len(halves)).astype(np.uint16)


def borders(half):
    """Return all numbers that are as near to one half as to the next, and the one that is for infinity."""
    halves = finite_halves(half)
    return np.append((halves[:-1] + halves[1:]) / 2, halves[-1] + (halves[-1] - halves[-2]) / 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_borders_of_rounding_from_float(level, half, sign):
    middle = borders(half).astype(np.float32)
    assert (middle == borders(half)).all()
    values = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.float32(np.inf))])
    result = bits(written(sign * values, half))
    expected = rounded(values.astype(np.float64), half)
    np.testing.assert_array_equal(result & 0x7FFF, expected)
    assert ((result >> 15) == (sign < 0)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_borders_of_rounding_from_double(level, half, sign):
    # A float between them and the half would hide on which side they are.
    middle = borders(half)
    values = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    result = bits(written(sign * values, half))
    np.testing.assert_array_equal(result & 0x7FFF, rounded(values, half))
    assert ((result >> 15) == (sign < 0)).all()


def test_any_float(level, half, rng):
    values = rng.integers(2**32, size=2**18, dtype=np.uint32).view(np.float32)
    is_nan = np.isnan(values)
    with np.errstate(all="ignore"):
        expected = values.astype(half)
    result = written(values, half)
    np.testing.assert_array_equal(bits(result)[~is_nan], bits(expected)[~is_nan])
    nans = bits(values)[is_nan]
    kept = (nans >> 13 & 0x03FF) | 0x7E00 if half == FLOAT16 else (nans >> 16 & 0x7FFF) | 0x0040
    np.testing.assert_array_equal(bits(result)[is_nan], (nans >> 16 & 0x8000) | kept)


def test_any_double(level, half, rng):
    values = rng.integers(2**64, size=2**16, dtype=np.uint64).view(np.float64)
    values[::2] = np.exp2(rng.uniform(-30, 20, size=2**15))
    is_nan = np.isnan(values)
    result = written(values, half)
    assert np.isnan(result[is_nan]).all()
    magnitude = np.minimum(np.abs(values[~is_nan]), 1e300)
    np.testing.assert_array_equal(bits(result)[~is_nan] & 0x7FFF, rounded(magnitude, half))


@pytest.mark.parametrize("n", [*range(1, 41), 255, 511, 513, 1030])
def test_nothing_beside_them_is_read_or_written(level, half, rng, n):
    values = rng.standard_normal(n + 2).astype(np.float32)
    out = np.full(n + 2, 7, half)
    dispatch.elementwise.copy(values[1:-1], stored(out)[1:-1])
    np.testing.assert_array_equal(out[1:-1], values[1:-1].astype(half))
    assert out[0] == out[-1] == 7
    back = np.full(n + 2, 7, np.float32)
    dispatch.elementwise.copy(stored(out)[1:-1], back[1:-1])
    np.testing.assert_array_equal(back[1:-1], out[1:-1].astype(np.float32))
    assert back[0] == back[-1] == 7


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::2], np.s_[::3, ::-1]])
def test_any_strides(level, half, rng, view):
    values = rng.standard_normal((50, 60)).astype(np.float32)
    out = np.full((50, 60), 7, half)
    dispatch.elementwise.copy(values[view], stored(out)[view])
    expected = np.full((50, 60), 7, half)
    expected[view] = values[view].astype(half)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(read(out[view].T), expected[view].T.astype(np.float32))
