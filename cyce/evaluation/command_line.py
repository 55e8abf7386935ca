"""The commands `evaluate` and `divergence`."""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cyce.evaluation.divergence import Divergence, divergence
from cyce.evaluation.evaluate import evaluate
from cyce.evaluation.record import Evaluation
from cyce.evaluation.sources import named_dtype, open_sources, split_path

FILES = (
    "Files may be .npy, .safetensors (FILE.safetensors:NAME for one tensor of several), what llama.cpp's "
    "perplexity tool wrote by --kl-divergence-base, or, with --dtype and --shape, numbers without a header. "
    "They are read in one pass and in pieces: the memory that it takes, some 300 MB beside the pages of the "
    "files themselves, does not depend on their size."
)
DTYPES = ("float16", "bfloat16", "float32", "float64")


def _output(suffix: str) -> Callable[[str], Path]:
    """Return a parser of a file's name that ends in `suffix`."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"must be a file name that ends in {suffix}, got {text!r}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder")
        return path

    return parse


def _integers(text: str) -> tuple[int, ...]:
    """Parse integers, separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers such as 1,5, got {text!r}") from None


def _shape(text: str) -> tuple[int, ...]:
    """Parse sizes, separated by commas or x."""
    try:
        return tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be sizes such as 100,32000, got {text!r}") from None


def _temperature(text: str) -> float | str:
    """Parse a temperature, or "fit"."""
    if text == "fit":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or fit, got {text!r}") from None


def add_parsers(commands: Any) -> None:
    """Add the two commands."""
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--json", type=_output(".json"), metavar="FILE", help="where to write all numbers")
    both.add_argument("--png", type=_output(".png"), metavar="FILE", help="where to write the pictures")
    both.add_argument(
        "--html", type=_output(".html"), metavar="FILE", help="where to write a page with table and pictures"
    )
    both.add_argument(
        "--ignore-index",
        type=int,
        default=-100,
        metavar="N",
        help="target of positions to ignore (default: -100)",
    )
    both.add_argument("--axis", type=int, metavar="N", help="axis of the classes (default: 1)")
    both.add_argument(
        "--n-classes", type=int, metavar="N", help="leave out classes beyond these, a vocabulary's padding"
    )
    both.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of files without a header; bfloat16 also for .npy files that NumPy knows as |V2",
    )
    both.add_argument("--shape", type=_shape, metavar="N,N", help="of files without a header")
    one = commands.add_parser(
        "evaluate",
        parents=[both],
        help="show loss, perplexity, accuracies and calibration of saved logits",
        description="Show loss, perplexity, accuracies and calibration of saved logits. " + FILES,
    )
    one.add_argument("logits", metavar="LOGITS", help="file of logits, (N, C)")
    one.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="file of class indices, (N,); llama.cpp's files bring theirs",
    )
    one.add_argument(
        "--temperature",
        type=_temperature,
        default=1.0,
        metavar="T",
        help="divide the logits by T, or by what minimises the loss: fit (default: 1)",
    )
    one.add_argument("--top-k", type=_integers, default=(1, 5), metavar="K,K", help="default: 1,5")
    one.add_argument(
        "--bins", type=int, default=15, metavar="N", help="number of bins of the confidence (default: 15)"
    )
    two = commands.add_parser(
        "divergence",
        parents=[both],
        help="show how far saved logits are from those of a reference, as of a quantised model",
        description="Show the divergence of saved logits from those of a reference on the same positions, "
        "such as the model before it was quantised. " + FILES,
    )
    two.add_argument("logits", metavar="LOGITS", help="file of the model's logits, (N, C)")
    two.add_argument("reference", metavar="REFERENCE", help="file of the reference's logits")
    two.add_argument(
        "target", metavar="TARGET", nargs="?", help="file of class indices, (N,), for perplexities and more"
    )


def run(parsed: argparse.Namespace, prog: str) -> int:
    """Run one of the two commands and return the exit code."""
    try:
        if parsed.png or parsed.html:
            # Now, not after minutes of reading.
            importlib.import_module("cyce.plotting")._new_figure(1)
        evaluates = parsed.command == "evaluate"
        inputs = {"logits": parsed.logits}
        if not evaluates:
            inputs["reference_logits"] = parsed.reference
        _check_outputs(parsed, [path for path in (*inputs.values(), parsed.target) if path])
        dtype = None if parsed.dtype is None else named_dtype(parsed.dtype)
        common = {
            "ignore_index": parsed.ignore_index,
            "axis": parsed.axis,
            "n_classes": parsed.n_classes,
            "dtype": dtype,
            "shape": parsed.shape,
        }
        began = time.perf_counter()
        result: Evaluation | Divergence
        files = [("logits", parsed.logits)]
        if evaluates:
            files.append(("targets", parsed.target or "in the file of the logits"))
            result = evaluate(
                parsed.logits,
                parsed.target,
                temperature=parsed.temperature,
                top_k=parsed.top_k,
                n_bins=parsed.bins,
                **common,
            )
        else:
            files.append(("reference", parsed.reference))
            files += [("targets", parsed.target)] if parsed.target else []
            result = divergence(parsed.logits, parsed.reference, parsed.target, **common)
        seconds = time.perf_counter() - began
        # Before it is shown, which may fail where a pipe was closed.
        _write(parsed, result, files)
        _show(str(result))
        if sys.stderr is not None and not (evaluates and parsed.temperature == "fit"):
            n_bytes = sum(source.nbytes for source in open_sources(inputs, dtype, parsed.shape))
            print(
                f"{n_bytes / 1e9:.3g} GB in {seconds:.3g} s: {n_bytes / seconds / 1e9:.3g} GB/s",
                file=sys.stderr,
            )
    except (TypeError, ValueError, IndexError, MemoryError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if sys.stderr is not None:
            print(f"{prog} {parsed.command}: error: {message}", file=sys.stderr)
        return 2
    return 0


def _show(text: str) -> None:
    """Print a text, whatever the characters that standard output has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode(encoding, "replace").decode(encoding)
    print(text)
    sys.stdout.flush()


def _check_outputs(parsed: argparse.Namespace, inputs: list[str]) -> None:
    """Raise if a file cannot be written, or would be over one that is read."""
    for output in (parsed.json, parsed.png, parsed.html):
        if output is not None and not os.access(output.resolve().parent, os.W_OK):
            raise PermissionError(f"{output}: cannot be written to its folder")
        for name in inputs:
            path, _ = split_path(name)
            if output is not None and output.exists() and path.exists() and output.samefile(path):
                raise ValueError(f"{output}: is read, and would be overwritten; choose another name")


def _write(parsed: argparse.Namespace, result: Evaluation | Divergence, files: list[tuple[str, str]]) -> None:
    """Write the output files that were asked for."""
    contents: list[tuple[Path, bytes]] = []
    if parsed.json:
        text = json.dumps(_finite(result.to_dict()), indent=2, allow_nan=False)
        contents.append((parsed.json, text.encode() + b"\n"))
    if parsed.png or parsed.html:
        from cyce.evaluation.page import page_of, png_of

        if parsed.png:
            contents.append((parsed.png, png_of(result.plot())))
        if parsed.html:
            page = page_of(result, f"cyce {parsed.command} {Path(parsed.logits).name}", files)
            contents.append((parsed.html, page.encode()))
    # All or none: each is there when all of them are written.
    with contextlib.ExitStack() as stack:
        files_written = [stack.enter_context(_whole_file(path)) for path, _ in contents]
        for file, (_, content) in zip(files_written, contents, strict=True):
            file.write(content)


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Any]:
    """Open a file that is there when all of it is written, and not before."""
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=".cyce-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp's files are readable by their owner alone.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
