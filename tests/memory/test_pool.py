"""Memory of large new arrays: when it comes back, what it looks like, and its bounds."""

import pickle
import threading

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.memory import arrays, pool

pytestmark = pytest.mark.skipif(not pool.HAS_POOL, reason="this system has no mmap")

loss_and_gradient = cyce.value_and_grad(F.cross_entropy)
N_CLASSES = 1024
ROWS = 1024
SIZE = 4 * ROWS * N_CLASSES
"""Bytes of the gradients here: whole large pages, so that nothing is rounded up."""


@pytest.fixture(autouse=True)
def empty_pool():
    """Begin with nothing idle, and a limit of 64 MiB; end with the limit that was."""
    limit = pool.get_limit()
    pool.set_limit(0)
    pool.set_limit(64 << 20)
    yield
    pool.set_limit(limit)


def new_gradient(rows=ROWS):
    return loss_and_gradient(np.zeros((rows, N_CLASSES), np.float32), np.zeros(rows, int))[1]


def address(array):
    return array.__array_interface__["data"][0]


def through_ctypes(array):
    return np.ctypeslib.as_ctypes(array)


HOLDERS = {
    "a view": lambda array: array[1:],
    "a view of a view": lambda array: array[1:].reshape(-1)[::2].view(np.int32),
    "a memoryview": memoryview,
    "an array of a memoryview": lambda array: np.asarray(memoryview(array)[5:]),
    "a DLPack capsule": lambda array: array.__dlpack__(),
    "an array by DLPack": lambda array: np.from_dlpack(array),
    "the base": lambda array: array.base,
    "ctypes": through_ctypes,
    "a record of it": lambda array: np.rec.array(array, copy=False),
    "a broadcast array": lambda array: np.broadcast_to(array, (2, *array.shape)),
}


@pytest.mark.thread_unsafe
class TestWhenItComesBack:
    def test_when_nothing_refers_to_it(self):
        gradient = new_gradient()
        where = address(gradient)
        assert pool.get_idle() == 0
        del gradient
        assert pool.get_idle() == SIZE
        assert address(new_gradient()) == where
        # That one is gone, too.
        assert pool.get_idle() == SIZE

    @pytest.mark.parametrize("holder", HOLDERS)
    def test_not_while_there_is(self, holder):
        gradient = new_gradient()
        expected = gradient.copy()
        held = HOLDERS[holder](gradient)
        where = address(gradient)
        del gradient
        assert pool.get_idle() == 0
        others = [new_gradient() for _ in range(3)]
        assert where not in map(address, others)
        for other in others:
            other[:] = 7
        if isinstance(held, np.ndarray) and held.shape == expected.shape:
            np.testing.assert_array_equal(held, expected)
        del held
        assert pool.get_idle() == SIZE

    def test_after_an_error(self):
        with pytest.raises(IndexError):
            loss_and_gradient(np.zeros((ROWS, N_CLASSES), np.float32), np.full(ROWS, N_CLASSES))
        assert pool.get_idle() == SIZE

    def test_of_softmax_too(self):
        F.softmax(np.zeros((ROWS, N_CLASSES), np.float32), 1)
        assert pool.get_idle() == SIZE

    def test_for_arrays_of_about_the_size(self):
        del_me = new_gradient()
        where = address(del_me)
        del del_me
        # At most a quarter would be left over.
        assert address(new_gradient(ROWS * 9 // 10)) == where
        assert address(new_gradient(ROWS // 2)) != where

    def test_in_threads(self):
        wrong = []

        def work(number):
            logits = np.full((ROWS // 2, N_CLASSES), number, np.float32)
            target = np.full(ROWS // 2, number)
            for _ in range(40):
                _, gradient = loss_and_gradient(logits, target, reduction="sum")
                kept = gradient[:, number].copy()
                gradient[:] = number
                if not ((gradient == number).all() and (kept == kept[0]).all()):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert 0 < pool.get_idle() <= 4 * SIZE


@pytest.mark.thread_unsafe
class TestBounds:
    def test_the_oldest_go_first(self):
        pool.set_limit(3 * SIZE)
        some = [new_gradient() for _ in range(5)]
        where = [address(gradient) for gradient in some]
        while some:
            del some[0]
        assert pool.get_idle() == 3 * SIZE
        some = [new_gradient() for _ in range(3)]
        assert sorted(map(address, some)) == sorted(where[2:])

    def test_what_is_larger_than_the_limit_is_not_kept(self):
        pool.set_limit(SIZE - 1)
        new_gradient()
        assert pool.get_idle() == 0

    def test_a_lower_limit_holds_at_once(self):
        some = [new_gradient() for _ in range(3)]
        del some
        pool.set_limit(SIZE)
        assert pool.get_idle() == SIZE

    def test_no_pool(self):
        pool.set_limit(0)
        gradient = new_gradient()
        assert gradient.flags.owndata
        del gradient
        assert pool.get_idle() == 0

    def test_small_arrays_are_numpy_s(self):
        assert arrays.empty_like(np.zeros(arrays.MIN_BYTES // 8 - 1)).flags.owndata

    def test_many_blocks(self):
        pool.set_limit(1 << 40)
        some = [new_gradient(ROWS // 2) for _ in range(70)]
        del some
        assert pool.get_idle() == 64 * SIZE // 2

    def test_the_default(self, monkeypatch):
        assert arrays._default_limit() <= 1 << 30
        monkeypatch.setenv("CYCE_POOL", "12345")
        assert arrays._default_limit() == 12345
        monkeypatch.setenv("CYCE_POOL", "1G")
        with pytest.raises(ValueError, match="CYCE_POOL: must be a number of bytes, 0 for no pool, got '1G'"):
            arrays._default_limit()
        monkeypatch.setenv("CYCE_POOL", "9" * 30)
        pool.set_limit(arrays._default_limit())

    def test_the_configuration_tells(self):
        new_gradient()
        config = cyce.show_config(mode="dicts")
        assert config["idle memory"] == SIZE
        assert config["idle memory limit"] == 64 << 20


IN_A_CHILD = """
import os, sys
import numpy as np
import cyce
from cyce.memory import pool

logits, target = np.zeros((1024, 1024), np.float32), np.zeros(1024, int)
loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)
_, kept = loss_and_gradient(logits, target)
loss_and_gradient(logits, target)
assert pool.get_idle() == 4 << 20
child = os.fork()
if child == 0:
    assert pool.get_idle() == 0
    # What the parent took does not become the child's to keep.
    expected = kept[0, 0]
    kept[0, 0] = 5
    del kept
    assert pool.get_idle() == 0
    loss_and_gradient(logits, target)
    assert pool.get_idle() == 4 << 20
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert pool.get_idle() == 4 << 20
assert kept[0, 0] < 0
"""

WHERE_MEMORY_IS_SHORT = """
import resource
import numpy as np
import cyce
from cyce.memory import pool

cyce.set_num_threads(1)
logits, target = np.zeros((1024, 1024), np.float32), np.zeros(1024, int)
loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)
pool.set_limit(1 << 30)
some = [loss_and_gradient(logits, target)[1] for _ in range(50)]
del some
assert pool.get_idle() == 200 << 20
larger, more = np.zeros((8192, 1024), np.float32), np.zeros(8192, int)
loss_and_gradient(logits, target)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (8 << 20), resource.RLIM_INFINITY))
# 32 MiB more than there are, unless what is idle is returned.
loss_and_gradient(larger, more)
assert pool.get_idle() == 32 << 20, pool.get_idle()
"""


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, resource.RLIM_INFINITY))
from cyce.memory import pool
assert pool.get_limit() == 0
"""


@pytest.mark.parametrize(
    "program", [IN_A_CHILD, WHERE_MEMORY_IS_SHORT, LIMITED], ids=["child", "short", "limited"]
)
def test_in_a_process_of_its_own(run_python, program):
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


LAYOUTS = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "swapped": lambda array: array.swapaxes(0, 1),
    "middle last": lambda array: np.ascontiguousarray(np.moveaxis(array, 1, -1)).swapaxes(1, 2),
    "every other": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "backwards": lambda array: array[:, ::-1],
    "broadcast": lambda array: np.broadcast_to(array[:, :1], array.shape),
    "a new axis": lambda array: np.asfortranarray(array)[:, None],
}


class TestAsAnArray:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_layout_is_numpy_s(self, layout):
        like = LAYOUTS[layout](np.zeros((3, 300, 1000)))
        order = "C" if layout == "broadcast" else "K"
        new, expected = arrays.empty_like(like), np.empty_like(like, order=order)
        assert not new.flags.owndata
        assert (new.shape, new.dtype) == (expected.shape, expected.dtype)
        # The stride of an axis of size 1 is arbitrary.
        assert new.squeeze().strides == expected.squeeze().strides
        assert new.flags.writeable
        assert new.flags.aligned

    def test_it_can_be_pickled_and_copied(self):
        gradient = new_gradient()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(gradient)), gradient)
        assert gradient.copy().flags.owndata

    def test_it_is_not_resized(self):
        with pytest.raises(ValueError, match="does not own its data"):
            new_gradient().resize((1, 1))

    def test_nothing_is_no_buffer(self):
        for n_bytes in (0, -1):
            with pytest.raises(ValueError, match="n_bytes: must be positive"):
                pool.Buffer(n_bytes)

    def test_the_buffer_is_plain_memory(self):
        view = memoryview(pool.Buffer(12))
        assert (view.nbytes, view.format, view.readonly) == (12, "B", False)
