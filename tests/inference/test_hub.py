"""A model's folder: what is saved comes back, whatever happens meanwhile, from the disk and from the hub."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clip3dreid
from clip3dreid.errors import InputError
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.model.student import Student
from clip3dreid.model.weights import read_card, read_checkpoint, student_from_checkpoint
from tests.inference.models import (
    CARD,
    GROUPS,
    HEADS,
    HEIGHT,
    PLAIN,
    Checkpoint,
)
from tests.processes import PATIENCE_S
from tests.small_disk import fill, small_disk

ROOT = Path(__file__).parents[2]


def assert_same(found: ReidModel, wanted: ReidModel, pictures: list[Path]) -> None:
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert torch.equal(found.embed(pictures), wanted.embed(pictures))
    assert found.describe(pictures) == wanted.describe(pictures)
    assert torch.equal(found.shape(pictures).vertices, wanted.shape(pictures).vertices)


def test_what_is_saved_is_loaded_bit_for_bit(model: ReidModel, pictures: list[Path], tmp_path: Path) -> None:
    assert model.save_pretrained(tmp_path / "deep" / "model") is None
    folder = tmp_path / "deep" / "model"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = load(folder)
    assert_same(again, model, pictures)
    # What a model was loaded from can be written over, and a second copy is the same to the byte.
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    again.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert_same(load(str(folder)), model, pictures)
    assert_same(load(folder / "model.safetensors"), model, pictures)
    assert_same(ReidModel.from_pretrained(folder), model, pictures)


def test_the_config_carries_everything_and_a_written_readme_stays(model: ReidModel, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config == {"library": "clip3dreid", "library_version": clip3dreid.__version__, **CARD}
    assert list(config["vocabulary"]["groups"]) == list(GROUPS)  # the words' flat order
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert {name for name in names if name.startswith("heads.")} == {f"heads.{name}" for name in HEADS}


def test_evaluation_takes_the_saved_weights_by_themselves(
    model: ReidModel, student: Student, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    assert read_card(path) == CARD
    for name, tensor in student_from_checkpoint(path).state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_the_model_card_says_what_is_there(model: ReidModel, checkpoint: Checkpoint) -> None:
    full = model.generate_model_card()
    assert full.data.to_dict()["library_name"] == "clip3dreid"
    assert "person-re-identification" in full.data.to_dict()["tags"]
    assert "Trained on: ltcc. Teacher: body_clip." in full.content
    assert "ResNet, 128 features" in full.content
    assert "model.describe" in full.content
    assert "4 shape coefficients" in full.content
    bare = load(checkpoint(PLAIN, None)).generate_model_card().content
    assert "model.describe" not in bare
    assert "model.shape" not in bare


def test_a_generated_readme_never_describes_another_model(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    assert "model.describe" in (tmp_path / "model" / "README.md").read_text()
    load(checkpoint(PLAIN, None)).save_pretrained(tmp_path / "model")
    assert "model.describe" not in (tmp_path / "model" / "README.md").read_text()


def test_a_run_folder_gives_its_last_checkpoint(
    checkpoint: Checkpoint, student: Student, pictures: list[Path], tmp_path: Path
) -> None:
    checkpoint(name="run/checkpoints/last.ckpt")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"not looked at")
    for place in ("run", "run/checkpoints", "run/checkpoints/last.ckpt"):
        assert load(tmp_path / place).describe(pictures)


def test_places_without_a_model_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no model"):
        load(tmp_path / "empty")
    for wrong in (tmp_path / "a" / "b", "a/b/c", "model", "runs/last.ckpt", Path("user/name"), "user/na me"):
        with pytest.raises(InputError, match="is not there; give a run's folder, a checkpoint"):
            load(wrong)


def test_files_of_others_are_refused(student: Student, model: ReidModel, tmp_path: Path) -> None:
    torch.save(student.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="does not say which student"):
        load(tmp_path / "bare.pth")
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"config\.json is not of this project"):
        load(tmp_path / "model")
    for text in ("{oops", "[]", "[" * 100_000, '{"height": ' + "9" * 5000 + "}", "\udcff"):
        config.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(
            InputError, match=r"config\.json cannot be read as the config of a model"
        ) as error:
            load(tmp_path / "model")
        assert "\n" not in str(error.value)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is not a file"):
        load(tmp_path / "model")


def test_names_that_begin_like_heads_stay_in_the_files_of_others(tmp_path: Path) -> None:
    save_file({"heads.weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    found = read_checkpoint(tmp_path / "theirs.safetensors")
    assert (list(found.state), found.heads) == (["heads.weight"], {})


@pytest.mark.parametrize("step", ["save_weights", "write_text", "write_json"])
def test_a_save_that_fails_leaves_the_model_that_was_there(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    before = contents(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"clip3dreid.inference.hub.{step}", full)
        with pytest.raises(InputError, match=rf"cannot write {folder}: No space left on device"):
            load(checkpoint(PLAIN, None)).save_pretrained(folder)
    assert contents(folder) == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another place"):
        model.save_pretrained(tmp_path / "file")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("leave", range(0, 90_000, 10_000))
def test_a_disk_that_fills_up_for_real_leaves_the_model_that_was_there(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path, leave: int
) -> None:
    other = load(checkpoint(PLAIN, None))
    with small_disk(tmp_path / "disk", 4000) as disk:
        model.save_pretrained(disk / "model")
        before = contents(disk)
        filler = fill(disk, leave=leave)
        with pytest.raises(InputError, match="No space left on device") as error:
            other.save_pretrained(disk / "model")
        assert "\n" not in str(error.value)
        assert ".unfinished" not in str(error.value)
        filler.unlink()
        assert contents(disk) == before
        other.save_pretrained(disk / "model")
        assert load(disk / "model").fingerprint == other.fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_another_programs_model_is_not_written_over(model: ReidModel, tmp_path: Path, name: str) -> None:
    if name == "config.json":
        (tmp_path / name).write_text('{"model_type": "bert"}')
    else:
        save_file({"weight": torch.zeros(2)}, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds a model that is not of this project"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_no_model_is_saved_through_a_link(model: ReidModel, tmp_path: Path, name: str) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / "precious")
    (tmp_path / "model" / name).symlink_to(tmp_path / "precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"model/{name} is a link"):
        model.save_pretrained(tmp_path / "model")
    assert contents(tmp_path) == before
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    model.save_pretrained(tmp_path / "linked")
    assert load(tmp_path / "disk").fingerprint == model.fingerprint


SAVE = """
import sys, clip3dreid
model = clip3dreid.load(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    model.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_processes_that_save_at_once_wait_for_one_another_and_leave_one_model(
    model: ReidModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    others = [model, load(checkpoint(PLAIN, None))]
    runs = []
    for number, other in enumerate(others):
        other.save_pretrained(tmp_path / str(number))
        command = [sys.executable, "-c", SAVE, str(tmp_path / str(number)), str(tmp_path / "both")]
        runs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    assert [run.wait(PATIENCE_S) for run in runs] == [0, 0]
    found = load(tmp_path / "both").fingerprint
    assert found in {other.fingerprint for other in others}
    source = [other.fingerprint for other in others].index(found)
    assert contents(tmp_path / "both") == contents(tmp_path / str(source))


class Hub:
    """Stands for the Hugging Face hub: a folder for each model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[dict[str, Any]] = []
        self.pushed: dict[str, Any] = {}

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.asked.append({"repo_id": repo_id, "filename": filename, **options})
        path = self.root / repo_id / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find it\nin the cache")
        return str(path)

    def create(self, _: Any, repo_id: str, **__: Any) -> huggingface_hub.RepoUrl:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, _: Any, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        ignored = shutil.ignore_patterns(*options["ignore_patterns"])
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignored)
        self.pushed = options
        return "https://huggingface.co/commit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.download)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *a, **k: found.create(*a, **k))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda *a, **k: found.upload(*a, **k))
    return found


def test_a_model_goes_to_the_hub_and_comes_back(model: ReidModel, pictures: list[Path], hub: Hub) -> None:
    assert model.push_to_hub("user/name", private=True) == "https://huggingface.co/commit"
    names = sorted(path.name for path in (hub.root / "user" / "name").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert_same(load("user/name"), model, pictures)
    options = {
        "revision": "v1",
        "cache_dir": "/cache",
        "local_files_only": True,
        "force_download": False,
        "token": None,
    }
    hub.asked.clear()
    load("user/name", revision="v1", cache_dir="/cache", local_files_only=True)
    assert hub.asked == [
        {"repo_id": "user/name", "filename": name, **options} for name in ("config.json", "model.safetensors")
    ]
    assert_same(ReidModel.from_pretrained("user/name", revision="v1"), model, pictures)


def test_what_the_hub_does_not_have_is_one_line(hub: Hub) -> None:
    with pytest.raises(InputError, match="user/name is not there, and cannot be had") as error:
        load("user/name")
    assert "Cannot find it in the cache" in str(error.value)
    with pytest.raises(InputError, match="cannot be had"):
        load("user/na..me")


def test_a_hostile_model_of_the_hub_is_refused(
    model: ReidModel, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(hub.root / "user" / "evil")
    path = hub.root / "user" / "evil" / "config.json"
    config = json.loads(path.read_text())
    config["student"]["backbone"] = {"_target_": "os.mkdir", "path": "ran"}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"student\.backbone wants to build os\.mkdir"):
        load("user/evil")
    assert not (tmp_path / "ran").exists()


def test_a_local_folder_comes_before_the_hub(
    model: ReidModel, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("user/name")
    assert torch.equal(load("user/name").embed(pictures), model.embed(pictures))
    assert hub.asked == []


def test_a_model_in_half_precision_is_saved_and_comes_back(
    model: ReidModel, pictures: list[Path], tmp_path: Path
) -> None:
    model.half().save_pretrained(tmp_path / "half")
    again = load(tmp_path / "half")
    assert {parameter.dtype for parameter in again.student.parameters()} == {torch.float32}
    assert F.cosine_similarity(again.embed(pictures), model.embed(pictures)).min() > 0.999


def test_a_config_that_is_not_that_of_the_weights_is_refused(model: ReidModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    config = folder / "config.json"
    whole = config.read_text()
    for old, new in ((f'"height": {HEIGHT}', '"height": 48'), ("tall", "tell"), ("0.485", "0.486")):
        assert old in whole
        config.write_text(whole.replace(old, new, 1))
        with pytest.raises(InputError, match=r"config\.json is damaged .*model\.safetensors says otherwise"):
            load(folder)
    # Which version of the program wrote it changes no result.
    config.write_text(re.sub(r'"library_version": "[^"]*"', '"library_version": "9"', whole))
    assert load(folder).fingerprint == model.fingerprint
