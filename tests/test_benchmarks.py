"""The comparison with peers: what it reports is what it measured, of answers that were right."""

import gc
import json
import re
import shlex

import numpy as np
import pytest
import torch

import benchmarks.torch as training
import oracle
from benchmarks import (
    cases,
    commits,
    compare,
    compositions,
    elementwise,
    instructions,
    linear,
    record,
    report,
    second_order,
    tables,
    waiting,
)
from benchmarks.contenders import Cyce, Expected, Limit, NumPy, Torch, Unsupported, address


@pytest.fixture(autouse=True)
def torch_threads():
    """Leave torch's number of threads, which is OpenMP's limit for cyce, as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SMALL = cases.Shape("small", (6, 5))
IMAGE = cases.Shape("image", (4, 3, 2, 5))


# A smoothed loss of masked classes is infinite.
KINDS = [(t, d) for t in cases.TARGETS for d in cases.DATA if (t, d) != ("smoothed", "masked")]


@pytest.mark.parametrize(("target", "data"), KINDS)
@pytest.mark.parametrize("shape", [SMALL, IMAGE], ids=lambda shape: shape.name)
def test_contenders_are_right_and_so_is_what_they_are_checked_against(shape, target, data):
    inputs = cases.make_inputs(shape, "float64", target, data)
    expected = Expected(inputs)
    if data != "masked":
        loss, gradient = oracle.cross_entropy(inputs.logits, inputs.target, **inputs.options)
        np.testing.assert_allclose(expected.loss, float(loss), rtol=1e-12)
        for entry, rows in expected.gradients.items():
            np.testing.assert_allclose(rows, gradient[entry].astype(float), rtol=1e-9, atol=1e-15)
    for contender in (Cyce(1), Torch(1), NumPy(1)):
        for mode in ("loss", "fresh", "reused", "in place"):
            copied = inputs._replace(logits=inputs.logits.copy())
            expected.check(getattr(contender, mode.replace(" ", "_"))(copied)(), mode, "float64")


@pytest.mark.parametrize("target", cases.TARGETS)
@pytest.mark.parametrize("dtype", cases.HALVES)
def test_contenders_in_half_precision(dtype, target):
    inputs = cases.make_inputs(IMAGE, dtype, target, "normal")
    assert inputs.logits.dtype == cases.dtype_of(dtype)
    expected = Expected(inputs)
    for contender in (Cyce(1), Torch(1)):
        for mode in ("loss", "fresh"):
            expected.check(getattr(contender, mode)(inputs)(), mode, dtype)
    with pytest.raises(Unsupported, match="float32 and float64 only"):
        NumPy(1).loss(inputs)


def test_cases_of_half_precision_are_those_of_float32():
    settings = compare.parse(["--quick", "--dtypes", "bfloat16", "--contenders", "cyce"])
    assert [case._replace(dtype="float32") for case in settings.cases] == cases.quick()
    assert {case.dtype for case in settings.cases} == {"bfloat16"}
    assert {case.dtype for case in compare.parse(["--quick"]).cases} == {"float32"}


@pytest.mark.parametrize("mode", ["loss", "fresh"])
def test_a_wrong_answer_is_refused(mode):
    inputs = cases.make_inputs(SMALL, "float32", "indices", "normal")
    expected = Expected(inputs)
    outcome = getattr(NumPy(1), mode)(inputs)()
    expected.check(outcome, mode, "float32")
    if mode == "loss":
        wrong = outcome * 1.001
    else:
        outcome[1][-1, 0] += 0.001
        wrong = outcome
    with pytest.raises(AssertionError, match=r"loss|gradient of batch entry 5"):
        expected.check(wrong, mode, "float32")


def test_a_part_of_a_large_gradient_that_is_missing_is_seen():
    inputs = cases.make_inputs(cases.Shape("wide", (2, 50_257)), "float32", "indices", "normal")
    expected = Expected(inputs)
    loss, gradient = NumPy(1).fresh(inputs)()
    expected.check((loss, gradient), "fresh", "float32")
    gradient[1, 4096:4160] = 0
    with pytest.raises(AssertionError, match="gradient of batch entry 1"):
        expected.check((loss, gradient), "fresh", "float32")
    with pytest.raises(TypeError):
        expected.check((loss, None), "fresh", "float32")


def test_every_selection_has_cases_and_none_twice():
    for select in cases.SELECTIONS.values():
        assert len(set(select())) == len(select()) > 0
    everything = cases.full()
    for field, values in (("mode", cases.MODES), ("target", cases.TARGETS), ("data", cases.DATA)):
        assert {getattr(case, field) for case in everything} == set(values)
    assert {case.shape for case in everything} == {*cases.SHAPES.values(), *cases.WIDTHS.values()}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_way_of_the_limit_moves_all_bytes(n_threads):
    limit = Limit(n_threads)
    logits = np.arange(400_000, dtype=np.uint64)
    memory = np.zeros(400_008, np.uint64)
    out = memory[-address(memory).value % 64 // 8 :][:400_000]
    for call in limit.calls(("read_plainly", "read_prefetched"), [logits]):
        assert call() == logits.sum()
    ways = ("copy_plainly", "copy_prefetched", "copy_streamed", "copy_streamed_prefetched")
    for call in limit.calls(ways, [logits, out]):
        out[:] = 0
        call()
        np.testing.assert_array_equal(out, logits)


@pytest.mark.parametrize("mode", cases.MODES)
def test_the_limit_keeps_its_arrays(mode):
    # 16 MB, which the system takes back at once when they are no longer needed.
    inputs = cases.make_inputs(cases.Shape("large", (4, 1_000_000)), "float32", "indices", "normal")
    call = getattr(Limit(2), mode.replace(" ", "_"))(inputs)
    del inputs
    gc.collect()
    call()


@pytest.mark.integration
def test_a_run_reports_times_ratios_and_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    json_path, png_path = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["--shapes", "64 x 10", "--modes", "loss", "in place", "--rounds", "2", "--seconds", "0.01"]
    arguments += ["--contenders", "cyce", "cyce:baseline", "NumPy", "limit"]
    arguments += ["--json", str(json_path), "--png", str(png_path)]
    assert compare.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Missing: limit (" in text
    assert "no-such-compiler" in text
    outcome = json.loads(json_path.read_text())
    assert outcome["machine"]["cpus"] >= 1
    assert {"cyce", "numpy"} <= set(outcome["versions"])
    assert [result["mode"] for result in outcome["results"]] == ["loss", "in place"]
    for result in outcome["results"]:
        assert set(result["contenders"]) == {"cyce", "cyce:baseline", "NumPy"}
        assert result["fastest_peer"] == "NumPy"
        assert not result["troubles"]
        own, peer = (result["contenders"][name] for name in ("cyce", "NumPy"))
        assert len(own["rounds_ms"]) == 2
        assert min(own["rounds_ms"]) > 0
        assert own["median_ms"] == pytest.approx(np.median(own["rounds_ms"]))
        assert peer["times_cyce"] == pytest.approx(peer["median_ms"] / own["median_ms"])
        assert f"NumPy, {peer['times_cyce']:.2g}x" in text
    assert png_path.stat().st_size > 1000


def test_a_contender_that_fails_is_named_and_fails_the_run_if_it_is_cyce(capsys):
    result = report.Result(
        cases.Case(SMALL, "loss"), {"NumPy": [1e-3]}, {"cyce": "wrong: loss", "JAX": "failed: x"}
    )
    outcome = report.Outcome([result], {}, [], tables.measured("benchmarks.compare", [], {}), 1, 0.0)
    assert report.failed(outcome) == {"cyce", "JAX"}
    assert "cyce: small, loss" in report.text(outcome)
    assert (
        compare.main(["--shapes", "64 x 10", "--modes", "loss", "--contenders", "cyce:none", "--rounds", "1"])
        == 1
    )
    assert "Missing: cyce:none (ImportError: CYCE_LEVEL: no level 'none'" in capsys.readouterr().out


def test_an_unknown_contender_or_an_empty_selection_is_refused(capsys):
    for arguments, message in (
        (["--contenders", "mlx"], "no 'mlx'"),
        (["--rounds", "0"], "--rounds: at least 1"),
        (["--quick", "--dtypes", "float64"], "no case of the quick selection"),
    ):
        with pytest.raises(SystemExit):
            compare.main(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in linear.CONTENDERS if "products" not in name])
def test_contenders_of_linear_are_right(name):
    hidden, weights, target = linear.make_inputs(linear.Sizes(200, 8, 300))
    expected = linear.Expected.of(hidden, weights, target)
    logits = hidden.astype(float) @ weights.T.astype(float)
    loss, slopes = oracle.cross_entropy(logits, target)
    assert expected.loss == pytest.approx(float(loss), rel=1e-12)
    for row, gradient in expected.of_hidden.items():
        np.testing.assert_allclose(gradient, (slopes[row] @ weights).astype(float), atol=1e-12)
    for c, gradient in expected.of_weights.items():
        np.testing.assert_allclose(gradient, (slopes[:, c] @ hidden).astype(float), atol=1e-12)
    loss, gradients = linear.CONTENDERS[name](hidden, weights, target)()
    expected.check(loss, *gradients)
    with pytest.raises(AssertionError, match="loss"):
        expected.check(loss * 1.001, *gradients)
    for gradient, message in zip(gradients, ("of hidden 199", "of weights 299"), strict=True):
        gradient[-1] *= 1.01
        with pytest.raises(AssertionError, match=message):
            expected.check(loss, *gradients)
        gradient[-1] /= 1.01


@pytest.mark.integration
def test_a_run_of_linear_reports_times_and_memory(capsys):
    arguments = [
        "--shapes",
        "300 x 16 x 5000",
        "--rounds",
        "2",
        "--contenders",
        "cyce",
        "products",
        "cyce, unfused",
    ]
    assert linear.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| shape | cyce | products | cyce, unfused |"
    _, shape, own, products, unfused, _ = (cell.strip() for cell in lines[2].split("|"))
    assert shape == "300 x 16 x 5000"
    for cell in (own, products, unfused):
        seconds, ratio, megabytes = re.fullmatch(r"(\S+) s \((\S+)x\), (-?\d+) MB", cell).groups()
        assert float(seconds) > 0
        assert float(ratio) == pytest.approx(float(seconds) / float(own.split()[0]), abs=0.02, rel=0.02)
        # The logits take 6 MB.
        assert 0 <= int(megabytes) < 40


@pytest.mark.parametrize("loss", elementwise.LOSSES)
def test_what_elementwise_contenders_are_compared_with(loss):
    given, target = (array.astype(float) for array in elementwise.make_inputs(loss, (3, 5), "float64"))
    losses, slopes = elementwise.LOSSES[loss](given, target)
    function = getattr(torch.nn.functional, loss)
    wide = torch.from_numpy(given).requires_grad_()
    theirs = function(wide, torch.from_numpy(target), reduction="none")
    theirs.sum().backward()
    np.testing.assert_allclose(losses, theirs.detach(), rtol=1e-12)
    np.testing.assert_allclose(slopes, wide.grad, rtol=1e-12)


@pytest.mark.parametrize("mode", elementwise.MODES)
@pytest.mark.parametrize("name", ["cyce", "torch"])
@pytest.mark.parametrize("loss", elementwise.LOSSES)
def test_elementwise_contenders_are_right(loss, name, mode, monkeypatch):
    worker = elementwise.Worker(name, 2)
    worker.prepare(loss, (30, 70), "float32", mode)
    assert worker.round(0.0) > 0
    inputs = (array.astype(float) for array in elementwise.make_inputs(loss, (30, 70), "float32"))
    losses, slopes = elementwise.LOSSES[loss](*inputs)
    for wrong in ((losses * 1.01, slopes), (losses, slopes * 1.01)):
        monkeypatch.setitem(elementwise.LOSSES, loss, lambda *_, wrong=wrong: wrong)
        if mode == "gradient" or wrong[1] is slopes:
            with pytest.raises(AssertionError):
                worker.prepare(loss, (30, 70), "float32", mode)


@pytest.mark.parametrize("name", ["cyce", "torch"])
@pytest.mark.parametrize(
    ("case", "mode"), [(name, mode) for name, case in compositions.CASES.items() for mode in case.modes]
)
def test_compositions_are_right(case, mode, name, monkeypatch):
    worker = compositions.Worker(name, 2)
    assert worker.prepare(case, (40, 70), mode) >= 0
    assert worker.round(0.0) > 0
    function = compositions.CONTENDERS[name]

    def wrong(*arguments):
        call = function(*arguments)
        return lambda: (call()[0] * 1.01, call()[1])

    monkeypatch.setitem(compositions.CONTENDERS, name, wrong)
    with pytest.raises(AssertionError):
        compositions.Worker(name, 2).prepare(case, (40, 70), mode)


@pytest.mark.integration
def test_a_run_of_compositions_reports_times_and_memory(capsys):
    shapes = ["30 x 70", "1,000 x 7"]
    arguments = ["--shapes", *shapes, "--rounds", "2", "--seconds", "0.01", "--cases", "focal loss"]
    assert compositions.main([*arguments, "--contenders", "cyce", "torch"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| focal loss |")]
    for line, mode in zip(lines, 2 * compositions.MODES, strict=True):
        cell = r"\S+ \(\S+x\), \d+ MB"
        assert re.fullmatch(rf"\| focal loss \| {mode} \| {cell} \| {cell} \|", line)


@pytest.mark.integration
@pytest.mark.parametrize("library", second_order.LAYOUTS)
@pytest.mark.parametrize("name", second_order.CONTENDERS)
def test_second_orders_are_right(name, library, monkeypatch):
    worker = second_order.Worker(name, 2)
    worker.prepare(library, (40, 7))
    assert worker.round(0.0) > 0
    function = second_order.CONTENDERS[name]

    def wrong(*arguments):
        call = function(*arguments)
        return lambda: (call()[0], call()[1] * 1.01)

    monkeypatch.setitem(second_order.CONTENDERS, name, wrong)
    with pytest.raises(AssertionError):
        second_order.Worker(name, 2).prepare(library, (40, 7))


@pytest.mark.integration
def test_a_run_of_second_orders_reports_times(capsys):
    arguments = ["--shapes", "300 x 3", "--rounds", "2", "--seconds", "0.01", "--threads", "1"]
    # In one thread: those of the libraries wait for each other where the CPUs are busy.
    assert second_order.main([*arguments, "--rounds-of-boosting", "1"]) == 0
    out = capsys.readouterr().out
    for layout in (" ".join(layout) for layout in second_order.LAYOUTS.values()):
        assert re.search(rf"\| 300 x 3 \| {layout} (\| \S+ \(\S+x\) ){{3}}\|", out)
    for library in second_order.LAYOUTS:
        assert re.search(rf"\| {library} \| -?\d+ \| -?\d+ \(-?\S+x\) \|", out)


@pytest.mark.integration
def test_a_run_of_elementwise_reports_times(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = [
        "--json",
        str(path),
        "--shape",
        "30 x 70",
        "--rounds",
        "2",
        "--seconds",
        "0.01",
        "--losses",
        "kl_div",
    ]
    assert elementwise.main([*arguments, "--contenders", "cyce", "cyce:baseline"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| loss | dtype | mode | cyce | cyce:baseline |"
    for line, mode in zip(lines[2:4], elementwise.MODES, strict=True):
        assert re.fullmatch(rf"\| kl_div \| float32 \| {mode} \| \S+ \(1.0x\) \| \S+ \(\S+x\) \|", line)
    outcome = json.loads(path.read_text("utf-8"))
    (table,) = outcome["tables"]
    assert tables.Table(**table).markdown() == lines[:4]
    assert outcome["command"].startswith("python -m benchmarks.elementwise --shape '30 x 70' --rounds 2")
    assert set(outcome["versions"]) == {"cyce"}
    assert outcome["machine"] == tables.describe_machine() | {"cpu MHz": outcome["machine"].get("cpu MHz")}
    with pytest.raises(SystemExit):
        elementwise.main([*arguments, "--contenders", "nobody"])
    assert "'nobody' is none of cyce, torch, torch.compile" in capsys.readouterr().err


@pytest.mark.integration
def test_a_run_in_torch_reports_times_and_memory(capsys):
    arguments = ["--cases", "64 x 10", "step: 64 x 64 -> 10", "--rounds", "1", "--seconds", "0.01"]
    assert training.main([*arguments, "--contenders", "cyce", "cyce, in place", "torch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | cyce | cyce, in place | torch |"
    for line in lines[2:4]:
        assert re.fullmatch(r"\| [^|]+ (\| \S+ \(\S+x\), -?\d+ MB ){3}\|", line)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", waiting.CONTENDERS)
def test_contenders_of_waiting_are_right(name, gradient):
    # Preparing compares with NumPy.
    worker = waiting.Worker(name, 2)
    worker.prepare((30, 70), gradient)
    times = worker.round(0.01)
    assert len(times) >= 1
    assert min(times) > 0


def test_what_the_documentation_states_is_measured_by_commands_that_exist():
    for name, command in record.RUNS.items():
        bench, *arguments = shlex.split(command)
        if bench == "compare":
            assert compare.parse(arguments).cases, name
        else:
            assert (tables.ROOT / "benchmarks" / f"{bench}.py").exists(), name


def test_recorded_results_are_those_of_these_commands():
    paths = sorted(record.RESULTS.glob("*/*.json"))
    assert {path.stem for path in paths} == set(record.RUNS)
    for path in paths:
        results = json.loads(path.read_text("utf-8"))
        bench, *arguments = shlex.split(record.RUNS[path.stem])
        assert results["command"] == shlex.join(["python", "-m", f"benchmarks.{bench}", *arguments])
        assert re.fullmatch(r"[0-9a-f]{7,}", results["commit"])
        for table in results["tables"]:
            assert {len(row) for row in table["rows"]} == {len(table["columns"])}


CALLGRIND = """\
fn=(1) 0x1000
ob=(2) /lib/libc.so.6
16 100
ob=(3) /a/cyce/kernels/_cross_entropy_x86_64_v3.cpython-311-x86_64-linux-gnu.so
fn=(4) 0x2000
0 30
+3 20
cob=(2)
cfn=(5) memcpy
calls=1 0
0 5000
* 7
ob=(2)
0 1000
ob=(6) /a/cyce/kernels/_elementwise_x86_64_v3.cpython-311-x86_64-linux-gnu.so
0 400
totals: 6557
"""


def test_instructions_are_those_of_the_kernels_alone():
    assert instructions.self_cost(CALLGRIND) == 30 + 20 + 7 + 400


@pytest.mark.parametrize(("growth", "status"), [(1.029, 0), (1.031, 1), (0.5, 0)])
def test_a_kernel_that_grew_is_an_error(growth, status, tmp_path, monkeypatch, capsys):
    counts = tmp_path / "counts.json"
    name = instructions.compiler()
    counts.write_text(json.dumps({name: dict.fromkeys(instructions.KERNELS, 100_000)}))
    monkeypatch.setattr(instructions, "COUNTS", counts)
    monkeypatch.setattr(
        instructions, "count", lambda program: int(instructions.N_CALLS * 100_000 * growth) if program else 0
    )
    assert instructions.main([]) == status
    assert ("Grown by more than 3%: rows, loss" in capsys.readouterr().err) == bool(status)
    assert instructions.main(["--update"]) == 0
    assert instructions.main([]) == 0
    counts.write_text("{}")
    assert instructions.main([]) == 1
    assert f"There are no counts of {name}: run" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "status"), [(1.05, 0), (1.2, 1), (0.5, 0)])
def test_two_commits_are_compared_by_their_shortest_times(factor, status, tmp_path, monkeypatch, capsys):
    built, timed = [], []

    def time_once(folder, path, keyword):
        timed.append((folder.name, path.name, keyword))
        # The first round is noisy.
        return {"loss": (0.002 if folder.name == "before" else 0.002 * factor) * (2 if len(timed) < 3 else 1)}

    monkeypatch.setattr(commits, "STORAGE", tmp_path / "history")
    monkeypatch.setattr(commits, "short_name", {"HEAD~1": "before", "HEAD": "after"}.get)
    monkeypatch.setattr(commits, "build", lambda commit, _folder: built.append(commit))
    monkeypatch.setattr(commits, "time_once", time_once)
    assert commits.main(["HEAD~1", "--rounds", "2", "-k", "loss"]) == status
    assert built == ["before", "after"]
    assert [names[:2] for names in timed] == [
        ("before", "before-0.json"),
        ("after", "after-0.json"),
        ("after", "after-1.json"),
        ("before", "before-1.json"),
    ]
    assert f"| loss | 2 | {2 * factor:.4g} | {factor:.2f} |" in capsys.readouterr().out


def test_a_commit_that_does_not_exist_or_is_the_same(monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"rev-parse .* failed"):
        commits.main(["no-such-commit"])
    monkeypatch.setattr(commits, "short_name", lambda _: "1234567")
    with pytest.raises(SystemExit):
        commits.main(["HEAD"])
    assert "HEAD and HEAD are one commit, 1234567" in capsys.readouterr().err
