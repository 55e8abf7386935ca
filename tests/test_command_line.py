"""python -m cyce: demo, info and compare; evaluate and divergence are in tests/evaluation."""

import importlib.metadata
import io
import re
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import cyce
from cyce import __main__ as command_line
from cyce import _compare, _demo
from platforms import with_fork


def run(capsys, *arguments):
    """Run a command in this process; returns the exit code and what it printed."""
    try:
        code = command_line.main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


class TestDemo:
    def test_it_learns(self, capsys, tmp_path):
        picture = tmp_path / "digits.png"
        code, out, err = run(capsys, "demo", "--png", str(picture))
        assert code == 0
        loss, accuracy = re.search(
            r"Held-out loss (\d\.\d+), accuracy (\d+\.\d)% on 450 digits", out
        ).groups()
        assert float(loss) < 0.2
        assert float(accuracy) > 94
        assert str(picture) in out
        reliability = tmp_path / "digits-reliability.png"
        assert str(reliability) in out
        for written in (picture, reliability):
            assert written.read_bytes().startswith(b"\x89PNG")
        assert err == ""  # no terminal, no progress bar

    def test_it_tells_what_cyce_did(self, capsys):
        out = run(capsys, "demo", "--no-png")[1]
        pattern = r"loss and gradient of up to 64 x 10 logits in each of 1320 steps, in (\S+) microseconds"
        assert 0.1 < float(re.search(pattern, out)[1]) < 10_000

    def test_the_picture_tells_what_it_shows(self, tmp_path, monkeypatch):
        titles = []
        monkeypatch.setattr(Figure, "suptitle", lambda _, text: titles.append(text))
        pixels, digits = _demo.load_digits()
        logits = np.eye(10, dtype=np.float32)[digits[:20]] * 4
        logits[3] = 0
        _demo.draw(tmp_path / "digits.png", pixels[:20], digits[:20], logits)
        (title,) = titles
        assert title == (
            "4 digits as they come, and the 4 with the largest losses of 20 held out, of which 95.0% are "
            "predicted right"
        )

    def test_the_seed_is_all_the_chance_there_is(self, capsys):
        # Times in microseconds are on a line of their own.
        first, second, other = (
            re.sub(r" in \S+ microseconds", "", run(capsys, "demo", "--no-png", "--seed", seed)[1])
            for seed in "334"
        )
        assert first == second != other

    def test_without_matplotlib(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setattr(_demo, "N_EPOCHS", 1)
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            monkeypatch.delitem(sys.modules, name)
        code, out, _ = run(capsys, "demo", "--png", str(tmp_path / "digits.png"))
        assert code == 0
        assert "No picture: matplotlib is not installed" in out
        assert not list(tmp_path.iterdir())

    def test_a_picture_that_cannot_be_written(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(_demo, "N_EPOCHS", 1)
        (tmp_path / "taken.png").mkdir()
        code, _, err = run(capsys, "demo", "--png", str(tmp_path / "taken.png"))
        assert code == 2
        assert err.startswith("python -m cyce: ")
        assert err.count("\n") == 1

    @pytest.mark.torch
    def test_in_torch(self, capsys):
        code, out, _ = run(capsys, "demo", "--no-png", "--torch")
        assert code == 0
        assert float(re.search(r"accuracy (\S+)%", out)[1]) > 93

    def test_in_torch_where_there_is_none(self, run_python):
        program = (
            "import sys; sys.modules['torch'] = None\n"
            "from cyce.__main__ import main; sys.exit(main(['demo', '--no-png', '--torch']))"
        )
        result = run_python("-c", program)
        assert result.returncode == 2
        assert result.stderr.startswith("python -m cyce: ")
        assert result.stderr.endswith("install it: python -m pip install torch\n")

    def test_progress_on_a_terminal(self, monkeypatch):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stderr", terminal)
        assert command_line.main(["demo", "--no-png"]) == 0
        assert f"{_demo.N_EPOCHS}/{_demo.N_EPOCHS}" in terminal.getvalue()
        assert "loss 0." in terminal.getvalue()

    def test_the_digits(self):
        pixels, digits = _demo.load_digits()
        assert pixels.shape == (1797, 64)
        assert pixels.min() == 0
        assert pixels.max() == 1
        # as the source counts them
        assert np.bincount(digits).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    cyce.show_config()
    assert out == capsys.readouterr().out


class TestCompare:
    @pytest.fixture(autouse=True)
    def few_and_short(self, monkeypatch):
        monkeypatch.setattr(_compare, "CASES", _compare.CASES[:4])
        monkeypatch.setattr(_compare, "best_time", lambda call: (call(), 1.5)[1])

    def test_with_torch(self, capsys):
        code, out, _ = run(capsys, "compare")
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith("cyce beside torch")
        assert lines[1].split()[-1] == "speed-up"
        for line in lines[2:-1]:
            *numbers, speed_up = line.split()[-6:]
            loss, loss_difference, gradient_difference, ours, theirs = map(float, numbers)
            assert loss > 0
            assert loss_difference < 1e-5 * loss
            assert gradient_difference < 1e-6
            assert ours == theirs == 1.5
            assert speed_up == "1.0x"
        assert lines[-1] == (
            "All 4 losses and gradients agree to a relative difference of 1e-05. cyce is 1.0 to 1.0 times as "
            "fast as torch, 1.0 times in the median."
        )

    @pytest.mark.parametrize("which", [0, 1])
    def test_where_they_disagree(self, capsys, monkeypatch, which):
        torch_call = _compare.torch_call

        def wrong_call(*arguments):
            answers = [np.array(answer) for answer in torch_call(*arguments)()]
            answers[which] += 1e-2
            return lambda: answers

        monkeypatch.setattr(_compare, "torch_call", wrong_call)
        code, out, _ = run(capsys, "compare")
        assert code == 1
        assert "\nBeyond a relative difference of 1e-05: 64x10; 64x10 weight label_smoothing=0.1; " in out

    def test_without_torch(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        code, out, _ = run(capsys, "compare")
        assert code == 0
        assert out.startswith("torch is not installed: cyce alone")
        assert len(out.splitlines()) == 6


@pytest.mark.parametrize("arguments", [[], ["demo"], ["info"], ["compare"]])
def test_help(capsys, arguments):
    code, out, _ = run(capsys, *arguments, "--help")
    assert code == 0
    assert "usage: python -m cyce" in out


def test_version(capsys):
    assert run(capsys, "--version")[1] == f"cyce {cyce.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "invalid choice: 'train'"),
        (["info", "--seed", "1"], "unrecognized arguments"),
        (["demo", "--seed", "-1"], "must be a whole number of at least 0"),
        (["demo", "--png", "digits.jpg"], "must be a file name that ends in .png, got 'digits.jpg'"),
        (["demo", "--png", "no/such/folder/digits.png"], "there is no folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_as_a_program(run_python):
    result = run_python("-m", "cyce", "info")
    assert result.returncode == 0
    assert "level" in result.stdout


@pytest.mark.parametrize("options", [[], ["-O"], ["-OO"], ["-X", "warn_default_encoding", "-W", "error"]])
def test_with_options_of_python(run_python, options):
    result = run_python(*options, "-m", "cyce", "info")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"version            {cyce.__version__}" in result.stdout


def test_the_demo_names_its_encodings(run_python):
    options = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    result = run_python(*options, "-m", "cyce", "demo", "--no-png")
    assert (result.returncode, result.stderr) == (0, "")


@with_fork
@pytest.mark.parametrize("command", [[], ["info"], ["demo", "--no-png"], ["--version"]])
def test_with_a_closed_standard_output(run_python, command):
    program = (
        "import os, subprocess, sys;"
        "command = [sys.executable, '-m', 'cyce', *sys.argv[1:]];"
        "print(subprocess.call(command, preexec_fn=lambda: os.close(1)))"
    )
    result = run_python("-c", program, *command)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_without_a_command_there_is_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1]


def test_the_script(capsys, monkeypatch):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="cyce")
    monkeypatch.setattr(sys, "argv", ["cyce"])
    assert script.load()() == 0
    assert capsys.readouterr().out.startswith("usage: cyce [-h]")
    monkeypatch.setattr(sys, "argv", ["cyce", "train"])
    with pytest.raises(SystemExit):
        script.load()()
    assert capsys.readouterr().err.startswith("cyce: error: ")


def test_the_authors_are_named():
    assert importlib.metadata.metadata("cyce")["Author"] == "cyce developers"


def test_a_reader_that_has_seen_enough(run_python):
    program = (
        "import subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-m', 'cyce', 'info'], stdout=subprocess.PIPE,"
        " stderr=subprocess.PIPE);"
        "child.stdout.close();"
        "print(child.stderr.read().decode(), child.wait())"
    )
    assert run_python("-c", program).stdout == " 1\n"


def test_interrupted(capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "run", interrupt)
    assert run(capsys, "demo")[0] == 130
