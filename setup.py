"""Build of the compiled modules: the kernels once per instruction-set level.

Static metadata is in pyproject.toml. This file decides what depends on the compiler: whether it supports
OpenMP, and which levels it can compile for.
"""

import atexit
import errno
import functools
import gzip
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import BaseError, CCompilerError, CompileError

# CYCE_DEBUG=1: Cython's checks and the kernels' own (`check` in cyce/kernels/machine.pxd), for the tests.
DEBUG = os.environ.get("CYCE_DEBUG", "0") == "1"


def build_folder() -> tuple[Path, bool]:
    """Return where to build, and whether that is in the checkout, which may be read-only."""
    # Relative to the folder of this file, in which setuptools runs it.
    folder = Path("build")
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir="."):
            return folder, True
    except OSError:
        elsewhere = tempfile.mkdtemp(prefix="cyce-build-")
        atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
        return Path(elsewhere), False


BUILD_BASE, IN_CHECKOUT = build_folder()
BUILD = BUILD_BASE / ("debug" if DEBUG else "release")
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

KERNELS = Path("cyce", "kernels")
# Entry points that are compiled once per level, and modules that are compiled once.
LEVEL_SOURCES = ("cross_entropy", "elementwise")
GENERAL_MODULES = (
    "cyce.kernels._cpu",
    "cyce.kernels.arguments",
    "cyce.memory.pool",
    "cyce.threads.handover",
    "cyce.threads.team",
)


def target_machine() -> str:
    """Return the architecture that is compiled for, which is not this machine's where one cross-compiles.

    Python for both of macOS's would compile for both at once: half of it for nothing, and no level would do.
    """
    machine = sysconfig.get_platform().rpartition("-")[2]
    if machine == "universal2":
        machine = platform.machine()
        os.environ.setdefault("ARCHFLAGS", f"-arch {machine}")
    return machine.lower()


# What the compiler may use at each level; cyce/kernels/_cpu.pyx asks the CPU for the same features.
LEVELS: dict[str, list[str]] = {"baseline": []}
if target_machine() in {"x86_64", "amd64"}:
    LEVELS["x86_64_v3"] = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mpopcnt"]
    LEVELS["x86_64_v4"] = [
        *LEVELS["x86_64_v3"],
        *("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"),
        # Compilers stay at 256 bits otherwise.
        "-mprefer-vector-width=512",
    ]

# Neither -ffast-math nor any part of it that changes a value. At linking, GCC would make the whole process
# flush subnormals to zero. -ffp-contract=off: see cyce/kernels/math.pxd.
OPTIMISATION = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

# The rooms are inline functions, and GCC stops inlining where a caller has grown much. A formula that is
# called from its loop keeps that from becoming vectors: a softcap then takes 2.8 times as long.
OPTIMISATION += [
    f"--param={limit}"
    for limit in ("inline-unit-growth=400", "large-function-growth=3000", "large-stack-frame-growth=10000")
]

# Export PyInit_* only. Python's own flags ask for debug information.
GENERAL = ["-fvisibility=hidden", *(["-UNDEBUG"] if DEBUG else ["-DNDEBUG", "-g0"])]
# Each linker supports one of these. Without symbols and debug information, modules have a fifth of the size.
STRIP: list[str] = [] if DEBUG else ["-Wl,--strip-all", "-Wl,-x"]

# Modules without OpenMP can be imported before any of its runtimes.
WITHOUT_OPENMP = {"cyce.kernels._cpu", "cyce.kernels.arguments", "cyce.memory.pool", "cyce.threads.handover"}

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

# How systems refuse a program of another machine: ENOEXEC, and macOS's EBADARCH.
OTHER_MACHINE = {errno.ENOEXEC, *([86] if sys.platform == "darwin" else [])}

EMPTY_PROGRAM = "int main(void) { return 0; }"
PYTHON_PROGRAM = "#include <Python.h>\nint main(void) { return 0; }"

NO_COMPILER = (
    "cyce needs a C compiler, and {compiler} cannot be run. Install one: on Debian or Ubuntu, "
    "`apt-get install gcc libc6-dev python3-dev`; on Fedora, `dnf install gcc python3-devel`; on macOS, "
    "`xcode-select --install`; on Windows, the Build Tools for Visual Studio with C++."
)
COMPILER_FAILS = (
    "cyce needs a C compiler, and {compiler} does not compile an empty program; its message stands above. "
    "CC and CFLAGS are {variables}."
)
NO_HEADERS = (
    "cyce needs the headers of Python, and {compiler} does not find Python.h in {folder}. Install them: on "
    "Debian or Ubuntu, `apt-get install python3-dev`; on Fedora, `dnf install python3-devel`."
)


def kernel_sources() -> dict[str, Path]:
    """Copy the sources of the kernels once per level; returns the copies by the names of their modules.

    Cython crashes on several extensions of one file, and their object files would overwrite one another.
    """
    COPIES.mkdir(parents=True, exist_ok=True)
    copies = {}
    for level in LEVELS:
        for name in LEVEL_SOURCES:
            original = KERNELS / f"{name}.pyx"
            copy = COPIES / f"_{name}_{level}.pyx"
            if not copy.exists() or copy.read_bytes() != original.read_bytes():
                shutil.copyfile(original, copy)
            copies[f"cyce.kernels.{copy.stem}"] = copy
    return copies


def extensions() -> list[Extension]:
    """List the extension modules, before the compiler is known."""
    general = [Extension(name, [f"{name.replace('.', '/')}.pyx"]) for name in GENERAL_MODULES]
    kernels = [Extension(name, [str(source)]) for name, source in kernel_sources().items()]
    modules: list[Extension] = cythonize(
        [*general, *kernels], build_dir=str(BUILD), compiler_directives=DIRECTIVES
    )
    return modules


class BuildLevels(build_ext):  # type: ignore[misc]
    """Compile every level that the compiler supports, with OpenMP if it works."""

    def finalize_options(self) -> None:
        """Compile several modules at once unless a number is given: the kernels take half a minute each."""
        super().finalize_options()
        self.parallel: bool | int = self.parallel or True

    def run(self) -> None:
        """Build, and put the modules into the checkout as well.

        `python -m cyce` and `python -m pytest` import from the folder in which they are run, where they would
        not find the modules that were just installed.
        """
        super().run()
        if self.inplace or not IN_CHECKOUT:
            return
        try:
            self.copy_extensions_to_source()
        except (BaseError, OSError) as error:
            print(f"cyce: the checkout stays without compiled modules: {error}", file=sys.stderr)

    def build_extensions(self) -> None:
        """Add the flags that this compiler supports."""
        self._check_compiler()
        left_out = {}
        openmp = self._openmp_flags()
        if openmp is None:
            is_unwanted = os.environ.get("CYCE_OPENMP", "1") == "0"
            left_out["openmp"] = "CYCE_OPENMP=0" if is_unwanted else "this compiler has none"
        common = [flag for flag in (*OPTIMISATION, *GENERAL) if self._takes([flag])]
        # Microsoft's linker ignores what it does not know.
        choices = STRIP if self.compiler.compiler_type != "msvc" else []
        strip = [flag for flag in choices if self._compiles(EMPTY_PROGRAM, (), [flag])][:1]
        for level, flags in LEVELS.items():
            unknown = [flag for flag in flags if not self._takes([flag])]
            if unknown:
                left_out[level] = f"{self._compiler()} does not take {' '.join(unknown)}"
        for name, reason in left_out.items():
            print(f"cyce: built without {name}: {reason}", file=sys.stderr)
        header = self._write("cyce_build.h", header_of(left_out))
        for extension in list(self.extensions):
            # Modules that are compiled once, for every CPU, have the flags of the baseline.
            level = next((level for level in LEVELS if extension.name.endswith(f"_{level}")), "baseline")
            if level in left_out:
                self.extensions.remove(extension)
                continue
            own = ([], []) if extension.name in WITHOUT_OPENMP or openmp is None else openmp
            extension.extra_compile_args = [*common, *LEVELS[level], *own[0]]
            extension.extra_link_args = [*own[1], *strip]
            extension.include_dirs.append(str(header.parent))
            record = repr((extension.extra_compile_args, extension.extra_link_args))
            extension.depends.append(str(self._write(f"{extension.name}.flags", record)))
            if extension.name == "cyce.kernels._cpu":
                extension.depends.append(str(header))
        super().build_extensions()

    def _compiler(self) -> str:
        """Return the name of the compiler."""
        command = getattr(self.compiler, "compiler", None) or ["the compiler"]
        return Path(command[0]).name

    def _check_compiler(self) -> None:
        """Fail with one clear sentence if nothing can be compiled; a level must never be the reason."""
        if not self._compiles(EMPTY_PROGRAM):
            command = getattr(self.compiler, "compiler", None)
            if command and shutil.which(command[0]) is None:
                raise CompileError(NO_COMPILER.format(compiler=command[0]))
            variables = " and ".join(repr(os.environ.get(name, "")) for name in ("CC", "CFLAGS"))
            raise CompileError(COMPILER_FAILS.format(compiler=self._compiler(), variables=variables))
        if not self._compiles(PYTHON_PROGRAM):
            folder = sysconfig.get_path("include")
            raise CompileError(NO_HEADERS.format(compiler=self._compiler(), folder=folder))

    def _write(self, name: str, text: str) -> Path:
        """Write a file unless it is the same: modules that are older than the file are compiled again."""
        path = BUILD / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        return path

    def _compiles(
        self, program: str, flags: Sequence[str] = (), link_flags: Sequence[str] | None = None
    ) -> bool:
        """Return whether a program compiles and, unless link_flags is None, links and runs.

        What is compiled for another machine need not run.
        """
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program, encoding="utf-8")
            try:
                objects = self.compiler.compile(
                    [str(source)], folder, include_dirs=self.include_dirs, extra_postargs=[*flags]
                )
                if link_flags is not None:
                    self.compiler.link_executable(objects, "probe", folder, extra_postargs=[*link_flags])
                    name = self.compiler.executable_filename("probe")
                    subprocess.run([Path(folder, name)], check=True, stdout=subprocess.DEVNULL, timeout=60)
            # setuptools' error where there is no Microsoft compiler is a DistutilsError.
            except (BaseError, CCompilerError, OSError, subprocess.SubprocessError) as error:
                return link_flags is not None and getattr(error, "errno", None) in OTHER_MACHINE
        return True

    @functools.cached_property
    def _strictly(self) -> list[str]:
        """Flags that turn warnings into errors: a compiler may only warn of an unknown flag.

        Empty if it warns anyway, because of CFLAGS.
        """
        flag = "/options:strict" if self.compiler.compiler_type == "msvc" else "-Werror"
        return [flag] if self._compiles(EMPTY_PROGRAM, [flag]) else []

    def _takes(self, flags: list[str]) -> bool:
        """Return whether the compiler supports these flags."""
        return self._compiles(EMPTY_PROGRAM, [*self._strictly, *flags])

    def _openmp_flags(self) -> tuple[list[str], list[str]] | None:
        """Return the first flags, to compile and to link, under which an OpenMP program runs, or None."""
        if os.environ.get("CYCE_OPENMP", "1") == "0":
            return None
        choices = openmp_choices(self.compiler.compiler_type, sys.platform)
        return next((flags for flags in choices if self._compiles(OPENMP_PROGRAM, *flags)), None)


def openmp_choices(compiler_type: str, system: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield flags that may switch OpenMP on, to compile and to link."""
    if compiler_type == "msvc":
        yield ["/openmp"], []
        return
    yield ["-fopenmp"], ["-fopenmp"]
    if system == "darwin":
        # Apple's clang knows the pragmas, and has no runtime: conda's, or Homebrew's.
        for prefix in (sys.prefix, "/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            yield (
                ["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"],
                [f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib", "-lomp"],
            )


def header_of(left_out: dict[str, str]) -> str:
    """Return the header that tells `cyce.kernels._cpu` what the build left out, and why."""
    text = "\n".join(f"{name}\t{reason}" for name, reason in left_out.items())
    escaped = "".join(f"\\{byte:03o}" for byte in text.encode())
    return f'#define CYCE_LEFT_OUT "{escaped}"\n'


class ReproducibleSdist(sdist):  # type: ignore[misc]
    """Packs the same files into the same bytes, whenever and wherever it runs."""

    def make_archive(self, base_name: str, format: str, **named: str | None) -> str:
        """Pack a folder, with its files in order, without times and owners."""
        if format != "gztar":
            return str(super().make_archive(base_name, format, **named))
        folder = Path(named["base_dir"] or ".")
        # 1980-01-01, the earliest time of zip archives.
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


# What setuptools would write beside the sources.
ELSEWHERE = {"build": {"build_base": str(BUILD_BASE)}, "egg_info": {"egg_base": str(BUILD_BASE)}}

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLevels, "sdist": ReproducibleSdist},
    options={} if IN_CHECKOUT else ELSEWHERE,
)
