"""The thread budget, and many Python threads at once."""

import asyncio
import concurrent.futures
import os

import numpy as np
import pytest
import threadpoolctl

import cyce
from cyce.kernels import dispatch
from cyce.threads import budget, team
from platforms import HAS_THREAD_LIST, with_openmp, with_thread_list
from records import of_classes

OPENMP = team.HAS_OPENMP


def test_setting_and_getting(threads):
    for n in (1, 2, np.int64(5)):
        threads(n)
        assert cyce.get_num_threads() == (n if OPENMP else 1)


@pytest.mark.parametrize("wrong", [0, -1])
def test_too_few(wrong):
    with pytest.raises(ValueError, match="n: must be at least 1"):
        cyce.set_num_threads(wrong)


@pytest.mark.parametrize("wrong", [1.5, "2", None, True])
def test_no_integer(wrong):
    with pytest.raises(TypeError, match="n: must be an integer"):
        cyce.set_num_threads(wrong)


def test_absurdly_many(threads, rng):
    # So many logits that every thread would have its share.
    logits = np.broadcast_to(rng.standard_normal(8192), (400, 8192))
    threads(1)
    expected = cyce.cross_entropy(logits, np.zeros(400, int))
    threads(10**30)
    assert cyce.cross_entropy(logits, np.zeros(400, int)) == expected
    assert cyce.get_num_threads() <= max(64, 8 * os.cpu_count())


@with_openmp
@pytest.mark.parametrize("n_threads", [3, 64, 100])
def test_any_number_of_threads_takes_each_turn_once(rng, n_threads):
    # With 100 threads, some have one part of the turns together.
    logits = np.broadcast_to(rng.standard_normal(8192), (400, 8192))
    target = np.arange(400)
    losses = []
    for n in (1, n_threads):
        losses.append(np.full(400, np.nan))
        dispatch.kernels.cross_entropy(
            of_classes(logits=logits, axis=1, target=target, loss_out=losses[-1], num_threads=n)
        )
    np.testing.assert_array_equal(*losses)


COUNT = "import cyce; print(cyce.get_num_threads())"


@with_openmp
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
    assert f"CYCE_NUM_THREADS: must be an integer of at least 1, got {text!r}" in result.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
def test_the_default_respects_the_affinity(run_python):
    one = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}]); {COUNT}"
    assert run_python("-c", one).stdout == "1\n"


@with_openmp
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize("name", ["OMP_PROC_BIND=true", "OMP_PLACES=cores", "GOMP_CPU_AFFINITY={all}"])
def test_openmp_may_bind_the_main_thread(run_python, name):
    cpus = sorted(os.sched_getaffinity(0))
    variable, _, value = name.format(all=" ".join(map(str, cpus))).partition("=")
    assert run_python("-c", COUNT, environment={variable: value}).stdout == f"{len(cpus)}\n"
    one = {"GOMP_CPU_AFFINITY": str(cpus[0])}
    assert run_python("-c", COUNT, environment=one).stdout == "1\n"


# Prints how many threads a call has started, and whether its loss is the serial one.
WITHIN_LIMITS = """
import os, resource, sys
import numpy as np
import cyce

logits = np.random.default_rng(0).standard_normal((2000, 1000), dtype=np.float32)
target = np.zeros(2000, int)
cyce.set_num_threads(1)
expected = cyce.cross_entropy(logits, target)
cyce.set_num_threads(int(sys.argv[1]))
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = set(os.listdir("/proc/self/task"))
def limit(**limits):
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, resource.getrlimit(getattr(resource, name))[1]))
def call():
    loss = cyce.cross_entropy(logits, target)
    print(len(set(os.listdir("/proc/self/task")) - before), loss == expected, flush=True)
if os.geteuid() == 0:
    # The superuser's processes are not limited.
    os.setgroups([])
    os.setuid(54321)
"""


@with_openmp
@with_thread_list
class TestThreadsThatAreRefused:
    @pytest.mark.parametrize("limits", ["RLIMIT_NPROC=1", "RLIMIT_AS=memory + (4 << 20)"])
    def test_by_a_limit(self, run_python, limits):
        result = run_python("-c", f"{WITHIN_LIMITS}\nlimit({limits})\ncall()", "4")
        assert (result.returncode, result.stdout) == (0, "0 True\n"), result.stderr

    def test_some_of_them(self, run_python):
        # Stacks of 8 MiB: there is room for two.
        program = f"{WITHIN_LIMITS}\nlimit(RLIMIT_STACK=8 << 20, RLIMIT_AS=memory + (20 << 20))\ncall()"
        result = run_python("-c", program, "8", environment={"OMP_STACKSIZE": "8M"})
        assert (result.returncode, result.stdout) == (0, "2 True\n"), result.stderr

    @pytest.mark.parametrize("limits", ["RLIMIT_NPROC=1", "RLIMIT_AS=memory + (4 << 20)"])
    def test_by_a_limit_that_is_set_later(self, run_python, limits):
        # The pool is ended by a fork, and a larger team needs more threads than there are.
        program = f"""{WITHIN_LIMITS}
call()
limit({limits})
cyce.set_num_threads(6)
call()
"""
        result = run_python("-c", program, "3")
        assert result.returncode == 0, result.stderr
        assert result.stdout == "2 True\n2 True\n"

    def test_for_lack_of_memory_to_compute_in(self, run_python):
        # Each needs 2 MB for the exponentials of a row. What one thread had is there, and 1 MiB more.
        program = f"""{WITHIN_LIMITS}
call()
wide, out = np.zeros((34, 500_000), np.float32), np.zeros((34, 500_000), np.float32)
with_gradient = cyce.value_and_grad(cyce.cross_entropy)
cyce.set_num_threads(1)
for _ in range(3):
    expected, _ = with_gradient(wide, target[:34], out=out)
cyce.set_num_threads(3)
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit(RLIMIT_AS=memory + (1 << 20))
print(with_gradient(wide, target[:34], out=out)[0] == expected)
"""
        result = run_python("-c", program, "3")
        assert (result.returncode, result.stdout) == (0, "2 True\nTrue\n"), result.stderr

    @pytest.mark.parametrize("variable", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
    def test_for_the_size_of_their_stacks(self, run_python, variable):
        result = run_python("-c", f"{WITHIN_LIMITS}\ncall()", "2", environment={variable: " 100 T "})
        # libgomp does not know the unit T.
        assert (result.returncode, result.stdout) == (0, "1 True\n"), result.stderr
        result = run_python("-c", f"{WITHIN_LIMITS}\ncall()", "2", environment={variable: "100000G"})
        assert (result.returncode, result.stdout) == (0, "0 True\n"), result.stderr


V2 = "0::/system.slice/work.service\n"
V1 = "4:memory:/\n3:cpu,cpuacct:/jobs/7\n2:cpuset:/deep\n"


@pytest.mark.parametrize(
    ("files", "groups", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", np.inf),
        # a container, which sees its own group as the root, and one that has no /proc
        ({"cpu.max": "50000 100000\n"}, V2, 0.5),
        ({"cpu.max": "50000 100000\n"}, None, 0.5),
        ({"system.slice/work.service/cpu.max": "300000 100000\n"}, V2, 3),
        ({"system.slice/cpu.max": "200000 100000", "system.slice/work.service/cpu.max": "max 100000"}, V2, 2),
        ({"system.slice/other.service/cpu.max": "100000 100000\n"}, V2, np.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, np.inf),
        (
            {
                "cpu,cpuacct/jobs/7/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/jobs/7/cpu.cfs_period_us": "100000",
                "cpuset/deep/cpu.max": "1 1",
            },
            V1,
            4,
        ),
        ({}, V2, np.inf),
        ({"cpu.max": "nonsense"}, "nonsense", np.inf),
        ({"cpu.max": "0 0"}, "0::/../..\n", np.inf),
        # a name that is not a str
        ({"cpu.max": "max 100000", os.fsdecode(b"caf\xe9/cpu.max"): "200000 100000"}, b"0::/caf\xe9\n", 2),
    ],
)
def test_the_quota_of_control_groups(tmp_path, monkeypatch, files, groups, cpus):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if groups is not None:
        (tmp_path / "own").write_bytes(groups if isinstance(groups, bytes) else groups.encode())
    monkeypatch.setattr(budget, "CGROUPS", root)
    monkeypatch.setattr(budget, "OWN_CGROUPS", tmp_path / "own")
    assert budget._cgroup_quota() == cpus
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert budget._available_cpus() == (8 if cpus == np.inf else int(np.ceil(cpus)))


def in_another_thread(function):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@with_openmp
class TestNumThreads:
    def test_in_a_block(self, threads):
        threads(3)
        with cyce.num_threads(2):
            assert cyce.get_num_threads() == 2
            with cyce.num_threads(5):
                assert cyce.get_num_threads() == 5
            threads(4)
            assert cyce.get_num_threads() == 2
        assert cyce.get_num_threads() == 4

    def test_after_an_error(self, threads):
        threads(3)
        with pytest.raises(ZeroDivisionError), cyce.num_threads(2):
            raise ZeroDivisionError
        assert cyce.get_num_threads() == 3

    def test_only_in_this_python_thread(self, threads):
        threads(3)
        with cyce.num_threads(2):
            assert in_another_thread(cyce.get_num_threads) == 3

    def test_only_in_this_task(self, threads):
        threads(3)

        async def count(n, entered, leave):
            with cyce.num_threads(n):
                entered.set()
                await leave.wait()
                return cyce.get_num_threads()

        async def several():
            leave = asyncio.Event()
            entered = [asyncio.Event(), asyncio.Event()]
            tasks = [asyncio.create_task(count(n, entered[n - 1], leave)) for n in (1, 2)]
            for event in entered:
                await event.wait()
            outside = cyce.get_num_threads()
            leave.set()
            return outside, *await asyncio.gather(*tasks)

        assert asyncio.run(several()) == (3, 1, 2)

    def test_as_a_decorator(self, threads):
        threads(3)
        assert cyce.num_threads(2)(cyce.get_num_threads)() == 2


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (1.5, TypeError), (None, TypeError)])
def test_no_number_of_threads(wrong, error):
    with pytest.raises(error, match="n: must be"), cyce.num_threads(wrong):
        pass


@with_openmp
class TestThreadpoolctl:
    def test_it_sees_the_pool(self):
        assert "openmp" in {pool["user_api"] for pool in threadpoolctl.threadpool_info()}

    def test_it_limits_the_pool(self, threads):
        # Torch may have lowered OpenMP's number in this process.
        with threadpoolctl.threadpool_limits(4):
            threads(3)
            with threadpoolctl.threadpool_limits(1):
                assert cyce.get_num_threads() == 1
                with cyce.num_threads(2):
                    assert cyce.get_num_threads() == 1
            with threadpoolctl.threadpool_limits(1, user_api="blas"):
                assert cyce.get_num_threads() == 3
            assert cyce.get_num_threads() == 3

    @pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "4"}], ids=str)
    def test_it_limits_the_default(self, run_python, environment):
        program = """
import cyce, threadpoolctl
n = cyce.get_num_threads()
with threadpoolctl.threadpool_limits(1):
    print(n, cyce.get_num_threads())
print(cyce.get_num_threads() == n)
"""
        result = run_python("-c", program, environment=environment)
        n = environment.get("OMP_NUM_THREADS", budget._available_cpus())
        assert result.stdout == f"{n} 1\nTrue\n"

    def test_what_is_set_within_a_limit(self, run_python):
        # It holds again when the limit ends; a second limit works like the first.
        program = """
import cyce
from threadpoolctl import threadpool_limits
with threadpool_limits(1):
    cyce.set_num_threads(3)
    print(cyce.get_num_threads())
with threadpool_limits(1):
    print(cyce.get_num_threads())
print(cyce.get_num_threads())
"""
        assert run_python("-c", program).stdout.split() == ["1", "1", "3"]

    def test_no_thread_is_started(self, run_python):
        program = """
import os
import numpy as np, cyce, threadpoolctl
cyce.set_num_threads(4)
logits = np.ones((1000, 1000))
before = len(os.listdir("/proc/self/task"))
with threadpoolctl.threadpool_limits(1):
    cyce.cross_entropy(logits, np.zeros(1000, int))
limited = len(os.listdir("/proc/self/task")) - before
cyce.cross_entropy(logits, np.zeros(1000, int))
print(limited, len(os.listdir("/proc/self/task")) - before)
"""
        if not HAS_THREAD_LIST:
            pytest.skip("no list of threads on this system")
        assert run_python("-c", program).stdout == "0 3\n"


def test_many_python_threads_at_once(rng):
    logits = rng.standard_normal((4000, 50)).astype(np.float32)
    target = rng.integers(50, size=4000)
    loss_and_gradient = cyce.value_and_grad(cyce.cross_entropy)
    expected_loss, expected = loss_and_gradient(logits, target)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for loss, gradient in pool.map(lambda _: loss_and_gradient(logits, target), range(100)):
            assert loss == expected_loss
            np.testing.assert_array_equal(gradient, expected)


CALLS = """
import os, sys, threading, time
import numpy as np
import cyce

def running():
    # Count only threads that are seen twice: others are about to exit.
    first = set(os.listdir("/proc/self/task"))
    time.sleep(1e-3)
    return first & set(os.listdir("/proc/self/task"))

def n_threads():
    return len(running())

before = n_threads()
budget, warm = int(sys.argv[1]), sys.argv[2] == "warm"
rng = np.random.default_rng(0)
logits = rng.standard_normal((2000, 1000), dtype=np.float32)
target = rng.integers(1000, size=2000)
probability = 1 / (1 + np.exp(-logits))
expected = cyce.cross_entropy(logits, target)
losses = (
    lambda: cyce.cross_entropy(logits, target),
    lambda: cyce.binary_cross_entropy(probability, probability),
    lambda: cyce.softmax(logits, dim=1),
)
cyce.set_num_threads(budget)
if warm:
    cyce.cross_entropy(logits, target)
kept = n_threads() - before
most = 0
done = threading.Event()

def watch():
    global most
    while not done.is_set():
        most = max(most, n_threads())

def compute(number):
    for i in range(30):
        assert cyce.cross_entropy(logits, target) == expected
        losses[(i + number) % 3]()

watcher = threading.Thread(target=watch)
watcher.start()
callers = [threading.Thread(target=compute, args=(number,)) for number in range(8)]
for thread in callers:
    thread.start()
for thread in callers:
    thread.join()
done.set()
watcher.join()
print(kept, most - before - 1 - len(callers) - kept)
"""


@with_thread_list
@pytest.mark.parametrize("budget", [1, 2, 4])
@pytest.mark.parametrize("before", ["cold", "warm"])
def test_all_calls_together_stay_within_the_budget(run_python, budget, before):
    # Threads that wait count, too: each of 8 callers having a pool of its own would be far more.
    expected = budget - 1 if before == "warm" and OPENMP else 0
    # Where CPUs are busy, calls do without some of their threads for a while: then look again.
    for _ in range(5):
        result = run_python("-c", CALLS, str(budget), before, environment={"CYCE_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        kept, most = map(int, result.stdout.split())
        assert most <= budget
        if kept == expected:
            break
    assert kept == expected


def test_a_call_gets_all_threads_again(run_python):
    # after others have ended, and after errors
    program = (
        CALLS.split("watcher =")[0]
        + """
bad = target.copy()
bad[-1] = 1000
for i in range(100):
    try:
        cyce.cross_entropy(logits, bad)
    except IndexError:
        pass
callers = [threading.Thread(target=compute, args=(number,)) for number in range(4)]
for thread in callers:
    thread.start()
for thread in callers:
    thread.join()
time.sleep(0.2)
# The pool is kept from the second call on in which no other thread calls. Where CPUs are busy, calls do
# without some of their threads, for 2 s at most.
end = time.monotonic() + 10
for _ in range(2):
    cyce.cross_entropy(logits, target)
while n_threads() - before < int(sys.argv[3]) and time.monotonic() < end:
    time.sleep(0.1)
    cyce.cross_entropy(logits, target)
print(n_threads() - before)
"""
    )
    if not HAS_THREAD_LIST:
        pytest.skip("no list of threads on this system")
    expected = str(3 if OPENMP else 0)
    result = run_python("-c", program, "4", "cold", expected, environment={"CYCE_NUM_THREADS": "1"})
    assert result.stdout == f"{expected}\n", result.stderr


KEEPERS = """
import concurrent.futures, os, sys, time
import numpy as np
import cyce

cyce.set_num_threads(3)
logits = np.random.default_rng(0).standard_normal((200, 1000), dtype=np.float32)
target = np.zeros(200, int)

def n_kept(n_calls):
    for _ in range(n_calls):
        cyce.cross_entropy(logits, target)
    # threads that are about to exit
    time.sleep(0.05)
    return len(os.listdir("/proc/self/task")) - before

before = len(os.listdir("/proc/self/task"))
print(n_kept(3), end=" ")
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    before += 1
    dormant = 0.2
    # The main thread's pool counts until that has not called for a while, and is ended when it calls again.
    print(pool.submit(n_kept, 1).result(), end=" ")
    time.sleep(dormant)
    print(pool.submit(n_kept, 3).result(), end=" ")
    print(n_kept(1), end=" ")
    time.sleep(dormant)
    print(n_kept(3), end=" ")
    time.sleep(dormant)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        before += 1
        # One idle pool at most is left behind: this thread's is ended with each call.
        print(other.submit(n_kept, 3).result(), end=" ")
    before -= 1
before -= 1
time.sleep(0.05)
print(n_kept(3))
"""


@with_thread_list
@with_openmp
def test_whose_threads_are_kept(run_python):
    # Where CPUs are busy, calls do without some of their threads for a while: then look again.
    for _ in range(5):
        result = run_python("-c", KEEPERS)
        if result.stdout == "2 2 4 2 4 4 2\n":
            break
    assert result.stdout == "2 2 4 2 4 4 2\n", result.stderr
