"""The wheel, installed elsewhere, has everything: conf, console scripts, every entry point."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import write_ltcc
from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder with the unpacked wheel; the packages it needs are those of this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Python of an environment of its own, with the wheel installed and the packages of this one."""
    folder = wheel.parent / "environment"
    venv.create(folder, with_pip=False)
    paths = {
        name: Path(sysconfig.get_path(name, vars={"base": str(folder)})) for name in ("purelib", "scripts")
    }
    # A plain path: what makes the checkout importable in this environment is not followed there.
    (paths["purelib"] / "packages.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    python = paths["scripts"] / "python"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return python


def elsewhere(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in another folder that sees the unpacked wheel before the checkout."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_the_wheel_holds_the_same_configs_as_the_checkout(site: Path) -> None:
    checkout = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    packed = {
        path.relative_to(site / "clip3dreid/conf") for path in (site / "clip3dreid/conf").rglob("*.yaml")
    }
    assert packed == checkout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built of the checkout and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (built,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(built, folder, filter="data")
    return folder / built.name.removesuffix(".tar.gz")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="nothing says here which files are the project's")
def test_the_sdist_has_every_file_of_the_project(unpacked: Path) -> None:
    """Tests, conf, pages and Dockerfile too: whoever packs it for others can test and document what they packed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert len(tracked) > 500
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert tracked - packed == set()
    # And what is there besides is what hatchling writes into it.
    assert {name for name in packed - tracked if not (ROOT / name).exists()} == {"PKG-INFO"}


def test_a_wheel_of_the_sdist_is_the_checkouts(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=unpacked,
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as of_sdist, zipfile.ZipFile(wheel) as of_checkout:
        assert set(of_sdist.namelist()) == set(of_checkout.namelist())


def test_nobody_gets_smplx_unasked(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    wanted = email.message_from_string(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist") or []
    of = {
        line.split(";")[0].strip(): line.partition(";")[2].strip()
        for line in wanted
        if line.startswith("smplx")
    }
    assert list(of.values()) == ["extra == 'smpl'"]
    # And what is installed in a checkout: by its name alone.
    asking = [
        line
        for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
        if "[" in line and "-e '." in line
    ]
    assert [line.split("-e ")[1] for line in asking] == ["'.[dev]'", "'.[smpl]'"]


def test_an_extras_earlier_name_asks_for_the_same(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    read = email.message_from_string(metadata.read_text(encoding="utf-8"))
    wanted = [
        line.split("; extra == ") for line in read.get_all("Requires-Dist") or [] if "; extra == " in line
    ]
    onnx, export = (
        {line for line, extra in wanted if extra.strip("'") == name} for name in ("onnx", "export")
    )
    assert {re.split(r"[^\w-]", line)[0] for line in onnx} == {"onnx", "onnxscript", "onnxruntime"}
    assert export in (onnx, {"clip3dreid[onnx]"})


FIVE_LINES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S
)[0]


def test_the_readmes_first_lines_find_people_where_only_the_wheel_is_installed(
    installed: Path, tmp_path: Path
) -> None:
    for file in (write_ltcc(tmp_path / "world", train=[], test=range(20, 22)) / "query").iterdir():
        (tmp_path / "crops").mkdir(exist_ok=True)
        file.rename(tmp_path / "crops" / file.name)
    shutil.copy(tmp_path / "crops" / "020_1_c1_000001.png", tmp_path / "someone.jpg")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    told = "print(clip3dreid.__file__); print(hits)"
    done = subprocess.run(
        [installed, "-c", f"{FIVE_LINES}{told}"],
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    place, head, _, first, *others = done.stdout.splitlines()
    assert Path(place).is_relative_to(installed.parents[1])
    assert head == "1 query in 8 pictures, by cosine"
    assert first.split()[:2] == ["1.", "1.000"]
    assert first.endswith("020_1_c1_000001.png")
    assert len(others) == 4  # of the ten, the first five are printed
    with Image.open(tmp_path / "found.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert min(sheet.size) > 100
    script = subprocess.run(
        [installed.parent / "clip3dreid", "--version"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert script.stdout.startswith("clip3dreid ")


def test_every_experiment_composes_from_another_folder(site: Path, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from hydra import compose, initialize_config_dir
import clip3dreid
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
assert Path(clip3dreid.__file__).is_relative_to(SITE), clip3dreid.__file__
assert conf_dir().is_relative_to(SITE), conf_dir()
register()
names = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
    for name in names:
        compose("train", [f"+experiment={name}", "data.root=/nowhere"])
print(len(names))
"""
    done = elsewhere(site, tmp_path, "-c", f"SITE = {str(site)!r}\n{code}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12


def test_every_entry_point_answers_help_from_another_folder(site: Path, tmp_path: Path) -> None:
    done = elsewhere(site, tmp_path, "-m", "clip3dreid", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("clip3dreid train: ")
    # All others in one process.
    names = sorted(path.stem for path in (ROOT / "conf").glob("*.yaml"))
    code = f"""
import sys
from pathlib import Path
import clip3dreid
from clip3dreid.__main__ import main
assert Path(clip3dreid.__file__).is_relative_to({str(site)!r}), clip3dreid.__file__
for name in {names}:
    sys.argv = ["clip3dreid", name, "--help"]
    try:
        main()
    except SystemExit as end:
        print("status", name, end.code)
"""
    done = elsewhere(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    for name in names:
        assert f"clip3dreid {name}: " in done.stdout
        assert f"status {name} 0" in done.stdout.splitlines()


def test_the_one_console_script_names_a_function_that_exists() -> None:
    from importlib.metadata import entry_points

    ours = [
        script for script in entry_points(group="console_scripts") if script.name.startswith("clip3dreid")
    ]
    assert [script.name for script in ours] == ["clip3dreid"]
    assert callable(ours[0].load())


def test_the_shipped_teacher_works_from_another_folder_without_a_network(site: Path, tmp_path: Path) -> None:
    code = """
import clip3dreid
from pathlib import Path
from hydra import compose, initialize_config_dir
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.model.teacher import load_teacher
assert Path(clip3dreid.__file__).is_relative_to(SITE), clip3dreid.__file__
register()
with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
    teacher = load_teacher(compose("label", ["data=ltcc"]).model.teacher)
assert teacher.folder.is_relative_to(SITE), teacher.folder
print(*teacher.embed_texts(["a tall person"]).shape, teacher.width)
"""
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"SITE = {str(site)!r}\n{code}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "128", "128"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_where_the_wheel_is_installed(
    installed: Path, notebook: Path, tmp_path: Path
) -> None:
    copied = shutil.copy(notebook, tmp_path)
    code = f"""
import clip3dreid, run_notebooks
from pathlib import Path
assert Path(clip3dreid.__file__).is_relative_to({str(installed.parents[1])!r}), clip3dreid.__file__
run_notebooks.run(Path({str(copied)!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    done = subprocess.run(
        [installed, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
