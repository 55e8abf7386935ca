"""The recipe, the workflows and the script of releases."""

import datetime
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cyce

CHECKOUT = Path(__file__).parents[1]
TODAY = datetime.date(2026, 1, 31)

pytestmark = pytest.mark.integration


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("release", CHECKOUT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command):
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@pytest.fixture
def copy(tmp_path, release):
    """Return a repository of its own that is ready for a release."""
    folder = tmp_path / "copy"
    run("git", "clone", "--quiet", "--no-hardlinks", CHECKOUT, folder)
    changelog = folder / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    heading = f"## {cyce.__version__} ({TODAY})"
    changelog.write_text(re.sub(r"^## .*$", heading, text, count=1, flags=re.MULTILINE), encoding="utf-8")
    run("git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "Release")
    return folder


class TestScript:
    def test_nothing_stands_in_the_way(self, release, copy):
        assert list(release.complaints(copy, TODAY)) == []

    def test_versions_that_differ(self, release, copy):
        init = copy / "cyce" / "__init__.py"
        init.write_text('__version__ = "9.9.9"\n', encoding="utf-8")
        changelog, recipe, uncommitted = release.complaints(copy, TODAY)
        assert changelog.startswith("CHANGELOG.md: its first section is")
        assert recipe == f"recipe/recipe.yaml: its version is {cyce.__version__!r}, not '9.9.9'"
        assert "cyce/__init__.py" in uncommitted

    def test_a_date_that_has_passed(self, release, copy):
        (complaint,) = release.complaints(copy, TODAY + datetime.timedelta(1))
        assert complaint.endswith(f"not '{cyce.__version__} (2026-02-01)'")

    def test_versions_that_are_none(self, release, copy):
        (copy / "cyce" / "__init__.py").write_text('__version__ = "1.0.dev0"\n', encoding="utf-8")
        assert next(release.complaints(copy, TODAY)).endswith("which is no version to release")

    def test_a_tag_that_exists(self, release, copy):
        run("git", "-C", copy, "tag", f"v{cyce.__version__}")
        assert list(release.complaints(copy, TODAY)) == [f"there is a tag v{cyce.__version__} already"]


class TestRecipe:
    def rendered(self, platform):
        from rattler_build import PlatformConfig, RenderConfig, Stage0Recipe, VariantConfig

        recipe = Stage0Recipe.from_file(str(CHECKOUT / "recipe" / "recipe.yaml"))
        versions = ["3.11.* *_cpython", "3.13.* *_cp313"]
        variants = VariantConfig({"python": versions, "c_compiler": ["gcc"], "c_stdlib": ["sysroot"]})
        config = RenderConfig(platform=PlatformConfig(target_platform=platform, build_platform="linux-64"))
        return [variant.recipe.to_dict() for variant in recipe.render(variants, config)]

    @pytest.mark.parametrize("platform", ["linux-64", "linux-aarch64", "osx-arm64", "win-64"])
    def test_it_is_one_for_each_python(self, platform):
        recipes = self.rendered(platform)
        assert len(recipes) == 2
        for recipe in recipes:
            assert recipe["package"] == {"name": "cyce", "version": cyce.__version__}

    def test_it_requires_what_the_package_requires(self):
        with (CHECKOUT / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)
        text = (CHECKOUT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
        for requirement in project["build-system"]["requires"] + project["project"]["dependencies"]:
            assert f"- {requirement.replace('>=', ' >=')}\n" in text
        for requirement in project["tool"]["cibuildwheel"]["test-requires"]:
            assert f"- {requirement.replace('>=', ' >=')}\n" in text


class TestWorkflows:
    def run(self, *command):
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=CHECKOUT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def test_their_schema(self):
        files = sorted(map(str, (CHECKOUT / ".github" / "workflows").glob("*.yml")))
        assert len(files) == 2
        self.run("check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files)

    def test_their_security(self):
        program = shutil.which("zizmor", path=Path(sys.executable).parent)
        assert program is not None
        found = subprocess.run(
            [program, "--offline", "--no-progress", "--format=json", CHECKOUT / ".github" / "workflows"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        assert json.loads(found) == []

    def test_the_schema_of_the_wheels(self):
        import cibuildwheel
        import jsonschema

        schema = Path(cibuildwheel.__file__).parent / "resources" / "cibuildwheel.schema.json"
        with (CHECKOUT / "pyproject.toml").open("rb") as file:
            configuration = tomllib.load(file)["tool"]["cibuildwheel"]
        jsonschema.validate(configuration, json.loads(schema.read_text(encoding="utf-8")))

    @pytest.mark.parametrize(
        ("platform", "kinds"),
        [
            ("linux", ["manylinux_x86_64", "manylinux_aarch64", "musllinux_x86_64", "musllinux_aarch64"]),
            ("macos", ["macosx_x86_64", "macosx_arm64"]),
            ("windows", ["win_amd64"]),
        ],
    )
    def test_which_wheels_are_built(self, platform, kinds):
        architectures = {"linux": "x86_64,aarch64", "macos": "x86_64,arm64", "windows": "AMD64"}[platform]
        options = ("--print-build-identifiers", "--platform", platform, "--archs", architectures)
        printed = self.run("cibuildwheel", *options, ".").split()
        pythons = ["cp311", "cp312", "cp313", "cp314", "cp314t"]
        assert sorted(printed) == sorted(f"{python}-{kind}" for python in pythons for kind in kinds)
