"""The commands `evaluate` and `divergence`."""

import html.parser
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import cyce
from cyce.__main__ import main


@pytest.fixture
def files(rng, tmp_path, monkeypatch):
    """Return logits, reference and target, which are in files of the current folder."""
    monkeypatch.chdir(tmp_path)
    logits = (rng.standard_normal((300, 10)) * 3).astype(np.float32)
    target = np.where(rng.random(300) < 0.5, logits.argmax(axis=1), rng.integers(10, size=300))
    reference = (logits + rng.standard_normal(logits.shape) * 0.1).astype(np.float16)
    np.save("logits.npy", logits)
    np.save("reference.npy", reference)
    np.save("target.npy", target)
    return logits, reference, target


def listing(folder="."):
    """Names of the files in a folder."""
    return {path.name for path in Path(folder).iterdir()}


def test_evaluate(files, capsys):
    logits, _, target = files
    outputs = ["--json", "a.json", "--png", "a.png", "--html", "a.html"]
    assert main(["evaluate", "logits.npy", "target.npy", *outputs, "--top-k", "1,3", "--bins", "10"]) == 0
    result = cyce.evaluate(logits, target, top_k=(1, 3), n_bins=10)
    out, err = capsys.readouterr()
    assert out == f"{result}\n"
    assert re.fullmatch(r"1\.2e-05 GB in \S+ s: \S+ GB/s\n", err)
    assert json.loads(Path("a.json").read_text("utf-8")) == json.loads(
        json.dumps(result.to_dict()).replace("NaN", "null")
    )
    assert matplotlib.image.imread("a.png").std() > 0.1
    assert listing() == {"a.html", "a.json", "a.png", "logits.npy", "reference.npy", "target.npy"}
    mask = os.umask(0)
    os.umask(mask)
    assert Path("a.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_options(files, capsys):
    logits, _, target = files
    target[:5] = 7
    np.save("target.npy", target)
    padded = np.hstack([logits, np.full((300, 2), 99, np.float32)])
    padded.T.tofile("padded.bin")
    options = "--temperature fit --ignore-index 7 --axis 0 --n-classes 10 --dtype float32 --shape 12,300"
    assert main(["evaluate", "padded.bin", "target.npy", *options.split()]) == 0
    result = cyce.evaluate(logits, target, ignore_index=7, temperature="fit")
    assert capsys.readouterr().out == f"{result}\n"
    assert result.temperature != 1


def test_divergence(files, capsys):
    logits, reference, target = files
    assert main(["divergence", "logits.npy", "reference.npy", "target.npy", "--json", "a.json"]) == 0
    result = cyce.divergence(logits, reference, target)
    assert capsys.readouterr().out == f"{result}\n"
    assert json.loads(Path("a.json").read_text("utf-8"))["kl"] == result.kl
    assert main(["divergence", "logits.npy", "reference.npy", "--html", "a.html", "--png", "a.png"]) == 0
    assert "perplexity" not in capsys.readouterr().out
    assert "Divergence" in Path("a.html").read_text("utf-8")


def test_json_has_null_for_nan(files, capsys):
    logits, _, _ = files
    logits[0, 0] = np.nan
    np.save("logits.npy", logits)
    assert main(["evaluate", "logits.npy", "target.npy", "--json", "a.json"]) == 0
    text = Path("a.json").read_text("utf-8")
    assert "NaN" not in text
    assert json.loads(text)["loss"] is None
    assert json.loads(text)["nan_positions"] == 1


class Page(html.parser.HTMLParser):
    """What is looked at in a page."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.sources, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_the_page_has_all_that_it_shows(files, capsys):
    logits, _, target = files
    assert main(["evaluate", "logits.npy", "target.npy", "--html", "a.html"]) == 0
    text = Path("a.html").read_text("utf-8")
    page = Page(text)
    assert not re.search("https?:|//", re.sub("base64,[^']*'", "", text))
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    assert not page.tags & {"script", "link", "iframe"}
    for name, value in cyce.evaluate(logits, target).rows():
        assert page.cells[page.cells.index(name) + 1] == value
    assert "Classes" in page.cells
    # Names of files may have anything.
    Path("logits.npy").rename("<b>&.npy")
    assert main(["evaluate", "<b>&.npy", "target.npy", "--html", "a.html"]) == 0
    assert "<b>" not in Path("a.html").read_text("utf-8")


ERRORS = {
    "none.npy target.npy": r"\[Errno 2\] No such file or directory: 'none\.npy'",
    "logits.npy none.npy": r"\[Errno 2\] No such file or directory: 'none\.npy'",
    "logits.npy": "target: is missing; pass class indices, or their file; .*",
    "cut.npy target.npy": "cut.npy: is cut off",
    "cut.safetensors target.npy": "cut.safetensors: is not a safetensors file, or cut off: .*",
    "cut.kld": "cut.kld: is cut off in its header",
    "text.txt target.npy": "text.txt: is not a .npy, .safetensors or llama.cpp file; .*",
    "logits.npy reference.npy": ".*target.*",
    "reference.npy short.npy": r"Expected input batch_size \(300\) to match target batch_size \(299\).*",
    "logits.npy bad.npy": r"Target 10 is out of bounds\. target\[17\] must be a class index from 0 to 9 .*",
    "target.npy target.npy": "target.npy: holds int64; logits must be .*",
    "logits.npy target.npy --n-classes 11": "n_classes: must be from 1 to 10.*",
    "logits.npy target.npy --axis 2": "Dimension out of range .*",
    "logits.npy target.npy --temperature 0": "temperature: must be a positive, finite number, got 0.0",
    "logits.npy target.npy --bins 0": "n_bins: must be from 1 to 1000, got 0",
    "logits.npy target.npy --top-k 0": "top_k: must be at least 1, got 0",
    "logits.npy target.npy --dtype float32 --shape 300,10": "dtype and shape: for files without .*",
    ". target.npy": r"\[Errno 21\] Is a directory: '\.'",
}


@pytest.mark.parametrize("arguments", ERRORS)
def test_errors_are_one_line(files, capsys, arguments):
    _, _, target = files
    content = Path("logits.npy").read_bytes()
    for name, data in {
        "cut.npy": content[:-8],
        "cut.safetensors": b"\x40" + bytes(20),
        "cut.kld": b"_logits_\x01",
        "text.txt": b"hello",
    }.items():
        Path(name).write_bytes(data)
    np.save("short.npy", target[1:])
    target[17] = 10
    np.save("bad.npy", target)
    before = listing()
    assert main(["evaluate", *arguments.split(), "--json", "a.json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    prefix = "python -m cyce evaluate: error: "
    assert err.startswith(prefix)
    assert re.fullmatch(ERRORS[arguments] + "\n", err[len(prefix) :])
    assert listing() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "a.txt"], "argument --json: must be a file name that ends in .json, got 'a.txt'"),
        (["--png", "folder.png"], "argument --png: 'folder.png' is a folder"),
        (["--html", "none/a.html"], "argument --html: there is no folder 'none'"),
        (["--shape", "3*4"], "argument --shape: must be sizes such as 100,32000, got '3*4'"),
        (["--temperature", "auto"], "argument --temperature: must be a number or fit, got 'auto'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_bad_options(files, capsys, arguments, message):
    Path("folder.png").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "logits.npy", "target.npy", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"python -m cyce evaluate: error: {message}")


def test_matplotlib_is_missed_before_anything_is_read(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["evaluate", "none.npy", "none.npy", "--png", "a.png"]) == 2
    assert "python -m pip install 'cyce[plot]'" in capsys.readouterr().err


def test_outputs_are_written_before_the_table(files, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr("sys.stdout", Closed())
    assert main(["evaluate", "logits.npy", "target.npy", "--json", "a.json"]) == 1
    assert "a.json" in listing()


def test_all_outputs_or_none(files, capsys, monkeypatch):
    before = listing()

    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr("cyce.evaluation.page.png_of", refuse)
    assert main(["evaluate", "logits.npy", "target.npy", "--json", "a.json", "--png", "a.png"]) == 2
    assert listing() == before
    assert "no room" in capsys.readouterr().err


def test_the_table_in_ascii(files, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["evaluate", "logits.npy", "target.npy"]) == 0
    assert b" +- " in shown.buffer.getvalue()


def test_no_input_is_overwritten(files, capsys):
    Path("logits.npy").rename("logits.json")
    assert main(["evaluate", "logits.json", "target.npy", "--json", "logits.json"]) == 2
    assert "logits.json: is read, and would be overwritten" in capsys.readouterr().err
    assert Path("logits.json").read_bytes()[:6] == b"\x93NUMPY"


def test_raw_and_other_files(files, capsys):
    logits, reference, _ = files
    logits.tofile("logits.bin")
    options = ["--dtype", "float32", "--shape", "300x10"]
    assert main(["divergence", "logits.bin", "reference.npy", *options]) == 0
    assert capsys.readouterr().out == f"{cyce.divergence(logits, reference)}\n"


def test_no_output_is_half_written(files, capsys, monkeypatch):
    before = listing()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    assert main(["evaluate", "logits.npy", "target.npy", "--json", "a.json", "--html", "a.html"]) == 130
    assert listing() == before


def big_file(folder, n_bytes):
    """Write a file of bfloat16 zeros, which takes no disk, and its targets; returns the arguments."""
    n = n_bytes // 2 // 32000
    array = np.lib.format.open_memmap(folder / "big.npy", "w+", "<V2", (n, 32000))
    del array
    np.save(folder / "target.npy", np.zeros(n, np.int64))
    return ["-m", "cyce", "evaluate", "big.npy", "target.npy", "--dtype", "bfloat16"]


def environment():
    """Return the environment of a child that imports this cyce."""
    folder = Path(cyce.__file__).parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def memory_of(process, kind):
    """Return the resident memory of a process in kB, 0 if it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text("ascii")
    except (ProcessLookupError, FileNotFoundError):
        return 0
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    return int(found.group(1)) if found else 0


@pytest.mark.integration
def test_ctrl_c(tmp_path):
    arguments = big_file(tmp_path, 40 * 10**9)
    before = listing(tmp_path)
    # Where it is ignored, as in background processes of a script, so it is in their children.
    restored = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = restored + "import sys; from cyce.__main__ import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments[2:], "--json", "a.json"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    # Until the file is being read.
    while memory_of(process, "RssFile") < 300_000 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""
    assert listing(tmp_path) == before


@pytest.mark.integration
def test_progress_and_memory(tmp_path):
    arguments = big_file(tmp_path, 1500 * 10**6)
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments, "--html", "a.html"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = []

    def read():
        try:
            while data := os.read(terminal, 4096):
                shown.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    most = 0
    while process.poll() is None:
        most = max(most, memory_of(process, "RssAnon"))
        time.sleep(0.002)
    reader.join(timeout=20)
    os.close(terminal)
    text = b"".join(shown).decode()
    assert process.returncode == 0, text
    assert "100%" in text
    assert "GB/s" in text
    assert 20_000 < most < 300_000


@pytest.mark.integration
def test_the_page_in_a_browser(files, capsys, tmp_path):
    """Chromium, without a network, shows the table and the picture."""
    browser = shutil.which("chromium")
    assert browser, "install chromium: apt-get install chromium"
    assert main(["evaluate", "logits.npy", "target.npy", "--html", "a.html"]) == 0
    options = [
        *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
        *["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1000,1600", "--hide-scrollbars"],
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    address = (tmp_path / "a.html").as_uri()
    shown = subprocess.run(
        [browser, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    page = Page(shown.stdout)
    result = cyce.evaluate(*files[::2])
    for name, value in result.rows():
        assert page.cells[page.cells.index(name) + 1] == value
    subprocess.run(
        [browser, *options, f"--screenshot={tmp_path / 'page.png'}", address],
        capture_output=True,
        timeout=120,
        check=True,
    )
    screen = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    # The bars, lightsteelblue, of both pictures.
    bars = np.abs(screen - np.array([176, 196, 222]) / 255).max(axis=2) < 0.02
    assert bars.mean() > 0.005
    columns = np.flatnonzero(bars.any(axis=0))
    assert columns[-1] - columns[0] > 500
