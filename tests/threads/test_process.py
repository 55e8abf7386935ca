"""The process is left as it was found, and Ctrl-C works."""

import os
import signal

import numpy as np
import pytest

import cyce
import cyce.functional as F
from cyce.threads import team
from platforms import with_thread_list
from stages import one_in

# Imports cyce, and calls everything, with numbers of every kind.
USE = """
import cyce
import cyce.functional as F
import cyce.plotting

def use():
    rng = np.random.default_rng(0)
    for shape in ((300, 200), (2000, 5), (2, 30, 200), (1, 70_000)):
        for dtype in (np.float32, np.float64):
            logits = (rng.standard_normal(shape) * 50).astype(dtype)
            logits.flat[:5] = [np.inf, np.nan, -np.inf, 1e30, 1e-40]
            target = np.zeros(shape[:1] + shape[2:], int)
            for reduction in ("mean", "none"):
                cyce.value_and_grad(F.cross_entropy)(
                    logits, target, reduction=reduction, softcap=5.0, z_loss=0.1, label_smoothing=0.1
                )
            F.cross_entropy_stats(logits, target)
            F.softmax(logits, dim=1)
            F.log_softmax(logits, dim=0)
            F.logsumexp(logits, dim=1)
            F.nll_loss(logits, target)
            F.one_hot(target, shape[1])
            F.kl_div(logits, logits, reduction="sum", log_target=True)
            F.binary_cross_entropy_with_logits(logits, logits)
            if len(shape) == 2 and shape[1] < 1000:
                cyce.value_and_grad(F.linear_cross_entropy)(logits, logits[:300], np.zeros(shape[0], int))
            probability = F.softmax(np.nan_to_num(logits), dim=1)
            cyce.value_and_grad(F.binary_cross_entropy)(probability, probability)
            try:
                F.cross_entropy(logits, target + shape[1])
            except IndexError:
                pass
"""

LEFT = (
    """
import ctypes, gc, locale, os, random, signal, sys, threading, warnings
import numpy as np

warnings.simplefilter("error")
# threadpoolctl sets it when it is imported.
os.environ.pop("KMP_DUPLICATE_LIB_OK", None)
before = None

def environment():
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    values, i = [], 0
    while environ[i] is not None:
        values.append(environ[i])
        i += 1
    return values

def signals_of_the_system():
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]

def state():
    return {
        "environment": dict(os.environ),
        "environment of C": environment(),
        "signal handlers": [str(signal.getsignal(n)) for n in range(1, signal.NSIG)],
        "signals of the system": signals_of_the_system() if os.path.exists("/proc/self/status") else None,
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "NumPy's error handling": np.geterr(),
        "NumPy's options of printing": np.get_printoptions(),
        "random numbers": (random.getstate(), str(np.random.get_state())),
        "filters of warnings": list(warnings.filters),
        "working directory": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "limit of recursion": sys.getrecursionlimit(),
        "interval of switching": sys.getswitchinterval(),
        "Python threads": threading.active_count(),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), len(gc.callbacks)),
        "subnormal numbers": np.float32(1e-40) * np.float32(1) != 0,
    }

before = state()
"""
    + USE
    + """
after = state()
assert after == before, [name for name in before if before[name] != after[name]]
assert "threadpoolctl" not in sys.modules
use()
after = state()
assert after == before, [name for name in before if before[name] != after[name]]
for name in ("torch", "matplotlib", "scipy", "multiprocessing", "pytest"):
    assert name not in sys.modules, name
"""
)


@pytest.mark.skipif(os.name != "posix", reason="other systems have another state")
def test_the_process_is_left_as_found(run_python):
    result = run_python("-W", "error", "-c", LEFT)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


@with_thread_list
def test_importing_starts_no_thread(run_python):
    program = """
import os, numpy
before = os.listdir("/proc/self/task")
import cyce
assert os.listdir("/proc/self/task") == before
"""
    assert run_python("-c", program).returncode == 0


# FE_* of <fenv.h> on x86; MXCSR is what SIMD instructions use.
FLAGS = (
    """
import ctypes, ctypes.util, sys
import numpy as np
libm = ctypes.CDLL(ctypes.util.find_library("m"))
ALL, INEXACT, UNDERFLOW, OVERFLOW = 0x3D, 0x20, 0x10, 0x08
libm.feclearexcept(ALL)
libm.feraiseexcept(INEXACT)
assert libm.fetestexcept(ALL) == INEXACT
libm.feclearexcept(ALL)
"""
    + USE
    + """
logits = np.array([[1e4, -1e4, 3.3, -700.0], [np.inf, -np.inf, 1e300, -1e300]])
target = [0, 1]
out = np.empty_like(logits)
loss_and_gradient = cyce.value_and_grad(F.cross_entropy)
from cyce.kernels.arguments import CrossEntropyArguments, ElementwiseArguments
kernels = cyce.kernels.dispatch.kernels
targets = np.array(target)
losses = np.empty(2)

def call():
    arguments = CrossEntropyArguments()
    arguments.logits, arguments.axis, arguments.target, arguments.num_threads = logits, 1, targets, 2
    arguments.label_smoothing, arguments.mean, arguments.upstream = 0.1, True, 1e-300
    arguments.loss_out, arguments.grad_out = losses, out
    kernels.cross_entropy(arguments)
    kernels.softmax(logits, 1, out, 2)
    all_losses = losses.repeat(4).reshape(2, 4)
    arguments = ElementwiseArguments()
    arguments.input, arguments.target, arguments.num_threads = logits, logits, 2
    arguments.loss_out, arguments.grad_out = all_losses, out
    cyce.kernels.dispatch.elementwise.kl_div_of_log_target(arguments)

"""
)


@pytest.mark.skipif(
    os.uname().machine != "x86_64" if os.name == "posix" else True, reason="of x86 processors"
)
class TestFloatingPointEnvironment:
    def test_flags_are_as_before(self, run_python):
        program = (
            FLAGS
            + """
for flags in (0, INEXACT, OVERFLOW):
    libm.feclearexcept(ALL)
    libm.feraiseexcept(flags)
    # feraiseexcept of an overflow may raise inexact, too.
    before = libm.fetestexcept(ALL)
    call()
    assert libm.fetestexcept(ALL) == before, (hex(before), hex(libm.fetestexcept(ALL)))
"""
        )
        result = run_python("-c", program)
        assert result.returncode == 0, result.stderr

    def test_traps_of_the_caller_are_not_sprung(self, run_python):
        program = (
            FLAGS
            + """
libm.feenableexcept(ALL & ~INEXACT)
before = libm.fegetexcept()
call()
after = libm.fegetexcept()
libm.fedisableexcept(ALL)
assert after == before != 0
"""
        )
        result = run_python("-c", program)
        assert result.returncode == 0, result.stderr

    @pytest.mark.torch
    @pytest.mark.parametrize("n", one_in(2, [2, 1]))
    def test_who_flushes_subnormal_numbers_gets_the_same(self, run_python, n):
        # torch does so for the calling thread, and threads started from there inherit it.
        program = (
            USE.replace("import cyce\n", "import numpy as np, sys, torch\nimport cyce\n", 1)
            + """
cyce.set_num_threads(int(sys.argv[1]))
logits = np.zeros((4000, 50), np.float32)
logits[:, 0] = 90
logits[::2, 0] = 1e-40
def compute():
    loss, gradient = cyce.value_and_grad(F.cross_entropy)(logits, np.zeros(4000, int), reduction="sum")
    tiny = F.softmax(logits, dim=1)
    return loss, gradient.tobytes(), tiny.tobytes()
torch.set_flush_denormal(True)
# The threads that torch starts now flush them for good, and may be those that cyce computes with.
torch.set_num_threads(2)
torch.ones(2000, 2000).softmax(1)
flushed = compute()
assert (torch.tensor(1e-40) * 1).item() == 0
torch.set_flush_denormal(False)
assert compute() == flushed
assert np.frombuffer(flushed[2], np.float32)[51] != 0
"""
        )
        result = run_python("-c", program, str(n))
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("function", [F.cross_entropy, F.softmax, F.log_softmax, F.logsumexp])
def test_no_warnings_of_numpy(level, dtype, function):
    # Warnings are errors here; NumPy's may also be raised at once.
    top = np.finfo(dtype).max
    logits = np.array([[top, -top, 0], [top, top, top], [np.inf, np.nan, 1], [-np.inf] * 3, [1e-40, 0, -0.0]])
    logits = logits.astype(dtype)
    with np.errstate(all="raise"):
        if function is F.cross_entropy:
            for reduction in ("none", "sum", "mean"):
                cyce.value_and_grad(function)(logits, [1, 0, 2, 0, 1], reduction=reduction)
                cyce.value_and_grad(function)(logits, logits, reduction=reduction)
        else:
            function(logits, dim=1)


INTERRUPTED = """
import os, signal, sys, time
import numpy as np
import cyce

cyce.set_num_threads(4)
logits = np.random.default_rng(0).standard_normal((1000, 1000), dtype=np.float32)
target = np.zeros(1000, int)
expected, expected_gradient = cyce.value_and_grad(cyce.cross_entropy)(logits, target)
pause = 0.001
for i in range(300):
    pause = 0.0005 + 0.00001 * i
    try:
        # What Ctrl-C sends, at any time.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, pause)
        while True:
            cyce.value_and_grad(cyce.cross_entropy)(logits, target)
    except KeyboardInterrupt:
        pass
# More threads than CPUs: calls may do without some, but not for ever.
for _ in range(3):
    loss, gradient = cyce.value_and_grad(cyce.cross_entropy)(logits, target)
    time.sleep(2.1)
loss, gradient = cyce.value_and_grad(cyce.cross_entropy)(logits, target)
assert loss == expected
assert np.array_equal(gradient, expected_gradient)
# No thread is counted as in use any more: all can be had.
print(len(os.listdir("/proc/self/task")) - int(sys.argv[1]) if os.path.isdir("/proc/self/task") else 3)
"""


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_ctrl_c_in_a_loop_of_calls(run_python):
    alone = run_python("-c", "import os, numpy; print(len(os.listdir('/proc/self/task')))").stdout
    result = run_python("-c", INTERRUPTED, alone, timeout=60)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == (3 if team.HAS_OPENMP else 0)
