"""What compilers that are not at hand see of the sources."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Not those of an installed package, which has none.
PACKAGE = Path(__file__).parents[1] / "cyce"
SOURCES = sorted([*PACKAGE.rglob("*.pxd"), *PACKAGE.rglob("*.pyx")])
C_BLOCK = re.compile(r'^cdef extern from \* nogil:\n    """\n(.*?)^    """', re.DOTALL | re.MULTILINE)

# Of Microsoft's compiler for x86-64 and ARM, with and without OpenMP.
MICROSOFT = {
    "x86-64": ["_WIN32", "_WIN64", "_MSC_VER=1940", "_M_X64=100", "_M_AMD64=100"],
    "ARM": ["_WIN32", "_WIN64", "_MSC_VER=1940", "_M_ARM64=1"],
    "OpenMP": ["_WIN32", "_WIN64", "_MSC_VER=1940", "_M_X64=100", "_OPENMP=200203"],
}


# Of OpenMP 2.0, which is Microsoft's. (Later names may be macros.)
OLD_OPENMP = {"omp_get_max_threads", "omp_get_num_procs", "omp_get_wtime", "omp_in_parallel"}


def c_blocks():
    """Return the C that stands in the sources, without what it includes."""
    blocks = [block for source in SOURCES for block in C_BLOCK.findall(source.read_text(encoding="utf-8"))]
    text = "\n".join(blocks).replace("\\\\\n", "\\\n")
    # The preprocessor that is asked has this one whatever is undefined.
    text = text.replace("defined(__has_builtin)", "0")
    return re.sub(r"^ *# *include.*$", "", text, flags=re.MULTILINE)


def preprocessed_c(text, macros, *options):
    """Return what is left of C, without the macros of the compiler that is asked."""
    compiler = shutil.which("cc")
    if compiler is None:
        # Not in .ci/run, which installs one: on systems whose compiler has another name.
        pytest.skip("no compiler named cc")
    command = [compiler, "-E", "-P", "-undef", *options, *(f"-D{macro}" for macro in macros), "-x", "c", "-"]
    return subprocess.run(command, input=text, capture_output=True, check=True, text=True).stdout


def test_microsoft_s_openmp_has_what_is_called():
    cython = "\n".join(C_BLOCK.sub("", source.read_text(encoding="utf-8")) for source in SOURCES)
    c = preprocessed_c(c_blocks(), MICROSOFT["OpenMP"])
    called = set(re.findall(r"\bomp_\w+(?=\()", cython + c))
    assert "omp_get_level" in called
    macros = preprocessed_c(c_blocks(), MICROSOFT["OpenMP"], "-dM")
    assert {name for name in called if f"#define {name}(" not in macros} <= OLD_OPENMP


@pytest.mark.parametrize("macros", MICROSOFT.values(), ids=MICROSOFT)
def test_microsoft_s_compiler_sees_c_alone(macros):
    text = c_blocks()
    assert text.count("__builtin_") > 10
    preprocessed = preprocessed_c(text, macros)
    assert "cyce_to_float" in preprocessed
    foreign = r"\b(?:__builtin_|__attribute__|__extension__|__typeof|_mm\d*_|pthread_|mmap|clock_gettime)\w*"
    assert not re.findall(foreign, preprocessed)
