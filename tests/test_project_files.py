"""What surrounds the code: workflow, templates, and the declared dependencies."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.processes import PATIENCE_S
from tests.screenshots import FOLDER

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()
}
ALL = [
    *REQUIRED,
    # An extra may be another by an earlier name.
    *(
        requirement
        for lines in EXTRAS.values()
        for requirement in lines
        if requirement.name != PROJECT["name"]
    ),
]
PINS = dict(
    line.strip().split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line and not line.startswith("#")
)


def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text(encoding="utf-8"))
    return loaded


class TestWorkflow:
    def test_it_runs_what_every_change_must_pass_and_nothing_else(self):
        steps = workflow()["jobs"]["test"]["steps"]
        assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
        assert (ROOT / ".ci/run").stat().st_mode & 0o111

    def test_it_tests_every_python_from_the_oldest_that_is_allowed(self):
        pythons = workflow()["jobs"]["test"]["strategy"]["matrix"]["python"]
        # As text: 3.10 and 3.1 are one number.
        assert pythons == ["3.11", "3.12", "3.13"]
        assert all(SpecifierSet(PROJECT["requires-python"]).contains(python) for python in pythons)

    def test_it_starts_on_pull_requests_and_can_read_only(self):
        # YAML 1.1 reads the key `on` as true.
        assert "pull_request" in workflow()[True]
        assert workflow()["permissions"] == {"contents": "read"}

    def test_packages_are_cached_by_the_files_that_decide_them(self):
        setup, _ = [step["with"] for step in workflow()["jobs"]["test"]["steps"] if "with" in step]
        assert setup["cache"] == "pip"
        assert setup["cache-dependency-path"].split() == ["pyproject.toml", "constraints.txt"]

    def test_it_keeps_what_the_browser_saw_whatever_became_of_the_tests(self):
        *_, tests, kept = workflow()["jobs"]["test"]["steps"]
        assert kept["uses"].startswith("actions/upload-artifact@")
        assert kept["if"] == "always()"
        assert "run" not in kept
        # Where the tests put them; an artifact's name must be one of its job's own.
        assert tests["env"] == {FOLDER: kept["with"]["path"]}
        assert "matrix.python" in kept["with"]["name"]


class TestTemplates:
    @pytest.mark.parametrize("name", ["bug", "idea"])
    def test_a_form_has_what_the_hosting_asks_for(self, name: str):
        form = yaml.safe_load((GITHUB / f"ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
        assert form["name"]
        assert form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "checkboxes")
        kinds = {part["type"] for part in form["body"]}
        assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}

    @pytest.mark.parametrize(
        "path", ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md"]
    )
    def test_the_page_is_there_and_says_something(self, path: str):
        assert len((ROOT / path).read_text(encoding="utf-8").split()) > 60


class TestRelease:
    def test_version_and_date_are_the_same_wherever_they_stand(self):
        changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", changes, flags=re.M)
        # What is merged next has its place.
        assert headings[0] == "Unreleased"
        cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert headings[1] == f"{cited['version']} ({cited['date-released']})"
        assert cited["version"] == PROJECT["version"]

    def test_classifiers_name_the_pythons_that_are_tested_and_leave_the_licence_to_its_own_key(self):
        named = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), flags=re.M)
        assert named == workflow()["jobs"]["test"]["strategy"]["matrix"]["python"]
        assert not [one for one in PROJECT["classifiers"] if one.startswith("License")]
        assert PROJECT["classifiers"] == sorted(PROJECT["classifiers"])


class TestDependencies:
    def test_the_tested_version_of_everything_is_pinned_within_its_range(self):
        assert {requirement.name for requirement in ALL} <= set(PINS)
        for requirement in ALL:
            assert requirement.specifier.contains(PINS[requirement.name]), requirement

    def test_what_is_installed_here_lies_within_the_ranges(self):
        for requirement in REQUIRED:
            assert requirement.specifier.contains(version(requirement.name)), requirement

    def test_required_packages_have_ranges_and_no_exact_pin(self):
        for requirement in REQUIRED:
            assert not any(specifier.operator in ("==", "===") for specifier in requirement.specifier), (
                requirement
            )

    def test_every_package_is_explained(self):
        page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
        explained = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"^\| ([^|]+) \|", page, flags=re.M))))
        assert {requirement.name for requirement in ALL} <= explained

    def test_the_page_on_installation_has_every_extra_and_the_pinned_torch(self):
        page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
        table = page.split("## Extras")[1].split("\n## ")[0]
        first = " ".join(re.findall(r"^\| ([^|]+) \|", table, flags=re.M))
        assert set(re.findall(r"`(\w+)`", first)) == set(EXTRAS)
        assert set(re.findall(r"torch==([\d.]+)", page)) == {PINS["torch"]}

    @pytest.mark.parametrize("name", ["albumentations", "geomloss", "torchmetrics", "wandb"])
    def test_a_package_that_the_method_is_built_with_is_no_extra(self, name: str):
        assert name in {requirement.name for requirement in REQUIRED}


HEAVY = (
    "albumentations",
    "geomloss",
    "torchmetrics",
    "wandb",
    "torch",
    "transformers",
    "polars",
    "matplotlib",
)
LOADED = f"print('loaded', *[name for name in {HEAVY} if name in sys.modules])"


def loaded(code: str) -> list[str]:
    """Return which of the heavy packages a process has loaded when it has run some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{LOADED}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


class TestImports:
    def test_importing_the_library_loads_nothing_heavy(self):
        assert loaded("import clip3dreid") == []

    def test_asking_for_help_loads_nothing_heavy(self):
        code = """
from clip3dreid.__main__ import main
sys.argv = ["clip3dreid", "train", "--help"]
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
"""
        assert loaded(code) == []

    def test_no_module_loads_albumentations_geomloss_or_wandb_before_they_are_used(self):
        code = """
import importlib, pkgutil, clip3dreid
for module in pkgutil.walk_packages(clip3dreid.__path__, "clip3dreid."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "clip3dreid.training.run" in sys.modules
"""
        assert not {"albumentations", "geomloss", "wandb"} & set(loaded(code))
