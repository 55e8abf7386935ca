"""`evaluate` and `fit_temperature`: every kind of source gives what the array in memory does."""

import io
import itertools
import os
import pathlib
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from files import write_llama_file

import cyce
import cyce.functional as F
from cyce._progress import Progress
from cyce.evaluation import sources


@pytest.fixture
def logits(rng):
    return (rng.standard_normal((300, 11)) * 3).astype(np.float32)


@pytest.fixture
def target(rng, logits):
    target = np.where(rng.random(300) < 0.5, logits.argmax(axis=1), rng.integers(11, size=300))
    target[17] = -100
    return target


def same(result, expected):
    """Assert that two results are the same, up to how sums are cut."""
    for name in ("n_positions", "n_ignored", "loss_quantiles"):
        assert getattr(result, name) == getattr(expected, name), name
    for name in ("loss", "loss_standard_error", "accuracy", "brier_score", "calibration_error"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


class TestSources:
    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch):
        monkeypatch.setattr("cyce.evaluation.sources.PIECE_POSITIONS", 64)

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ">f4"])
    def test_npy(self, logits, target, tmp_path, dtype):
        logits = logits.astype(dtype)
        np.save(tmp_path / "logits.npy", logits)
        np.save(tmp_path / "target.npy", target)
        options = {"dtype": dtype} if dtype is ml_dtypes.bfloat16 else {}
        expected = cyce.evaluate(logits, target)
        same(cyce.evaluate(tmp_path / "logits.npy", str(tmp_path / "target.npy"), **options), expected)
        same(cyce.evaluate(str(tmp_path / "logits.npy"), target, **options), expected)
        mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
        same(cyce.evaluate(mapped.view(**options), target), expected)

    def test_bits_of_bfloat16_are_not_guessed(self, logits, target, tmp_path):
        np.save(tmp_path / "logits.npy", logits.astype(ml_dtypes.bfloat16))
        with pytest.raises(ValueError, match="if they are bfloat16, say so: dtype=bfloat16"):
            cyce.evaluate(tmp_path / "logits.npy", target)
        with pytest.raises(ValueError, match="its numbers have two bytes, float32 has more; try bfloat16"):
            cyce.evaluate(tmp_path / "logits.npy", target, dtype=np.float32)

    @pytest.mark.thread_unsafe
    def test_big_endian_files_are_swapped_in_pieces(self, rng, tmp_path):
        np.save(tmp_path / "logits.npy", np.zeros((4000, 1000), ">f4"))
        tracemalloc.start()
        try:
            cyce.evaluate(tmp_path / "logits.npy", np.zeros(4000, int))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 4e6

    @pytest.mark.parametrize(
        "shape", [(1, 400, 3), (1, 1, 400, 3), (2, 1, 200, 3), (400, 1, 1, 3), (20, 5, 4, 3)]
    )
    def test_pieces_are_cut_along_any_axis(self, rng, shape):
        logits = rng.standard_normal(shape).astype(np.float32)
        target = rng.integers(3, size=shape[:-1])
        pieces = list(sources.pieces_of(shape, 4, len(shape) - 1))
        seen = np.zeros(shape, int)
        for index in pieces:
            assert seen[index].size <= 64 * 3
            seen[index] += 1
        assert (seen == 1).all()
        result = cyce.evaluate(logits, target, axis=-1)
        same(result, cyce.evaluate(logits.reshape(-1, 3), target.ravel()))

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
    def test_safetensors(self, logits, target, tmp_path, dtype, save_file):
        logits = logits.astype(dtype)
        expected = cyce.evaluate(logits, target)
        one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
        save_file({"anything": logits}, one)
        save_file({"logits": logits, "target": target, "more": logits[:3]}, several)
        same(cyce.evaluate(one, target), expected)
        same(cyce.evaluate(several, several), expected)
        same(cyce.evaluate(f"{several}:logits", f"{several}:target"), expected)
        with pytest.raises(
            ValueError, match=r"has no tensor 'other'; name one as .*:NAME, of logits, more, target"
        ):
            cyce.evaluate(f"{several}:other", target)
        save_file({"a": logits, "b": logits}, several)
        with pytest.raises(
            ValueError, match=r"has several tensors; name one as .*several\.safetensors:NAME, of a, b"
        ):
            cyce.evaluate(several, target)

    def test_bad_safetensors(self, target, tmp_path, save_file):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(b"\xff" * 100)
        with pytest.raises(ValueError, match=r"bad\.safetensors: is not a safetensors file, or cut off"):
            cyce.evaluate(path, target)
        save_file({"logits": np.zeros((3, 2), np.float32)}, path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"bad\.safetensors: is not a safetensors file, or cut off"):
            cyce.evaluate(path, target)
        save_file({"logits": np.zeros((), np.float32)}, path)
        with pytest.raises(ValueError, match="tensor logits is a scalar"):
            cyce.evaluate(path, target)
        save_file({"logits": np.zeros((3, 2), ml_dtypes.float8_e4m3fn)}, path)
        with pytest.raises(
            ValueError, match="tensor logits is F8_E4M3; logits must be F16, BF16, F32 or F64"
        ):
            cyce.evaluate(path, target)
        save_file({"logits": np.zeros((0, 2), np.float32)}, path)
        assert cyce.evaluate(path, np.zeros(0, int)).n_positions == 0

    def test_safetensors_is_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        (tmp_path / "a.safetensors").write_bytes(b"12345678")
        with pytest.raises(ModuleNotFoundError, match=r"python -m pip install 'cyce\[evaluate\]'"):
            cyce.evaluate(tmp_path / "a.safetensors", [0])

    def test_raw_numbers(self, logits, target, tmp_path):
        path = tmp_path / "logits.bin"
        path.write_bytes(logits.tobytes())
        same(cyce.evaluate(path, target, dtype=np.float32, shape=(300, 11)), cyce.evaluate(logits, target))
        with pytest.raises(ValueError, match=r"has 13,200 bytes, float32 of shape \[300, 12\] needs 14,400"):
            cyce.evaluate(path, target, dtype=np.float32, shape=(300, 12))
        with pytest.raises(ValueError, match="of a file of numbers without a header, pass dtype and shape"):
            cyce.evaluate(path, target)

    def test_iterables(self, logits, target, rng):
        weight = rng.uniform(0.1, 2, 300)
        expected = cyce.evaluate(logits, target, sample_weight=weight)
        cuts = [0, 1, 100, 300]
        parts = [(logits[a:b], target[a:b], weight[a:b]) for a, b in itertools.pairwise(cuts)]
        for pieces in (parts, iter(parts), (part for part in parts)):
            result = cyce.evaluate(pieces)
            assert result.loss == pytest.approx(expected.loss, rel=1e-12)
            assert result.n_positions == expected.n_positions
        assert cyce.evaluate([]).n_positions == 0

    @pytest.mark.parametrize(
        ("pieces", "error", "message"),
        [
            (
                [(np.zeros((1, 2)), [0]), (np.zeros((1, 2)), [7])],
                IndexError,
                "piece 1: Target 7 is out of bounds",
            ),
            ([(np.zeros((1, 2)), [0]), (np.zeros((1, 3)), [1])], ValueError, "must have 2 classes at axis 1"),
            (
                [np.zeros((1, 2))],
                TypeError,
                r"got an array of shape \[1, 2\].* as piece 0; an array, or a list",
            ),
            (5, TypeError, "logits: must be an array, a path, or an iterable of"),
        ],
    )
    def test_bad_iterables(self, pieces, error, message):
        with pytest.raises(error, match=message):
            cyce.evaluate(pieces)

    def test_llama_files(self, rng, tmp_path):
        for n_vocabulary, n_context in ((50, 8), (33, 9)):
            path = tmp_path / f"{n_vocabulary}.kld"
            all_logits = rng.standard_normal((3, n_context, n_vocabulary)) * 4
            tokens = rng.integers(n_vocabulary, size=(3, n_context))
            kept = write_llama_file(path, all_logits, tokens, n_context)
            target = tokens[:, n_context // 2 + 1 :].ravel()
            assert len(kept) == len(target) == 3 * (n_context - 1 - n_context // 2)
            result = cyce.evaluate(path)
            expected = cyce.evaluate(kept, target)
            assert result.loss == pytest.approx(expected.loss, rel=1e-6)
            assert result.n_positions == len(target)
            assert cyce.evaluate(path, target[::-1].copy()).loss != result.loss
            # Where nothing was lost, as the exact logits.
            exact = all_logits[:, n_context // 2 : -1].reshape(-1, n_vocabulary)
            assert result.loss == pytest.approx(cyce.evaluate(exact, target).loss, abs=1e-3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data[:15], "is cut off in its header"),
            (lambda data: data[:-1], "bytes, its header asks for .*: it is cut off"),
            (lambda data: data + b"x", "it is not what its header says"),
            (lambda data: data[:8] + bytes(12) + data[20:], "its header makes no sense: 0 tokens of context"),
        ],
    )
    def test_bad_llama_files(self, rng, tmp_path, change, message):
        path = tmp_path / "bad.kld"
        write_llama_file(path, rng.standard_normal((1, 8, 5)), rng.integers(5, size=(1, 8)), 8)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=message):
            cyce.evaluate(path)

    def test_bad_files(self, logits, target, tmp_path):
        path = tmp_path / "logits.npy"
        np.save(path, logits)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(ValueError, match=r"logits\.npy: is cut off"):
            cyce.evaluate(path, target)
        with pytest.raises(FileNotFoundError, match=r"none\.npy"):
            cyce.evaluate(tmp_path / "none.npy", target)
        np.save(path, np.array([{}], object), allow_pickle=True)
        with pytest.raises(ValueError, match="cannot be read as numbers: "):
            cyce.evaluate(path, target)

    def test_files_that_are_none(self, target, tmp_path):
        path = tmp_path / "file.npy"
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"file\.npy: is empty"):
            cyce.evaluate(path, target)
        for header in (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999, 6), }",
            "{'descr",
        ):
            path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
            with pytest.raises(ValueError, match=r"file\.npy: cannot be read as numbers: [^\n]*$"):
                cyce.evaluate(path, target)
        np.savez(tmp_path / "several.npz", a=target)
        with pytest.raises(ValueError, match="is an archive of several arrays"):
            cyce.evaluate(tmp_path / "several.npz", target)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="pipe: is not a regular file"):
            cyce.evaluate(tmp_path / "pipe", target)

    def test_one_position_of_one_class(self):
        assert cyce.evaluate(np.array([1.0]), 0).loss == 0
        assert cyce.Evaluator().update([1.0], 0).compute().n_positions == 1
        assert cyce.divergence([1.0], [2.0], 0).kl == 0

    def test_padded_classes(self, logits, target):
        padded = np.hstack([logits, np.full((300, 5), 90, np.float32)])
        same(cyce.evaluate(padded, target, n_classes=11), cyce.evaluate(logits, target))
        same(cyce.evaluate([(padded, target)], n_classes=11), cyce.evaluate(logits, target))
        with pytest.raises(ValueError, match="n_classes: must be from 1 to 11, the classes at axis 1"):
            cyce.evaluate(logits, target, n_classes=12)

    def test_arguments_that_do_not_fit(self, logits, target):
        with pytest.raises(TypeError, match="target: is missing"):
            cyce.evaluate(logits)
        with pytest.raises(TypeError, match=r"dtype: for files without a header, .*; logits has its own"):
            cyce.evaluate(logits, target, dtype=np.float32)
        with pytest.raises(TypeError, match="dtype and shape: are for files, got an iterable"):
            cyce.evaluate([(logits, target)], shape=(300, 11))
        with pytest.raises(TypeError, match="an array, or a list of numbers, needs target"):
            cyce.evaluate([[1.0, 2.0], [3.0, 4.0]])
        with pytest.raises(TypeError, match=r"pass target\.argmax\(axis=1\)"):
            cyce.evaluate(logits, np.eye(11)[target.clip(0)])
        with pytest.raises(ValueError, match="if they are at axis 2, pass axis=2"):
            cyce.evaluate(logits.reshape(30, 10, 11), target.reshape(30, 10))
        with pytest.raises(TypeError, match="n_classes: must be an integer, got float"):
            cyce.evaluate(logits, target, n_classes=2.5)
        with pytest.raises(TypeError, match="shape: must be a sequence of integers"):
            cyce.evaluate("x.bin", target, dtype=np.float32, shape=400)
        with pytest.raises(ValueError, match="n_bins: must be from 1"):
            cyce.evaluate(logits, target, temperature="fit", n_bins=0)
        with pytest.raises(TypeError, match="it is the third element of a piece"):
            cyce.evaluate([(logits, target)], sample_weight=np.ones(300))
        with pytest.raises(ValueError, match="temperature: must be a number or 'fit', got 'auto'"):
            cyce.evaluate(logits, target, temperature="auto")

    def test_classes_first(self, logits, target, tmp_path):
        np.save(tmp_path / "logits.npy", logits.T)
        same(cyce.evaluate(tmp_path / "logits.npy", target, axis=0), cyce.evaluate(logits, target))
        images = logits[:294].reshape(6, 7, 7, 11).transpose(0, 3, 1, 2)
        same(cyce.evaluate(images, target[:294].reshape(6, 7, 7)), cyce.evaluate(logits[:294], target[:294]))

    def test_each_byte_is_read_once(self, logits, target, monkeypatch):
        read = []
        original = cyce.evaluation.sources.ArraySource.read

        def note(self, index):
            read.append(original(self, index).nbytes)
            return original(self, index)

        monkeypatch.setattr(cyce.evaluation.sources.ArraySource, "read", note)
        cyce.evaluate(logits, target)
        assert sum(read) == logits.nbytes
        assert len(read) > 1


class TestTemperature:
    @pytest.mark.parametrize("factor", [0.05, 1, 40])
    def test_it_minimises_the_loss(self, logits, target, dtype, factor):
        logits = (logits * factor).astype(dtype)
        temperature = cyce.fit_temperature(logits, target)
        precise = logits.astype(np.float64)
        losses = [
            float(F.cross_entropy(precise, target, temperature=temperature * (1 + step)))
            for step in (-1e-3, 0, 1e-3)
        ]
        assert losses[1] < min(losses[0], losses[2])
        # A parabola has its minimum between two equal losses.
        assert abs(losses[0] - losses[2]) < 1e-2 * (losses[0] - losses[1])
        assert temperature == pytest.approx(factor * cyce.fit_temperature(precise / factor, target), rel=1e-5)

    def test_weights(self, logits, target, rng):
        weight, class_weight = rng.uniform(0, 2, 300), rng.uniform(0.5, 2, 11)
        temperature = cyce.fit_temperature(logits, target, sample_weight=weight, class_weight=class_weight)
        precise = logits.astype(np.float64)
        losses = [
            cyce.evaluate(
                precise,
                target,
                sample_weight=weight,
                class_weight=class_weight,
                temperature=temperature * factor,
            ).loss
            for factor in (0.999, 1, 1.001)
        ]
        assert losses[1] < min(losses[0], losses[2])
        assert abs(losses[0] - losses[2]) < 1e-2 * (losses[0] - losses[1])

    def test_evaluate_fits_first(self, logits, target):
        result = cyce.evaluate([(logits, target)], temperature="fit")
        assert result.temperature == pytest.approx(cyce.fit_temperature(logits, target), rel=1e-6)
        assert result.loss < cyce.evaluate(logits, target).loss
        assert result.accuracy == cyce.evaluate(logits, target).accuracy
        # At the minimum, the mean loss is the mean entropy.
        assert result.loss == pytest.approx(result.entropy, rel=1e-6)

    def test_what_has_no_temperature(self, logits, target):
        with pytest.raises(
            ValueError, match="as long as the temperature gets lower: predictions are all right"
        ):
            cyce.fit_temperature(logits, logits.argmax(axis=1))
        for factor in (1e-4, 1, 1e4):
            for scores in (logits * np.float32(factor), logits.astype(float) * factor, [[1.0, 0.0]] * 5):
                with pytest.raises(ValueError, match="are all right"):
                    cyce.fit_temperature(scores, np.argmax(scores, axis=1))
        with pytest.raises(ValueError, match="are the same for all classes"):
            cyce.fit_temperature(np.ones((3, 4)), [0, 1, 2])
        with pytest.raises(ValueError, match="no better than chance"):
            cyce.fit_temperature(logits, logits.argmin(axis=1))
        with pytest.raises(ValueError, match="must have at least one position that counts"):
            cyce.fit_temperature(logits, np.full(300, -100))
        with pytest.raises(TypeError, match="this iterable can be read only once; pass a list"):
            cyce.fit_temperature(iter([(logits, target)]))
        with pytest.raises(ValueError, match="class_weight: has 3 numbers"):
            cyce.fit_temperature(logits, target, class_weight=[1, 2, 3])
        bad = logits.copy()
        bad[3, 3] = np.nan
        with pytest.raises(ValueError, match="some have no softmax"):
            cyce.fit_temperature(bad, target)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_noise_is_no_minimum(self, rng, dtype):
        # At both ends of the scale, where float32 has few digits of the loss.
        logits = np.array([[1, 0], [0, 1]], dtype)
        for factor in (0.01, 1, 30):
            with pytest.raises(
                ValueError, match=r"as long as the temperature gets higher: .* all no better than chance"
            ):
                cyce.fit_temperature(logits * dtype(factor), [0, 0])
        for _ in range(20):
            scores = rng.standard_normal((200, 10)).astype(dtype)
            targets = rng.integers(10, size=200)
            try:
                expected = cyce.fit_temperature(scores.astype(float), targets)
            except ValueError:
                with pytest.raises(ValueError, match="no better than chance"):
                    cyce.fit_temperature(scores, targets)
            else:
                assert cyce.fit_temperature(scores, targets) == pytest.approx(expected, rel=1e-3)

    def test_one_wrong_by_next_to_nothing(self):
        logits, target = [[3, 0], [3, 0], [0, 3], [0, 1e-8]], [0, 0, 1, 0]
        single, double = (cyce.fit_temperature(np.array(logits, dtype), target) for dtype in ("f4", "f8"))
        assert single == pytest.approx(double, rel=1e-5)

    def test_few_passes(self, logits, target, monkeypatch):
        passes = []
        original = cyce.evaluation.evaluate._slopes

        def count(*arguments):
            passes.append(arguments)
            return original(*arguments)

        monkeypatch.setattr(cyce.evaluation.evaluate, "_slopes", count)
        cyce.fit_temperature(logits, target)
        assert len(passes) <= 8


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    def test_bars(self, logits, target, monkeypatch):
        for tqdm in (True, False):
            if not tqdm:
                monkeypatch.setitem(sys.modules, "tqdm", None)
            terminal = Terminal()
            monkeypatch.setattr("sys.stderr", terminal)
            cyce.evaluate(logits, target)
            assert "B/s" in terminal.getvalue()
            assert terminal.getvalue().endswith("\n")
            monkeypatch.setattr("sys.stderr", Terminal())
            cyce.evaluate(logits, target, progress=False)
            cyce.evaluate([(logits, target)])
            monkeypatch.setattr("sys.stderr", io.StringIO())
            cyce.evaluate(logits, target)
            assert sys.stderr.getvalue() == ""

    def test_our_own_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        terminal = Terminal()
        with Progress(2, "epochs", terminal) as progress:
            progress.update(1, "loss 2")
            progress.update(1, "loss 1")
        lines = terminal.getvalue().split("\r")
        assert lines[1] == "[###############               ] 1/2  loss 2"
        assert lines[-1] == "[##############################] 2/2  loss 1\n"

    def test_none_where_there_is_no_stream(self):
        with Progress(2, "epochs", None) as progress:
            progress.update(1)


def test_the_example_of_files(tmp_path, run_python):
    example = pathlib.Path(__file__).parents[2] / "examples" / "evaluate_files.py"
    result = run_python(str(example), str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "calibration error" in result.stdout
