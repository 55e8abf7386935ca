"""Build of the compiled modules: every kernel source, once per instruction-set level.

Everything that is static stands in pyproject.toml. Here is what depends on the compiler: whether it
knows OpenMP, and which levels it can compile for.
"""

import gzip
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError

# CYCE_DEBUG=1: Cython's checks and the kernels' own (`check` in cyce/_arrays.pxd), for the tests.
DEBUG = os.environ.get("CYCE_DEBUG", "0") == "1"

# Relative to the folder of this file, where setuptools runs it.
BUILD = Path("build", "debug" if DEBUG else "release")
COPIES = BUILD / "levels"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "freethreading_compatible": True,
}

# What the compiler may use at each level; cyce/_cpu.pyx asks the CPU for the same features.
LEVELS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in {"x86_64", "amd64"}:
    LEVELS["x86_64_v3"] = ["-mavx2", "-mfma", "-mbmi", "-mbmi2"]
    LEVELS["x86_64_v4"] = [
        *LEVELS["x86_64_v3"],
        *("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"),
        # Compilers stay at 256 bits otherwise.
        "-mprefer-vector-width=512",
    ]

# Not -ffast-math or any part of it that changes a value, nor at linking: GCC would then have the
# whole process flush subnormals to zero. -ffp-contract=off: see cyce/_math.pxd.
OPTIMISATION = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

# No names but PyInit_* are for others.
GENERAL = ["-fvisibility=hidden", "-UNDEBUG" if DEBUG else "-DNDEBUG"]

OPENMP_PROGRAM = """
#include <omp.h>
#include <stdio.h>
int main(void)
{
    int n_threads = 0;
    #pragma omp parallel reduction(+:n_threads)
    n_threads += 1;
    printf("%d", n_threads);
    return omp_get_max_threads() < 1;
}
"""


def kernel_sources() -> dict[str, Path]:
    """Copy the kernel sources once per level; returns the copies by the names of their modules.

    Cython crashes on several extensions that name one file, and their object files would overwrite
    one another.
    """
    COPIES.mkdir(parents=True, exist_ok=True)
    copies = {}
    for level in LEVELS:
        for original in (Path("cyce", "_kernels.pyx"), Path("cyce", "_elementwise.pyx")):
            copy = COPIES / f"{original.stem}_{level}.pyx"
            if not copy.exists() or copy.read_bytes() != original.read_bytes():
                shutil.copyfile(original, copy)
            copies[f"cyce.{copy.stem}"] = copy
    return copies


def extensions() -> list[Extension]:
    """List the extension modules, before the compiler is known."""
    general = [Extension(f"cyce.{name}", [f"cyce/{name}.pyx"]) for name in ("_cpu", "_team")]
    kernels = [Extension(name, [str(source)]) for name, source in kernel_sources().items()]
    modules: list[Extension] = cythonize(
        [*general, *kernels], build_dir=str(BUILD), compiler_directives=DIRECTIVES
    )
    return modules


class BuildLevels(build_ext):  # type: ignore[misc]
    """Compile every level that the compiler knows, with OpenMP where it works."""

    def finalize_options(self) -> None:
        """Compile several modules at once, unless told how many: the kernels take half a minute each."""
        super().finalize_options()
        self.parallel: bool | int = self.parallel or True

    def run(self) -> None:
        """Build, and put the modules into the checkout as well.

        `python -m cyce` and `python -m pytest` import from the folder they are run in, so that what
        was just installed would not be found from there.
        """
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()

    def build_extensions(self) -> None:
        """Add the flags that this compiler takes."""
        openmp = self._openmp_flags()
        if openmp is None:
            print("cyce: no OpenMP with this compiler, the kernels will be serial", file=sys.stderr)
        common = [flag for flag in (*OPTIMISATION, *GENERAL) if self._compiles([flag])]
        for extension in list(self.extensions):
            # What is compiled once, for every CPU, is as the baseline.
            level = next((level for level in LEVELS if extension.name.endswith(f"_{level}")), "baseline")
            if not self._compiles(LEVELS[level]):
                print(f"cyce: this compiler has no {level}, left out", file=sys.stderr)
                self.extensions.remove(extension)
                continue
            extension.extra_compile_args = [*common, *LEVELS[level], *(openmp or [])]
            extension.extra_link_args = openmp or []
            extension.depends.append(self._record(level, extension.extra_compile_args))
        super().build_extensions()

    def _record(self, level: str, flags: list[str]) -> str:
        """Write the flags to a file that is as new as they are: other flags, another compilation."""
        record = BUILD.parent / f"{level}.flags"
        if not record.exists() or record.read_text() != repr(flags):
            record.write_text(repr(flags))
        return str(record)

    def _compiles(
        self, flags: list[str], program: str = "int main(void) { return 0; }", run: bool = False
    ) -> bool:
        """Tell whether a program compiles, links and, if asked to, runs with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            # A compiler may only warn of a flag that it does not know.
            strict = [] if self.compiler.compiler_type == "msvc" else ["-Werror"]
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=[*strict, *flags])
                if run:
                    self.compiler.link_executable(objects, "probe", folder, extra_postargs=flags)
                    name = self.compiler.executable_filename("probe")
                    subprocess.run([Path(folder, name)], check=True, stdout=subprocess.DEVNULL, timeout=60)
            except (CompileError, LinkError, OSError, subprocess.SubprocessError):
                return False
        return True

    def _openmp_flags(self) -> list[str] | None:
        """Return flags under which an OpenMP program compiles and runs, or None."""
        if os.environ.get("CYCE_OPENMP", "1") == "0":
            return None
        candidates = ["/openmp"] if self.compiler.compiler_type == "msvc" else ["-fopenmp"]
        for flag in candidates:
            if self._compiles([flag], OPENMP_PROGRAM, run=True):
                return [flag]
        return None


class ReproducibleSdist(sdist):  # type: ignore[misc]
    """Pack the same files into the same bytes, whenever, wherever and by whomever it is done."""

    def make_archive(self, base_name: str, format: str, **named: str | None) -> str:
        """Pack a folder, its files in order, without their times and owners."""
        if format != "gztar":
            return str(super().make_archive(base_name, format, **named))
        folder = Path(named["base_dir"] or ".")
        # As of zip archives, time begins in 1980.
        time = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))

        def without_circumstances(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime = time
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        archive = Path(f"{base_name}.tar.gz")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with (
            archive.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=time) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in sorted(folder.rglob("*")):
                tar.add(path, recursive=False, filter=without_circumstances)
        return str(archive)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLevels, "sdist": ReproducibleSdist})
