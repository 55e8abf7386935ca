"""Check what a wheel contains before it is uploaded.

    python tools/check_wheel.py WHEEL

Of Linux's wheels: that they are small and stripped, export nothing but init functions, and bundle a
runtime of OpenMP with its licence and a list of what is bundled. Needs the extra `wheel`.
"""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from repair_wheel import BUNDLED

MOST_BYTES = 2_450_000
MOST_BYTES_OF_A_MODULE = 1_200_000


def complaints_of_module(name: str, content: bytes, is_ours: bool) -> Iterator[str]:
    """Yield what is wrong with a shared object; is_ours: a module of cyce, not a bundled library."""
    elf = ELFFile(io.BytesIO(content))
    sections = {section.name for section in elf.iter_sections()}
    if unwanted := sorted(section for section in sections if section.startswith(".debug")):
        yield f"{name}: has debug information: {', '.join(unwanted)}"
    if not is_ours:
        return
    if ".symtab" in sections:
        yield f"{name}: is not stripped"
    if len(content) > MOST_BYTES_OF_A_MODULE:
        yield f"{name}: has {len(content)} bytes"
    exported = [
        symbol.name
        for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
        if symbol["st_info"]["bind"] != "STB_LOCAL"
        and symbol["st_shndx"] != "SHN_UNDEF"
        # Of musl's.
        and symbol.name not in ("_init", "_fini")
    ]
    if len(exported) != 1 or not exported[0].startswith("PyInit_"):
        yield f"{name}: exports {', '.join(exported)}"


def complaints(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with a wheel."""
    if "-linux_" in wheel.name:
        yield f"{wheel.name}: is not repaired"
    if wheel.stat().st_size > MOST_BYTES:
        yield f"{wheel.name}: has {wheel.stat().st_size} bytes, of {MOST_BYTES} that are allowed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.startswith("cyce.libs/") and ".so" in name]
        modules = [name for name in names if name.startswith("cyce/") and name.endswith(".so")]
        if not modules:
            yield "there are no compiled modules"
        for name in (*modules, *libraries):
            yield from complaints_of_module(name, archive.read(name), name in modules)
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        folder = metadata.rpartition("/")[0]
        licenses = archive.read(metadata).decode().partition("\n\n")[0]
        boms = [json.loads(archive.read(name)) for name in names if name.startswith(f"{folder}/sboms/")]
        listed = {component["name"] for bom in boms for component in bom["components"]}
        if not any(name.startswith("cyce.libs/libgomp") for name in libraries):
            yield "no runtime of OpenMP is bundled"
        for name in libraries:
            library = name.rpartition("/")[2].partition("-")[0]
            expression, texts = BUNDLED[library]
            if expression not in licenses:
                yield f"{name}: {expression} is not among the licences"
            for text in texts:
                if f"{folder}/licenses/licenses/{text}" not in names:
                    yield f"{name}: {text} is missing"
            if not any(component.startswith(library) for component in listed):
                yield f"{name}: is not listed in {folder}/sboms/, only {', '.join(sorted(listed))}"
        for text in ("LICENSE", "cyce/data/README.md"):
            if f"{folder}/licenses/{text}" not in names:
                yield f"the licence {text} is missing"


if __name__ == "__main__":
    found = list(complaints(Path(sys.argv[1])))
    print("\n".join(found) or f"{sys.argv[1]}: good")
    sys.exit(bool(found))
