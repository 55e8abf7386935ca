"""Make a release of the version that the package names.

    python tools/release.py          # look whether it can be made
    python tools/release.py --tag    # and tag it; pushing the tag builds the wheels and uploads them

The version, the changelog and the recipe must agree, everything must be committed, and the tag must be new.
Builds the source archive and the wheel by `.ci/wheel`, which also checks and tests them.
"""

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def git(checkout: Path, *arguments: str) -> str:
    """Return what git prints."""
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def found(pattern: str, path: Path) -> str:
    """Return the first group of the first match in a file, or nothing."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""


def version_of(checkout: Path) -> str:
    """Return the version that the package names."""
    return found(r'^__version__ = "(.*)"$', checkout / "cyce" / "__init__.py")


def complaints(checkout: Path, today: datetime.date) -> Iterator[str]:
    """Yield what stands in the way of a release."""
    version = version_of(checkout)
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"cyce/__init__.py: __version__ is {version!r}, which is no version to release"
    in_changelog = found(r"^## (.*)$", checkout / "CHANGELOG.md")
    if in_changelog != f"{version} ({today.isoformat()})":
        yield f"CHANGELOG.md: its first section is {in_changelog!r}, not '{version} ({today.isoformat()})'"
    in_recipe = found(r"^ *version: ([^$].*)$", checkout / "recipe" / "recipe.yaml")
    if in_recipe != version:
        yield f"recipe/recipe.yaml: its version is {in_recipe!r}, not {version!r}"
    if changes := git(checkout, "status", "--porcelain"):
        yield f"not everything is committed:\n{changes}"
    if git(checkout, "tag", "--list", f"v{version}"):
        yield f"there is a tag v{version} already"


def main(arguments: list[str] | None = None) -> None:
    """Check, build, and tag if that is asked for."""
    parser = argparse.ArgumentParser(description="Make a release of the version that the package names.")
    parser.add_argument("--tag", action="store_true", help="tag it if nothing stands in the way")
    wants_tag = parser.parse_args(arguments).tag
    checkout = Path(__file__).parents[1]
    if found_complaints := list(complaints(checkout, datetime.datetime.now(datetime.UTC).date())):
        sys.exit("\n".join(found_complaints))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(checkout / ".ci" / "wheel"), folder], check=True)
    version = version_of(checkout)
    if wants_tag:
        git(checkout, "tag", "--annotate", f"v{version}", "--message", f"cyce {version}")
        print(f"tagged v{version}; git push origin v{version} releases it")
    else:
        print(f"{version} can be released; again with --tag")


if __name__ == "__main__":
    main()
