"""How many rows of logits linear_cross_entropy holds: options and memory."""

import sys

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.kernels import dispatch
from cyce.linear import chunks
from linear_cases import chunks_of, make
from platforms import with_resource_usage


class TestOptions:
    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"acc_policy": "best"}, "invalid acc_policy: 'best'"),
            ({"chunking_method": "aspect_ratio:0"}, "invalid chunking_method: 'aspect_ratio:0'"),
            ({"chunking_method": "aspect_ratio:"}, "invalid chunking_method: 'aspect_ratio:'"),
            ({"chunking_method": "golden"}, "invalid chunking_method: 'golden'"),
            ({"batch_chunk_size": 0}, "batch_chunk_size must be positive int or None, got 0"),
            ({"batch_chunk_size": 1.5}, "batch_chunk_size must be positive int or None, got 1.5"),
            ({"acc_dtype": "int32"}, "acc_dtype must be None or a floating point dtype"),
        ],
    )
    def test_values_that_are_none(self, named, message):
        with pytest.raises(ValueError, match=message):
            cyce.LinearCrossEntropyOptions(**named)

    def test_our_own_choice(self):
        def rows(n_rows, in_features, n_outputs, itemsize=4, n_counting=None, **named):
            options = cyce.LinearCrossEntropyOptions(**named)
            n_counting = n_rows if n_counting is None else n_counting
            return chunks.rows_per_chunk(options, n_rows, n_counting, in_features, n_outputs, itemsize)

        assert rows(100, 64, 1000) == 100
        # In chunks of about the same size, which fill the buffer but no more.
        assert rows(4096, 256, 128_256) == 343
        assert rows(1024, 1024, 50_257) == 512
        assert rows(10**6, 64, 10**7, 8) == chunks.MIN_ROWS
        assert rows(4096, 256, 128_256, chunking_method=None) == 4096
        # Includes copies of the rows that count, and their gradients.
        n = rows(100_000, 1024, 100, n_counting=99_999)
        assert 0.9 * chunks.BUFFER_BYTES < 4 * n * (100 + 2 * 1024) <= chunks.BUFFER_BYTES

    def test_the_aspect_ratio_is_that_of_all_rows(self, rng):
        hidden, weights, _, target = make(rng, 64, 4, (64,))
        both = cyce.LinearCrossEntropyOptions(batch_chunk_size=4, chunking_method="aspect_ratio")
        for n_ignored in (0, 40, 64):
            target[:n_ignored] = -100
            F.linear_cross_entropy(hidden, weights, target, options=both)

    def test_the_number_of_rows_is_kept_to(self, rng, monkeypatch):
        hidden, weights, _, target = make(rng, 70, 4, (5,))
        sizes = []
        kernel = dispatch.kernels.cross_entropy

        class Kernels:
            denominator = staticmethod(dispatch.kernels.denominator)

            @staticmethod
            def cross_entropy(arguments):
                sizes.append(len(arguments.logits))
                return kernel(arguments)

        monkeypatch.setattr(dispatch, "kernels", Kernels)
        F.linear_cross_entropy(hidden, weights, target, options=chunks_of(np.int64(32)))
        assert sizes == [32, 32, 6]


# The logits would take 1.6 GB.
PEAK = """
import resource, sys
import numpy as np
import cyce
import cyce.functional as F

rng = np.random.default_rng(0)
hidden = rng.standard_normal((8192, 16), dtype=np.float32)
weights = rng.standard_normal((50_000, 16), dtype=np.float32)
target = rng.integers(50_000, size=8192)
out = np.ones_like(hidden), np.ones_like(weights)
rows = int(sys.argv[1])
options = cyce.LinearCrossEntropyOptions(batch_chunk_size=rows) if rows else None
linear = cyce.value_and_grad(F.linear_cross_entropy)
linear(hidden[:64], weights, target[:64], out=(out[0][:64], out[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear(hidden, weights, target, out=out, options=options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@with_resource_usage
@pytest.mark.parametrize(("rows", "megabytes"), [(0, 200), (64, 30)])
def test_the_logits_are_never_in_memory_as_a_whole(run_python, rows, megabytes):
    result = run_python("-c", PEAK, str(rows))
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < megabytes * 1e6


# The hidden states take 205 MB, as does their gradient; nearly all rows count.
PEAK_OF_WIDE = """
import resource
import numpy as np
import cyce
import cyce.functional as F

hidden = np.ones((50_000, 1024), np.float32)
weights = np.ones((100, 1024), np.float32)
target = np.zeros(50_000, int)
target[7] = -100
out = np.ones_like(hidden), np.ones_like(weights)
linear = cyce.value_and_grad(F.linear_cross_entropy)
linear(hidden[:64], weights, target[:64], out=(out[0][:64], out[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear(hidden, weights, target, out=out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@with_resource_usage
def test_rows_that_count_are_copied_in_chunks(run_python):
    result = run_python("-c", PEAK_OF_WIDE)
    assert result.returncode == 0, result.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 220e6
