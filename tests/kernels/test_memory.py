"""Memory: how much is taken, what happens where there is none, and that nothing else is touched."""

import mmap
import sys

import numpy as np
import pytest

import cyce.functional as F
from cyce.kernels import dispatch
from platforms import on_linux, with_resource_usage
from records import of_classes, of_elements
from stages import one_in

# Memory without pages until they are used. Python has known the name since 3.13; on Linux:
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

PEAK = """
import resource, sys
import numpy as np
import cyce

rng = np.random.default_rng(0)
logits = rng.standard_normal((2000, 50000), dtype=np.float32)
target = rng.integers(50000, size=2000)
cyce.cross_entropy(logits[:10], target[:10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "loss":
    cyce.cross_entropy(logits, target)
else:
    cyce.value_and_grad(cyce.cross_entropy)(logits, target, out=logits)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@with_resource_usage
@pytest.mark.parametrize("what", one_in(2, ["gradient in place", "loss"]))
def test_nothing_of_the_size_of_the_logits_is_allocated(run_python, what):
    result = run_python("-c", PEAK, what)
    assert result.returncode == 0, result.stderr
    # kilobytes, bytes on macOS; the logits take 400 MB
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 20e6


# Broadcast arrays need no memory themselves, but what is kept of their parts does. `n` bytes of scratch
# memory are more than the limit, and in the last three calls, something else has been allocated before.
NO_MEMORY = """
import mmap, os, resource, sys
import numpy as np
import cyce
import cyce.functional as F

def zeros(*shape):
    return np.broadcast_to(np.float32(0), shape)

def sparse(n):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | int(sys.argv[2])
    return np.frombuffer(mmap.mmap(-1, n, flags), np.uint8)

cyce.set_num_threads(2)
many = sparse(2**36)
long = zeros(1, 2**42)
wide = np.lib.stride_tricks.as_strided(sparse(2**42 * 4).view(np.float32), (1, 2**42), (0, 4))
calls = {
    "tiles": lambda: F.cross_entropy(zeros(2**40, 200), zeros(2**40, 200), reduction="sum"),
    "counts": lambda: F.cross_entropy(zeros(2**36, 3), many, reduction="sum"),
    "elements": lambda: F.binary_cross_entropy_with_logits(zeros(2**50), zeros(2**50), reduction="sum"),
    "classes": lambda: F.cross_entropy(zeros(2**22, 2**38), zeros(2**22, 2**38), reduction="sum"),
    "one position": lambda: F.cross_entropy(long, [3]),
    "more than can be counted": lambda: more_than_can_be_counted(),
    "one row": lambda: F.logsumexp(wide, dim=1),
}
call = calls[sys.argv[1]]

def more_than_can_be_counted():
    # the bytes of so many classes, times threads, are more than 2**64
    for n_threads in (1, 2, 4, 8, 16, 64):
        for n_classes in (2**57, 2**58 + 512, 2**59 + 512, 2**60 + 512):
            for options in ({}, {"softcap": 5.0}):
                with cyce.num_threads(n_threads):
                    try:
                        F.cross_entropy(zeros(1, n_classes), [3], **options)
                    except MemoryError:
                        continue
                raise AssertionError((n_threads, n_classes, options))
    F.cross_entropy(long, [3])

# Threads take address space, too.
F.cross_entropy(zeros(1000, 1000), np.zeros(1000, int))

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * mmap.PAGESIZE

limit = used() + 2**25
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def fails():
    try:
        call()
    except MemoryError as error:
        assert "no memory for" in str(error), error
        return
    raise AssertionError("no MemoryError")

fails()
before = used()
for _ in range(300):
    fails()
print(used() - before)
"""


@pytest.mark.not_sanitized
@on_linux
@pytest.mark.parametrize(
    "what",
    one_in(
        3, ["tiles", "counts", "elements", "classes", "one position", "one row", "more than can be counted"]
    ),
)
def test_no_memory(run_python, what):
    result = run_python("-c", NO_MEMORY, what, str(NO_RESERVE))
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2**20


def guarded(shape, dtype):
    """Return memory full of 77, and an array in the midst of it."""
    memory = np.full(int(np.prod(shape)) + 256, 77, dtype)
    return memory, memory[128:-128].reshape(shape)


LAYOUTS = [(5, 33), (3, 257), (70, 9), (130, 3), (2, 9000), (2, 70, 37), (2, 130, 5), (3, 21, 6, 7)]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_nothing_is_written_beside_the_kernels_outputs(level, dtype, rng, shape):
    logits = rng.standard_normal(shape).astype(dtype)
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    positions = target.shape
    losses, lse, probability, entropy, *moments = [guarded(positions, dtype) for _ in range(8)]
    prediction, rank = [guarded(positions, np.int64) for _ in range(2)]
    gradient = guarded(shape, dtype)
    kernels = dispatch.load_level(level, "cross_entropy")
    for grad_out in (None, gradient[1]):
        stats = (
            None
            if grad_out is not None
            else [array for _, array in (lse, probability, entropy, prediction, rank, *moments)]
        )
        arguments = of_classes(logits=logits, axis=1, target=target, label_smoothing=0.1, num_threads=2)
        arguments.loss_out, arguments.grad_out, arguments.stats_out = losses[1], grad_out, stats
        kernels.cross_entropy(arguments)
    for memory, array in (losses, lse, probability, entropy, prediction, rank, *moments, gradient):
        assert np.all(memory[:128] == 77)
        assert np.all(memory[-128:] == 77)
        assert not np.any(array == 77)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_nothing_is_written_beside_divergences(level, dtype, rng, shape):
    kernels = dispatch.load_level(level, "cross_entropy")
    target = rng.integers(shape[1], size=shape[:1] + shape[2:])
    model, reference = (
        of_classes(logits=rng.standard_normal(shape).astype(dtype), axis=1, target=target, num_threads=2)
        for _ in range(2)
    )
    outputs = [guarded((target.size,), np.float64) for _ in range(5)]
    outputs += [guarded((target.size, kernels.N_TOP), np.int64) for _ in range(2)]
    kernels.diverge(model, reference, *(array for _, array in outputs))
    for memory, array in outputs:
        assert np.all(memory[:128] == 77)
        assert np.all(memory[-128:] == 77)
        # A class may have that number.
        assert shape[1] > 77 or not np.any(array == 77)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin, F.logsumexp])
def test_nothing_is_written_beside_out(level, dtype, rng, shape, function):
    memory, out = guarded(shape[:1] + shape[2:] if function is F.logsumexp else shape, dtype)
    function(rng.standard_normal(shape).astype(dtype), dim=1, out=out)
    assert np.all(memory[:128] == 77)
    assert np.all(memory[-128:] == 77)
    assert not np.any(out == 77)


@pytest.mark.parametrize("shape", [(1,), (511,), (513,), (70, 130), (3, 21, 6, 7)], ids=str)
@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "binary_cross_entropy", "kl_div"])
def test_nothing_is_written_beside_elementwise_outputs(level, dtype, rng, shape, name):
    probability, target = rng.random(shape).astype(dtype), rng.random(shape).astype(dtype)
    losses, gradient = guarded(shape, dtype), guarded(shape, dtype)
    kernel = getattr(dispatch.load_level(level, "elementwise"), name)
    kernel(
        of_elements(input=probability, target=target, loss_out=losses[1], grad_out=gradient[1], num_threads=2)
    )
    for memory, array in (losses, gradient):
        assert np.all(memory[:128] == 77)
        assert np.all(memory[-128:] == 77)
        assert not np.any(array == 77)


@pytest.mark.not_sanitized
@on_linux
@pytest.mark.parametrize("classes_far_apart", [False, True])
def test_elements_more_than_two_to_the_31_apart(level, rng, loss_and_gradient, classes_far_apart):
    # 16 GB of addresses, of which only the pages that are used take memory.
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = np.frombuffer(mmap.mmap(-1, 2**34 + 2**20, kind), np.float32)
    outputs = np.frombuffer(mmap.mmap(-1, 2**34 + 2**20, kind), np.float32)
    shape, strides = ((200, 2), (4, 2**34)) if classes_far_apart else ((2, 200), (2**34, 4))
    logits = np.lib.stride_tricks.as_strided(memory, shape, strides)
    out = np.lib.stride_tricks.as_strided(outputs, shape, strides)
    logits[...] = rng.standard_normal(shape)
    target = rng.integers(shape[1], size=shape[0])
    expected_loss, expected = loss_and_gradient(logits.copy(), target)
    loss, _ = loss_and_gradient(logits, target, out=out)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-9)


MUTATED = """
import sys, threading
import numpy as np
import cyce

rng = np.random.default_rng(0)
shape = eval(sys.argv[1])
logits = rng.standard_normal(shape, dtype=np.float32)
positions = shape[:1] + shape[2:]
good = rng.integers(shape[1], size=positions)
bad = good.copy()
bad.flat[::17] = 2**40
bad.flat[5::17] = -(2**33)
target = good.copy()
weight = np.ones(shape[1], np.float32)
loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)
nll_and_gradient = cyce.value_and_grad(cyce.nll_loss)
expected = {cyce.cross_entropy(logits, good), cyce.nll_loss(logits, good)}
done = threading.Event()

def mutate():
    while not done.is_set():
        target[...] = bad
        target[...] = good

mutating = threading.Thread(target=mutate)
mutating.start()
seen = {"right": 0, "refused": 0, "changed": 0}
try:
    for i in range(100_000):
        if i >= 2000 and min(seen.values()) > 3:
            break
        try:
            if i % 5 == 0:
                loss = cyce.cross_entropy(logits, target, weight if i % 2 else None)
            elif i % 5 == 1:
                loss, _ = loss_and_gradient(logits, target, weight if i % 2 else None)
            elif i % 5 == 2:
                loss = cyce.nll_loss(logits, target)
            elif i % 5 == 3:
                loss, _ = nll_and_gradient(logits, target, weight if i % 2 else None)
            else:
                loss = cyce.cross_entropy_stats(logits, target).means.loss
            seen["right"] += loss in expected
        except IndexError as error:
            seen["changed" if "another thread" in str(error) else "refused"] += 1
finally:
    done.set()
    mutating.join()
print(*seen.values())
"""


@pytest.mark.parametrize("shape", [(3000, 5), (2000, 300), (3, 20, 1000)], ids=str)
def test_targets_that_another_thread_changes(run_python, shape):
    # The checked values are the ones used: a read beyond the logits would crash the process.
    result = run_python("-c", MUTATED, str(shape), timeout=120)
    assert result.returncode == 0, result.stderr
    right, refused, changed = map(int, result.stdout.split())
    assert refused > 0
    assert changed > 0
    assert right > 0
