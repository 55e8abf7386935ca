"""Bundle the OpenMP runtime of a wheel, with its licence.

    python tools/repair_wheel.py WHEEL FOLDER [ARCHITECTURES]

auditwheel (Linux, where it also writes a list of what is bundled into the wheel, see PEP 770), delocate
(macOS, which asks for the architectures) or delvewheel (Windows) copies the libraries, and this adds the
texts of their licences. Needs the extra `wheel`.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LICENSES = Path(__file__).parents[1] / "licenses"
# By the beginning of the library's name: the SPDX expression, and the texts.
BUNDLED = {
    "libgomp": (
        "GPL-3.0-or-later WITH GCC-exception-3.1",
        ["GPL-3.0-or-later.txt", "GCC-exception-3.1.txt"],
    ),
    "libomp": ("Apache-2.0 WITH LLVM-exception", ["Apache-2.0-WITH-LLVM-exception.txt"]),
    # May be passed on as it is.
    "vcomp140": ("LicenseRef-Microsoft-Visual-C-Runtime", []),
}


def run(*command: object) -> None:
    """Run a Python module's command."""
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)


def bundled_libraries(folder: Path) -> list[Path]:
    """Return the libraries that were copied into an unpacked wheel."""
    places = (folder / "cyce.libs", folder / "cyce" / ".dylibs")
    return [library for place in places if place.exists() for library in sorted(place.iterdir())]


def add_licenses(folder: Path) -> None:
    """Add the licences of what is bundled to an unpacked wheel."""
    (metadata,) = folder.glob("*.dist-info/METADATA")
    lines = metadata.read_text(encoding="utf-8").split("\n")
    libraries = bundled_libraries(folder)
    if not libraries and sys.platform != "win32":
        sys.exit("no runtime of OpenMP is bundled: was it found when the wheel was built?")
    for library in libraries:
        expression, texts = BUNDLED[library.name.partition("-")[0].partition(".")[0]]
        at = next(i for i, line in enumerate(lines) if line.startswith("License-Expression: "))
        lines[at] += f" AND ({expression})"
        for text in texts:
            copy = metadata.parent / "licenses" / "licenses" / text
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(LICENSES / text, copy)
            lines.insert(at + 1, f"License-File: licenses/{text}")
    metadata.write_text("\n".join(lines), encoding="utf-8", newline="\n")


def repair(wheel: Path, folder: Path, architectures: str) -> None:
    """Write the repaired wheel into a folder."""
    with tempfile.TemporaryDirectory() as work:
        repaired, unpacked = Path(work, "repaired"), Path(work, "unpacked")
        if sys.platform == "linux":
            run("auditwheel", "repair", "--wheel-dir", repaired, wheel)
        elif sys.platform == "darwin":
            run(
                *("delocate.cmd.delocate_wheel", "--require-archs", architectures),
                *("--wheel-dir", repaired, wheel),
            )
        else:
            run("delvewheel", "repair", "--wheel-dir", repaired, wheel)
        (wheel,) = repaired.iterdir()
        run("wheel", "unpack", "--dest", unpacked, wheel)
        (tree,) = unpacked.iterdir()
        add_licenses(tree)
        folder.mkdir(parents=True, exist_ok=True)
        run("wheel", "pack", "--dest-dir", folder, tree)


if __name__ == "__main__":
    repair(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
