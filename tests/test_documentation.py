"""The documentation: what it names exists, and what exists is in it. Doctests run by themselves."""

import importlib
import json
import re
from pathlib import Path

import pytest

import cyce
import cyce.functional

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("[gr]*/*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.rst",
]
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}
REFERENCE = "".join(text for name, text in TEXT.items() if name.startswith("docs/reference/"))
MODULES = [
    "cyce",
    "cyce.functional",
    "cyce.boosting",
    "cyce.sharded",
    "cyce.plotting",
    pytest.param("cyce.dask", marks=pytest.mark.dask),
    pytest.param("cyce.torch", marks=pytest.mark.torch),
]


def listed_names():
    """Return the names that the reference lists, with their modules."""
    names, module = set(), None
    for line in REFERENCE.splitlines():
        if line.startswith("```"):
            module = None
        elif found := re.match(r"\.\. (?:currentmodule|automodule):: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"   (\w[\w.]*)", line):
            names.add(found[1] if module is None else f"{module}.{found[1]}")
    return names


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_lists_the_public_names(module):
    public = set(importlib.import_module(module).__all__)
    records = {"CrossEntropyMeans", "CrossEntropyStats"}
    if module == "cyce":
        # Functions are listed under their module.
        public -= {*cyce.functional.__all__, "functional"} - records
    elif module == "cyce.functional":
        public -= records
    listed = {name.rpartition(".")[2] for name in listed_names() if name.rpartition(".")[0] == module}
    assert listed == public


# A file of the project, and a test in it.
FILE = re.compile(
    r"`((?:cyce|tests|benchmarks|examples|tools|docs|\.ci|\.github|recipe|licenses)/[\w./-]+)(?:::(\w+))?`"
)


@pytest.mark.parametrize("page", TEXT)
def test_files_and_tests_that_are_named_exist(page):
    for name, test in FILE.findall(TEXT[page]):
        if name.startswith("docs/generated"):
            continue
        path = ROOT / name
        assert path.exists(), name
        if test:
            assert re.search(rf"^\s*(def|class) {test}\b", path.read_text("utf-8"), re.M), (name, test)


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", TEXT[page]):
        if target and not re.match(r"[a-z]+:", target) and "generated" not in target:
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", TEXT)
def test_commands_of_benches_exist(page):
    for name in re.findall(r"python -m benchmarks\.(\w+)", TEXT[page]):
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def test_the_stages_that_are_named_exist():
    stages = re.findall(r'^ +stage "?([^"\n]+?)"?$', (ROOT / ".ci" / "run").read_text("utf-8"), re.M)
    stages = [stage.replace("$version", "3.x") for stage in stages]
    for names in re.findall(r"stages? ((?:\"[^\"]+\"(?:, | and )?)+)", TEXT["docs/reliability.md"]):
        for name in re.findall(r"\"([^\"]+)\"", names):
            assert name in stages


def test_the_version_of_the_citation():
    assert f"\nversion: {cyce.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_figures_of_the_readme_are_recorded():
    folder = ROOT / "benchmarks" / "results" / "amd-epyc-25-17"
    loss, gradient, _ = json.loads((folder / "cross_entropy.json").read_text("utf-8"))["tables"]
    columns = [loss["columns"].index(name) for name in ("cyce", "torch", "fastest peer")]
    cells = {row[0]: [row[column] for column in columns] for row in loss["rows"]}
    for row in gradient["rows"]:
        cells[row[0]] += [row[column] for column in columns]
    rows = re.findall(r"^\| ([^|]+ x [^|]+|\([\d, ]+\)) \|(.*)\|$", TEXT["README.md"], re.M)
    assert len(rows) == 5
    for name, text in rows:
        # Ratios to torch stand in parentheses, after its time.
        recorded = [re.sub(r"^\S+ \((.*)\)$", r"\1", cell) for cell in cells[name]]
        assert [cell.strip() for cell in text.split("|")] == recorded
