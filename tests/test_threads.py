"""The thread budget, forked children, and many Python threads at once."""

import concurrent.futures
import os
import sys

import numpy as np
import pytest

import cyce
from cyce import _dispatch, _threads

OPENMP = _dispatch.kernels.HAS_OPENMP


def test_setting_and_getting(threads):
    for n in (1, 2, np.int64(5)):
        threads(n)
        assert cyce.get_num_threads() == (n if OPENMP else 1)


@pytest.mark.parametrize("wrong", [0, -1])
def test_too_few(wrong):
    with pytest.raises(ValueError, match="n: at least one thread is needed"):
        cyce.set_num_threads(wrong)


@pytest.mark.parametrize("wrong", [1.5, "2", None, True])
def test_no_integer(wrong):
    with pytest.raises(TypeError, match="n: an integer is needed"):
        cyce.set_num_threads(wrong)


def test_absurdly_many(threads, rng):
    # So many logits that every thread would have its share.
    logits = np.broadcast_to(rng.standard_normal(8192), (400, 8192))
    threads(1)
    expected = cyce.cross_entropy(logits, np.zeros(400, int))
    threads(10**30)
    assert cyce.cross_entropy(logits, np.zeros(400, int)) == expected
    assert cyce.get_num_threads() <= max(64, 8 * os.cpu_count())


COUNT = "import cyce; print(cyce.get_num_threads())"


@pytest.mark.skipif(not OPENMP, reason="built without OpenMP: always 1")
@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({"CYCE_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"CYCE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"CYCE_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_the_environment_sets_the_default(run_python, environment, n):
    assert run_python("-c", COUNT, environment=environment).stdout == f"{n}\n"


@pytest.mark.parametrize("name", ["CYCE_NUM_THREADS", "OMP_NUM_THREADS"])
def test_absurdly_many_in_the_environment(run_python, name):
    program = "import cyce; cyce.cross_entropy([[0.0, 1.0]], [0]); print(cyce.get_num_threads())"
    result = run_python("-c", program, environment={name: "9" * 30})
    assert 1 <= int(result.stdout) <= max(64, 8 * os.cpu_count())


@pytest.mark.parametrize("text", ["nonsense", "0", "-2", ""])
def test_what_openmp_would_ignore_too(run_python, text):
    result = run_python("-c", COUNT, environment={"OMP_NUM_THREADS": text})
    assert 1 <= int(result.stdout) <= (os.cpu_count() or 1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_our_own_is_an_error(run_python, text):
    result = run_python("-c", COUNT, environment={"CYCE_NUM_THREADS": text})
    assert result.returncode != 0
    assert f"CYCE_NUM_THREADS: a whole number of at least 1 is needed, got {text!r}" in result.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
def test_the_default_respects_the_affinity(run_python):
    one = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}]); {COUNT}"
    assert run_python("-c", one).stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        ({}, np.inf),
        ({"cpu.max": "nonsense"}, np.inf),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, monkeypatch, files, cpus):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_threads, "CGROUPS", tmp_path)
    assert _threads._cgroup_quota() == cpus
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert _threads._available_cpus() == (8 if cpus == np.inf else int(np.ceil(cpus)))


def test_many_python_threads_at_once(rng):
    logits = rng.standard_normal((4000, 50)).astype(np.float32)
    target = rng.integers(50, size=4000)
    loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)
    expected_loss, expected = loss_and_gradient(logits, target)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for loss, gradient in pool.map(lambda _: loss_and_gradient(logits, target), range(100)):
            assert loss == expected_loss
            np.testing.assert_array_equal(gradient, expected)


FORK = """
import os, sys
import numpy as np
import cyce

cyce.set_num_threads(2)
logits = np.random.default_rng(0).standard_normal((4000, 50))
target = np.zeros(4000, int)
expected = cyce.cross_entropy(logits, target) if sys.argv[1] == "used" else None
child = os.fork()
if child == 0:
    loss = cyce.cross_entropy(logits, target)
    serial = cyce.show_config(mode="dicts")["serial after fork"]
    right = loss == (expected or loss) and serial == (sys.argv[1] == "used")
    os._exit(0 if right and (cyce.get_num_threads() == 1) == serial else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("before", ["used", "unused"])
def test_a_forked_child_computes_the_same(run_python, before):
    # With libgomp, a parallel region in a child whose parent had one would hang.
    result = run_python("-c", FORK, before, timeout=30)
    assert result.returncode == 0, result.stderr


MEMORY = """
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


@pytest.mark.skipif(os.name != "posix", reason="no resource usage on this system")
@pytest.mark.parametrize("what", ["loss", "gradient in place"])
def test_nothing_of_the_size_of_the_logits_is_allocated(run_python, what):
    result = run_python("-c", MEMORY, what)
    assert result.returncode == 0, result.stderr
    # kilobytes, bytes on macOS; the logits take 400 MB
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 20e6
