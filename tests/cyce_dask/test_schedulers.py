"""cyce.dask on Dask's own schedulers: threads, processes, and a local cluster of two workers."""

import contextlib
import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest

import cyce
import cyce.dask
import cyce.functional as F

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster of two worker processes of one thread each."""
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        yield cluster


@contextlib.contextmanager
def scheduler(name, request):
    """Run tasks by a scheduler."""
    if name == "distributed":
        import distributed

        with distributed.Client(request.getfixturevalue("cluster")):
            yield
    else:
        with dask.config.set(scheduler=name, num_workers=2):
            yield


def make(chunks):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((60, 500), dtype=np.float32) * 4
    target = rng.integers(500, size=60)
    target[::9] = -100
    return logits, target, da.from_array(logits, chunks=chunks)


@pytest.mark.parametrize("chunks", [(16, 500), (60, 100), (16, 100)])
@pytest.mark.parametrize("name", ["threads", "processes", "distributed"])
def test_every_scheduler(request, name, chunks):
    logits, target, array = make(chunks)
    by_this_thread = [
        result.compute(scheduler="synchronous")
        for result in (
            cyce.dask.cross_entropy(array, target),
            cyce.dask.cross_entropy(array, target, reduction="none"),
            cyce.dask.softmax(array, 1),
        )
    ]
    with scheduler(name, request):
        results = dask.compute(
            cyce.dask.cross_entropy(array, target),
            cyce.dask.cross_entropy(array, target, reduction="none"),
            cyce.dask.softmax(array, 1),
            cyce.dask.log_softmax(array, 1),
            cyce.dask.evaluate(array, target),
        )
    # The same bits, whatever runs the tasks.
    for result, expected in zip(results, by_this_thread, strict=False):
        assert result.tobytes() == expected.tobytes()
    np.testing.assert_allclose(results[0], F.cross_entropy(logits, target), rtol=1e-6)
    np.testing.assert_allclose(results[3], F.log_softmax(logits, 1), rtol=1e-5, atol=1e-6)
    expected = cyce.evaluate(logits, target, progress=False)
    assert results[4].n_positions == expected.n_positions
    assert results[4].loss == pytest.approx(expected.loss, rel=1e-6)
    assert results[4].top_k == expected.top_k


@pytest.mark.parametrize("keep", ["persist", "rechunk", "slice"])
def test_what_workers_keep(cluster, keep):
    import distributed

    logits, target, array = make((16, 100))
    with distributed.Client(cluster):
        kept = (array + 0).persist()
        kept = {"persist": kept, "rechunk": kept.rechunk((16, 70)), "slice": kept[:, :450]}[keep]
        target = np.where(target < kept.shape[1], target, 0)
        result = cyce.dask.evaluate(kept, target).compute()
        loss = cyce.dask.cross_entropy(kept, target).compute()
    expected = cyce.evaluate(logits[:, : kept.shape[1]], target, progress=False)
    assert result.top_k == expected.top_k
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert loss == pytest.approx(expected.loss, rel=1e-6)


def slow(block):
    """Give the test time to kill a worker."""
    time.sleep(0.3)
    return block


@pytest.mark.parametrize("chunks", [(10, 500), (10, 250)])
def test_a_worker_that_is_killed(chunks):
    import distributed

    logits, target, array = make(chunks)
    array = array.map_blocks(slow)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        expected = cyce.dask.cross_entropy(array, target).compute(scheduler="threads")
        future = client.compute(cyce.dask.cross_entropy(array, target))
        evaluation = client.compute(cyce.dask.evaluate(array, target))
        processes = client.run(os.getpid)
        # In the middle: some tasks are done, and their results are lost with the worker.
        deadline = time.monotonic() + 30
        while client.run_on_scheduler(n_in_memory) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not future.done()
        os.kill(next(iter(processes.values())), signal.SIGKILL)
        assert future.result(timeout=60).tobytes() == expected.tobytes()
        assert evaluation.result(timeout=60).n_positions == np.count_nonzero(target >= 0)
        assert set(client.run(os.getpid).values()) != set(processes.values())
    np.testing.assert_allclose(expected, F.cross_entropy(logits, target), rtol=1e-6)


def n_in_memory(dask_scheduler):
    """Return how many results workers keep."""
    return sum(task.state == "memory" for task in dask_scheduler.tasks.values())


def test_tasks_that_fail_once_are_tried_again(cluster):
    import distributed

    _, target, array = make((16, 100))
    expected = cyce.dask.cross_entropy(array, target).compute(scheduler="synchronous")
    with distributed.Client(cluster) as client:
        flaky = array.map_blocks(fail_once, dtype=array.dtype, meta=np.empty((0, 0), np.float32))
        result = client.compute(cyce.dask.cross_entropy(flaky, target), retries=3).result(timeout=60)
    assert result.tobytes() == expected.tobytes()


failed = set()


def fail_once(block, block_id=None):
    """Fail the first time that this process gets a block."""
    if block_id not in failed:
        failed.add(block_id)
        raise OSError("a disk that hiccups")
    return block
