"""Explain why the compiled modules cannot be imported, if they cannot; imported before all others."""

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# _cpu does not use OpenMP; team needs its runtime.
MODULES = ("kernels._cpu", "threads.team")


def explain(error: ImportError, module: str, folder: Path) -> str:
    """Return why a module of the package in a folder cannot be imported, and what to do."""
    subpackage, name = module.split(".")
    files = (folder / subpackage).glob(f"{name}.*")
    compiled = sorted(path.name for path in files if path.suffix in (".so", ".pyd"))
    if any(f"{name}{suffix}" in compiled for suffix in EXTENSION_SUFFIXES):
        advice = "build it again: `python -m pip install --force-reinstall --no-cache-dir .` in a checkout"
        if "omp" in str(error):
            advice = (
                "install the runtime of OpenMP (on Debian or Ubuntu, `apt-get install libgomp1`; on Fedora, "
                "`dnf install libgomp`), or build without it: `CYCE_OPENMP=0 python -m pip install .` in a "
                "checkout"
            )
        return f"the compiled modules of cyce in {folder} cannot be loaded: {error}; {advice}"
    if compiled:
        return (
            f"cyce in {folder} was compiled for another Python ({', '.join(compiled)}) than this one, which "
            f"loads {EXTENSION_SUFFIXES[0]}; build it for this one: `python -m pip install .` in a checkout"
        )
    return (
        f"cyce in {folder} is not compiled. In a checkout, build it: `python -m pip install .`. Where it is "
        "installed elsewhere, run Python from another folder: what lies in the current one is imported first"
    )


for module in MODULES:
    try:
        importlib.import_module(f"{__package__}.{module}")
    except ImportError as import_error:
        message = explain(import_error, module, Path(__file__).parent)
        raise ImportError(message, name=import_error.name) from import_error
