"""Command line: python -m cyce, or cyce, with demo, info, compare, evaluate or divergence."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import cyce
from cyce import _compare, _demo
from cyce.evaluation import command_line


def _seed(text: str) -> int:
    """Parse a seed of NumPy's random generators."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def _png(text: str) -> Path:
    """Parse the path of a PNG that can be written."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a file name that ends in .png, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    # Not the package's docstring, which python -OO removes.
    parser = _Parser(prog=prog, description="Cross-entropy of classifiers and its gradient, on the CPU.")
    parser.add_argument("--version", action="version", version=f"cyce {cyce.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    seeded = _Parser(add_help=False)
    seeded.add_argument("--seed", type=_seed, default=0, help="of the random numbers (default: 0)")
    demo = commands.add_parser(
        "demo",
        parents=[seeded],
        help="train a classifier of handwritten digits, show its loss and accuracy",
        description="Train a softmax classifier on real handwritten digits by cyce.value_and_grad, and "
        "show its loss and accuracy on held-out digits. Where matplotlib is installed, draw "
        "some of them with their predicted probabilities, and how far these can be trusted.",
    )
    demo.add_argument(
        "--png",
        type=_png,
        default=Path("cyce-demo.png"),
        metavar="FILE",
        help="where to write the picture of the probabilities (default: cyce-demo.png); that of their "
        "reliability is written beside it, to FILE with -reliability before .png",
    )
    demo.add_argument(
        "--torch",
        action="store_true",
        help="train in torch, with the loss of cyce.torch in place of torch's own",
    )
    demo.add_argument("--no-png", action="store_const", const=None, dest="png", help="draw nothing")
    commands.add_parser(
        "info",
        help="show version, compiled levels, level in use, OpenMP and threads",
        description="Print cyce.show_config(): version, compiled levels, level in use, OpenMP, threads.",
    )
    commands.add_parser(
        "compare",
        parents=[seeded],
        help="compute losses and gradients with cyce and torch, show differences and times",
        description="Compute a set of losses and gradients with cyce and, if it is installed, with torch, "
        "and print the differences, the times and a verdict; exit with 1 where they disagree. "
        "benchmarks/ measures with more care.",
    )
    command_line.add_parsers(commands)
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cyce") -> int:
    """Run one command and return the exit code. Without a command, show the help."""
    with contextlib.ExitStack() as stack:
        if sys.stdout is None:
            # Standard output was closed by ">&-".
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return _run(_parser(prog), arguments)


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Run one command and return the exit code."""
    parsed = parser.parse_args(arguments)
    try:
        if parsed.command is None:
            parser.print_help()
        elif parsed.command == "demo":
            _demo.run(parsed.png, parsed.seed, parsed.torch)
        elif parsed.command == "info":
            cyce.show_config()
        elif parsed.command == "compare":
            if not _compare.run(parsed.seed):
                return 1
        elif code := command_line.run(parsed, parser.prog):
            return code
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader closed the pipe. Discard what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(f"{parser.prog}: {error}; install it: python -m pip install torch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def console_script() -> int:
    """Run one command as the script `cyce` and return the exit code."""
    return main(prog="cyce")


if __name__ == "__main__":
    sys.exit(main())
