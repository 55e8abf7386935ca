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


def c_blocks():
    """Return the C that stands in the sources, without what it includes."""
    blocks = [block for source in SOURCES for block in C_BLOCK.findall(source.read_text(encoding="utf-8"))]
    text = "\n".join(blocks).replace("\\\\\n", "\\\n")
    # The preprocessor that is asked has this one whatever is undefined.
    text = text.replace("defined(__has_builtin)", "0")
    return re.sub(r"^ *# *include.*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("macros", MICROSOFT.values(), ids=MICROSOFT)
def test_microsoft_s_compiler_sees_c_alone(macros):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler")
    text = c_blocks()
    assert text.count("__builtin_") > 10
    preprocessed = subprocess.run(
        [compiler, "-E", "-P", "-undef", *(f"-D{macro}" for macro in macros), "-x", "c", "-"],
        input=text,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert "cyce_to_float" in preprocessed
    foreign = r"\b(?:__builtin_|__attribute__|__extension__|__typeof|_mm\d*_|pthread_|mmap|clock_gettime)\w*"
    assert not re.findall(foreign, preprocessed)
