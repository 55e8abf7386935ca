"""What `import cyce` says where its compiled modules are missing or cannot be loaded."""

import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import cyce
from platforms import on_linux, with_openmp

PACKAGE = Path(cyce.__file__).parent


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a copy of the package's Python files alone."""
    shutil.copytree(
        PACKAGE, tmp_path / "cyce", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "data")
    )
    return tmp_path


def import_from(folder, environment=None):
    """Import cyce in a new interpreter; returns the last line of the error."""
    result = subprocess.run(
        # Without installed packages: an editable cyce among them would find its modules in a checkout.
        [sys.executable, "-S", "-c", "import cyce.functional"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_not_compiled(folder):
    error = import_from(folder)
    assert error.startswith(
        f"ImportError: cyce in {folder / 'cyce'} is not compiled. In a checkout, build it:"
    )
    assert "python -m pip install ." in error
    assert "run Python from another folder" in error


def test_compiled_for_another_python(folder):
    (folder / "cyce" / "kernels" / "_cpu.cpython-32-x86_64-linux-gnu.so").touch()
    error = import_from(folder)
    assert "was compiled for another Python (_cpu.cpython-32-x86_64-linux-gnu.so)" in error
    assert EXTENSION_SUFFIXES[0] in error


def test_broken(folder):
    (folder / "cyce" / "kernels" / f"_cpu{EXTENSION_SUFFIXES[0]}").write_text("no module")
    error = import_from(folder)
    assert f"the compiled modules of cyce in {folder / 'cyce'} cannot be loaded: " in error
    assert "--force-reinstall" in error


@on_linux
@with_openmp
def test_without_the_runtime_of_openmp(tmp_path):
    (tmp_path / "libgomp.so.1").write_text("no library")
    environment = {"PYTHONPATH": str(PACKAGE.parent), "LD_LIBRARY_PATH": str(tmp_path)}
    error = import_from(tmp_path, environment)
    assert "cannot be loaded: " in error
    assert "libgomp.so.1" in error
    assert "`apt-get install libgomp1`" in error
    assert "CYCE_OPENMP=0" in error
