"""Children of processes that have used threads compute the same bits, and do not hang."""

import multiprocessing

import pytest

from platforms import with_fork
from stages import one_in

# These programs hang if pools are not ended before a fork, or if children use threads.
COMMON = """
import concurrent.futures, multiprocessing, os, sys, threading, traceback
import numpy as np
import cyce

cyce.set_num_threads(2)
rng = np.random.default_rng(0)
logits = rng.standard_normal((4000, 50), dtype=np.float32)
target = rng.integers(50, size=4000)

def compute():
    loss, gradient = cyce.value_and_grad(cyce.cross_entropy)(logits, target)
    return loss, gradient.tobytes()

def is_serial():
    return cyce.show_config(mode="dicts")["serial after fork"]

# Small enough for one thread, so that no pool exists yet.
with cyce.num_threads(1):
    expected = compute()

def check(serial=None):
    assert compute() == expected
    if serial is not None:
        assert is_serial() == serial
        assert (cyce.get_num_threads() == 1) == (serial or not cyce.show_config(mode="dicts")["openmp"])

def in_child(function, *arguments):
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def in_thread(function, *arguments):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(function, *arguments).result()

# Without OpenMP, nothing ever uses threads.
used = cyce.show_config(mode="dicts")["openmp"]
"""

PROGRAMS = {
    "before any thread was used": """
in_child(check, False)
check(False)
""",
    "after threads were used": """
check(False)
in_child(check, used)
check(False)
in_child(check, used)
""",
    "nested": """
def child():
    check(used)
    in_child(check, used)
    check(used)

check()
in_child(child)
in_child(child)
""",
    "nested, with threads used in the child first": """
def child():
    check(False)
    in_child(check, used)

in_child(child)
""",
    "from another thread": """
def thread():
    check(False)
    in_child(check, used)
    check(False)

in_thread(thread)
check()
in_thread(in_child, check, used)
check(False)
""",
    "from a thread whose pool is not kept": """
check()
logits = np.concatenate([logits] * 20)
target = np.concatenate([target] * 20)
expected = compute()
def thread():
    for _ in range(20):
        check(False)
        in_child(check, used)

in_thread(thread)
""",
    "while other threads compute": """
stop = threading.Event()

def until_stopped():
    while not stop.is_set():
        check()

others = [threading.Thread(target=until_stopped) for _ in range(3)]
for thread in others:
    thread.start()
try:
    for _ in range(50):
        in_child(check)
finally:
    stop.set()
    for thread in others:
        thread.join()
check(False)
""",
    "children with Python threads": """
def child():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: compute(), range(8)):
            assert result == expected

check()
in_child(child)
""",
    "multiprocessing.Pool": """
check()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert set(pool.starmap(cyce.cross_entropy, [(logits, target)] * 8)) == {expected[0]}
check(False)
""",
    "by a C library": """
import ctypes
check()
child = ctypes.PyDLL(None).fork()
if child == 0:
    try:
        check(used)
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
}


@with_fork
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_forked_child_computes_the_same(run_python, program):
    result = run_python("-c", COMMON + program, timeout=60)
    assert result.returncode == 0, result.stderr


@with_fork
@pytest.mark.torch
@pytest.mark.parametrize("first", one_in(2, ["torch", "cyce"]))
def test_with_torch(run_python, first):
    # Both link to libgomp and may share one: then torch's pool is in the way, too.
    program = """
def child():
    check(None)

torch.set_num_threads(2)
for before in (lambda: torch.randn(1000, 1000).softmax(1), compute):
    before()
    for _ in range(3):
        in_child(child)
    in_thread(in_child, child)
    check(False)
"""
    imports = {"torch": "import torch\n" + COMMON, "cyce": COMMON + "import torch\n"}
    # torch does not support threads in forked children, so these compute without torch.
    result = run_python("-c", imports[first] + program, timeout=60)
    assert result.returncode == 0, result.stderr


# Imports, and a call that uses threads, of packages that bring an OpenMP runtime of their own.
OTHERS = {
    "scikit-learn": (
        "from sklearn.cluster import KMeans\n",
        "KMeans(8, n_init=1, random_state=0).fit(logits)",
    ),
    "XGBoost": (
        "import xgboost\n",
        "xgboost.XGBClassifier(n_estimators=2, n_jobs=2).fit(logits[:, :8], target % 3)",
    ),
}


@with_fork
@pytest.mark.integration
@pytest.mark.parametrize("first", ["others", "cyce"])
@pytest.mark.parametrize(
    "names", [["scikit-learn"], ["XGBoost"], ["scikit-learn", "XGBoost"]], ids=" and ".join
)
def test_with_other_runtimes(run_python, names, first):
    imports = "".join(OTHERS[name][0] for name in names)
    calls = [OTHERS[name][1] for name in names]
    program = f"""
for others in (lambda: [{", ".join(calls)}], compute):
    others()
    for _ in range(3):
        in_child(check, None)
    in_thread(in_child, check, None)
    check(False)
[{", ".join(calls)}]
"""
    program = (imports + COMMON if first == "others" else COMMON + imports) + program
    result = run_python("-W", "ignore", "-c", program, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "method", [name for name in multiprocessing.get_all_start_methods() if name != "fork"]
)
def test_other_ways_to_start_processes(run_python, method):
    program = f"""
check()
with multiprocessing.get_context("{method}").Pool(2) as pool:
    assert set(pool.starmap(cyce.cross_entropy, [(logits, target)] * 8)) == {{expected[0]}}
    config, = pool.starmap(cyce.show_config, [("dicts",)])
    assert config["serial after fork"] is False
check(False)
"""
    result = run_python("-c", COMMON + program, timeout=60)
    assert result.returncode == 0, result.stderr


DURING_A_CALL = """
import os, sys, threading
import numpy as np
import threadpoolctl
import cyce
import cyce.functional as F

def blas_threads():
    libraries = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in libraries if library["user_api"] == "blas"]

before = blas_threads()
cyce.set_num_threads(2)
rng = np.random.default_rng(0)
hidden = rng.standard_normal((4000, 64), dtype=np.float32)
weights = rng.standard_normal((2000, 64), dtype=np.float32)
target = rng.integers(2000, size=4000)
linear = cyce.value_and_grad(F.linear_cross_entropy)
expected = linear(hidden, weights, target)[1][1].tobytes()
done = threading.Event()

def compute():
    while not done.is_set():
        assert linear(hidden, weights, target)[1][1].tobytes() == expected

thread = threading.Thread(target=compute)
thread.start()
try:
    for _ in range(10):
        child = os.fork()
        if child == 0:
            ok = blas_threads() == before and linear(hidden, weights, target)[1][1].tobytes() == expected
            os._exit(0 if ok and blas_threads() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
finally:
    done.set()
    thread.join()
assert blas_threads() == before
"""


# Forking while other threads run warns since Python 3.12.
@with_fork
def test_forks_during_a_call(run_python):
    result = run_python("-W", "ignore::DeprecationWarning", "-c", DURING_A_CALL)
    assert result.returncode == 0, result.stderr
