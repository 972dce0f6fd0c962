import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.checklist import (
    Item,
    check_files,
    checklist,
    commands,
    own_command,
    to_get,
    weights_state,
)
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.data.bodies import COMMAND, COMMAND_MB
from clip3dreid.errors import InputError
from tests.conftest import Command, student_config
from tests.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CLIP3DREID_WEIGHTS", "CLIP3DREID_BODIES"):
        monkeypatch.delenv(name, raising=False)


def recipe(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", [*overrides])


def items(*overrides: str) -> dict[str, Item]:
    return {item.key: item for item in checklist(recipe(*overrides))}


CLIP = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")


def fill(folder: Path, names: tuple[str, ...] = CLIP) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * 1000)


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("ce", {"model.pretrained", "data.root"}),
        ("cal", {"model.pretrained", "data.root"}),
        ("clip3dreid_release", {"model.pretrained", "model.teacher.path", "data.root"}),
        ("clip3dreid", {"model.pretrained", "model.teacher.path", "model.shape_teacher.path", "data.root"}),
        (
            "clip3dreid_paper",
            {"model.pretrained", "model.teacher.path", "bodies.root", "body.path", "data.root"},
        ),
    ],
)
def test_a_method_needs_what_its_losses_need(method: str, keys: set[str]) -> None:
    assert set(items("+experiment=ltcc", f"method={method}")) == keys


def test_losses_of_weight_0_need_nothing() -> None:
    weights = [f"loss.{name}.weight=0" for name in ("local", "global", "shape")]
    assert set(items("+experiment=ltcc", *weights)) == {"model.pretrained", "data.root"}


def test_what_a_recipe_needs_beside_its_group_options_is_found_too(tmp_path: Path) -> None:
    found = items(
        "+experiment=ltcc", "labels.path=mine.csv", "+data@data.also.prcc=prcc", "data.also.prcc.root=/nowhere",
        "init_from=runs/old",
    )  # fmt: skip
    for key in ("labels.path", "data.also.prcc.root", "init_from", "data.root"):
        assert found[key].get is not None, key
    assert "model.pretrained" not in found
    (tmp_path / "mine.csv").touch()
    assert items("+experiment=ltcc", "labels.path=mine.csv")["labels.path"].get is None


@pytest.mark.parametrize("size", ["b16", "l14"])
def test_one_folder_of_clip_serves_student_and_teacher_and_is_fetched_once(size: str, tmp_path: Path) -> None:
    overrides = ("+experiment=ltcc", f"model/student=clip_vit_{size}", f"model/teacher=clip_vit_{size}")
    found = items(*overrides)
    student, teacher = found["model.pretrained"], found["model.teacher.path"]
    assert student.place == teacher.place
    assert student.get == teacher.get
    assert len([line for line in commands([student, teacher]) if "hf download" in line]) == 1
    assert to_get([student, teacher]) == student.megabytes
    # What is fetched is enough for both, in one format.
    assert student.get is not None
    for words in student.get.split("||"):
        assert not {"model.safetensors", "pytorch_model.bin"} <= set(shlex.split(words))
    fill(tmp_path / student.place)
    found = items(*overrides)
    assert found["model.pretrained"].get is None
    assert found["model.teacher.path"].get is None


def test_a_folder_that_serves_the_student_alone_is_incomplete_for_the_teacher(tmp_path: Path) -> None:
    overrides = ("+experiment=ltcc", "model/student=clip_vit_b16", "model/teacher=clip_vit_b16")
    fill(tmp_path / "weights" / "clip-vit-base-patch16", ("config.json", "model.safetensors"))
    found = items(*overrides)
    assert found["model.pretrained"].get is None
    teacher = found["model.teacher.path"]
    assert (
        teacher.state
        == "incomplete: no tokenizer (tokenizer.json) and no pixel statistics (preprocessor_config.json)"
    )
    assert teacher.get is not None
    assert teacher.get.startswith("hf download")


def test_the_size_of_a_download_is_that_of_the_numbers_in_it() -> None:
    for path in (conf_dir() / "model" / "student").glob("*.yaml"):
        node = student_config(path.stem)
        if node.pretrained is None or path.stem.startswith("clip"):
            continue
        with torch.device("meta"):
            network = instantiate(node.student.backbone)
        # What looks across frames is not in a file of a network of pictures.
        beside = network.completed({})
        held = [parameter for name, parameter in network.named_parameters() if name not in beside]
        least = sum(parameter.numel() for parameter in held) * 4 / 1e6
        # Classifiers and poolers come with it.
        assert least - 1 < node.megabytes < least + 9, path.stem


def test_the_tokenizer_of_siglip_needs_packages_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip3dreid.config.checklist._installed", lambda name: False)
    overrides = ("+experiment=ltcc", "model/teacher=siglip_b16")
    assert "pip install sentencepiece protobuf" in commands(checklist(recipe(*overrides)))
    # With the other form of it there they are not.
    fill(tmp_path / "weights" / "siglip-base-patch16-224")
    assert "pip install sentencepiece protobuf" not in commands(checklist(recipe(*overrides)))


def image_teacher(name: str, *overrides: str) -> list[Item]:
    losses = () if any(one.startswith("loss") for one in overrides) else ("loss=[identity,global]",)
    cfg = recipe("+experiment=pku", "method=ce", f"model/teacher={name}", *losses, *overrides)
    return [item for item in checklist(cfg) if item.what.startswith(("teacher", "package"))]


@pytest.mark.parametrize(
    ("name", "file"), [("onnx", "FILE.onnx"), ("openvino", "FILE.xml"), ("image_network", "FOLDER")]
)
def test_a_network_of_pictures_is_asked_for_its_files(name: str, file: str, tmp_path: Path) -> None:
    (item,) = image_teacher(name)
    assert (item.key, item.state) == ("model.teacher.path", "not given")
    assert item.get == f"# teacher {name}: give model.teacher.path={file}"
    place = f"{tmp_path}/{'net.onnx' if name == 'onnx' else 'net.xml' if name == 'openvino' else 'net'}"
    (item,) = image_teacher(name, f"model.teacher.path={place}")
    assert item.state == "missing"
    if name == "image_network":
        fill(Path(place), ("model.safetensors",))
        (item,) = image_teacher(name, f"model.teacher.path={place}")
        assert item.state == "incomplete: no config.json"
        fill(Path(place), ("config.json",))
    else:
        Path(place).write_bytes(b"x" * 1000)
    if name == "openvino":
        (item,) = image_teacher(name, f"model.teacher.path={place}")
        assert item.state == "incomplete: no net.bin"
        (tmp_path / "net.bin").write_bytes(b"x")
    (item,) = image_teacher(name, f"model.teacher.path={place}")
    assert (item.state, item.get) == ("there", None)


def test_a_network_of_pictures_needs_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [item.get for item in image_teacher("openvino")][1:] == ["pip install 'clip3dreid[openvino]'"]


def test_words_asked_of_a_network_of_pictures_are_refused_before_anything_is_read() -> None:
    cfg = recipe("+experiment=pku", "method=ce", "loss=[identity,local,global]", "model/teacher=onnx",
                 f"model.teacher.path={__file__}", "data.root=.")  # fmt: skip
    with pytest.raises(InputError, match=r"teacher onnx \(model/teacher\) is without a text tower") as error:
        check_files(cfg, ())
    assert "loss=[identity,global]" in str(error.value)


def test_a_name_on_the_hub_is_no_missing_folder() -> None:
    found = items("+experiment=ltcc", "model.teacher.path=openai/clip-vit-base-patch32")
    assert found["model.teacher.path"].get is None


def test_a_folder_of_the_users_own_is_not_what_the_command_on_record_gets(tmp_path: Path) -> None:
    found = items("+experiment=ltcc", "model.teacher.path=/nowhere", "model.pretrained=/nowhere/mine.pth")
    for key in ("model.teacher.path", "model.pretrained"):
        line = found[key].get
        assert line is not None
        assert line.startswith("# ")
        assert "hf download" not in line
        assert "curl" not in line


def test_official_bodies_need_their_file_and_their_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip3dreid.config.checklist._installed", lambda name: False)
    found = checklist(recipe("+experiment=ltcc", "method=clip3dreid_paper", "body=smpl"))
    lines = commands(found)
    assert any(
        line.startswith("# body: give body.path=FILE, from https://smpl.is.tue.mpg.de") for line in lines
    )
    assert "pip install 'clip3dreid[smpl]'" in lines
    (making,) = [line for line in lines if "layout=bodies" in line]
    assert making.endswith("body=smpl body.path=FILE")
    (tmp_path / "SMPL.pkl").touch()
    monkeypatch.setattr("clip3dreid.config.checklist._installed", lambda name: True)
    found = checklist(
        recipe("+experiment=ltcc", "method=clip3dreid_paper", "body=smpl", "body.path=SMPL.pkl")
    )
    assert next(item for item in found if item.key == "body.path").get is None


def test_bodies_are_made_with_the_body_that_the_recipe_uses() -> None:
    paper = ("+experiment=ltcc", "method=clip3dreid_paper")
    made = {body: items(*paper, f"body={body}")["bodies.root"].get for body in ("anny", "anny_light")}
    assert str(made["anny"]).endswith("body=anny body.path=anny")
    assert "body" not in str(made["anny_light"]).split("seed=1")[1]


def test_a_student_whose_yaml_says_nothing_of_its_start_is_not_started_at_random() -> None:
    cfg = recipe("+experiment=ltcc")
    OmegaConf.set_struct(cfg, False)
    del cfg.model["pretrained"]
    (item,) = [item for item in checklist(cfg) if item.key == "model.pretrained"]
    assert item.state == "not given"
    assert "null to start from nothing" in str(item.get)


@pytest.mark.parametrize("folder", ["weights", "my weights", "it's"])
def test_commands_are_ready_for_a_shell(folder: str) -> None:
    command = own_command(f"curl -o {folder}/a.pth https://example.org/a.pth", f"{folder}/a.pth")
    assert command is not None
    assert shlex.split(command) == ["curl", "-o", f"{folder}/a.pth", "https://example.org/a.pth"]
    assert own_command("curl -o weights/a.pth x", "weights") is None


def test_a_half_written_folder_is_no_model(tmp_path: Path) -> None:
    assert weights_state(tmp_path / "model", None) == "missing"
    fill(tmp_path / "model", ("config.json",))
    assert weights_state(tmp_path / "model", None) == "incomplete: no weights"
    fill(tmp_path / "model", ("pytorch_model.bin",))
    assert weights_state(tmp_path / "model", None).startswith("there")


def test_a_training_that_lacks_everything_says_so_in_one_line(invoke: Command, tmp_path: Path) -> None:
    arguments = ("+experiment=ltcc", "data.root=/nowhere", "+data@data.also.prcc=prcc", "data.also.prcc.root=/no",
                 "labels.path=mine.csv", "method=clip3dreid_paper", "body=smpl")  # fmt: skip
    done = invoke("train", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    for part in (
        "weights/resnet50-0676ba61.pth (model.pretrained) is missing",
        "teacher clip_vit_l14 weights/clip-vit-large-patch14 (model.teacher.path) is missing",
        "labels mine.csv (labels.path) is missing",
        "textureless bodies bodies (bodies.root) is missing",
        "(body.path) is not given",
        "data ltcc /nowhere (data.root) is missing",
        "data prcc /no (data.also.prcc.root) is missing",
        f"How to get all of them: {shlex.join(['clip3dreid', 'weights', *arguments])}",
    ):
        assert part in line, part
    assert list(tmp_path.iterdir()) == []
    # And that command knows the same things.
    shown = invoke("weights", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(" missing ") >= 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=ce", "data.root=DATA"), "get it: curl -fL"),
        (
            ("method=ce", "data.root=DATA", "model.pretrained=mine.pth"),
            "give model.pretrained=PATH of one that is",
        ),
        (
            (
                "model/student=resnet18_scratch",
                "model/teacher=body_clip",
                "method=clip3dreid_paper",
                "data.root=DATA",
            ),
            "get it: clip3dreid synthesize",
        ),
        (
            (
                "model/student=resnet18_scratch",
                "model/teacher=body_clip",
                "model.shape_teacher.path=nowhere",
                "data.root=DATA",
            ),
            "make one with clip3dreid pretrain_shape_teacher, and give model.shape_teacher.path=FOLDER",
        ),
    ],
)
def test_one_missing_thing_comes_with_what_gets_it(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        check_files(
            recipe("+experiment=ltcc", *(one.replace("DATA", str(tmp_path)) for one in overrides)), ()
        )
    assert message in str(error.value)
    assert "things are missing" not in str(error.value)


def test_data_alone_are_left_to_their_reader_which_looks_for_them() -> None:
    with pytest.raises(InputError, match=r"pku_reid: no pictures such as 001_01_1\.png in /nowhere"):
        check_files(recipe("+experiment=pku", "method=ce", "data.root=/nowhere"), ())
    check_files(recipe(), ())


def test_what_a_training_lacks_is_found_out_without_torch() -> None:
    code = """
import sys
from hydra import compose, initialize_config_dir
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.errors import InputError
from clip3dreid.config import checklist
register()
with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
    cfg = compose("train", ["+experiment=pku", "method=ce", "data.root=/nowhere"])
try:
    checklist.check_files(cfg, ())
except InputError:
    print("refused", "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["refused", "False"], done.stderr


def test_nothing_missing_is_no_error(bodies_root: Path, ltcc_root: Path) -> None:
    cfg = recipe("+experiment=demo", f"data.root={ltcc_root}", f"bodies.root={bodies_root}")
    assert commands(checklist(cfg)) == []
    check_files(cfg, ())


@pytest.mark.slow
def test_bodies_weigh_what_the_list_says(command: Command, tmp_path: Path) -> None:
    done = command(
        "synthesize", "layout=bodies", "out=bodies", "train_people=20", "test_people=2", "workers=0"
    )
    assert done.returncode == 0, done.stderr
    measured = sum(file.stat().st_size for file in (tmp_path / "bodies").rglob("*.jpg")) * 100 / 1e6
    assert "train_people=2000 test_people=200" in COMMAND
    assert 0.8 * measured < COMMAND_MB < 1.25 * measured


def test_a_further_data_set_without_its_folder_is_asked_for_by_its_own_key(
    ltcc_root: Path, invoke: Command
) -> None:
    done = invoke("train", "+experiment=ltcc", "method=ce", f"data.root={ltcc_root}", "model.pretrained=null",
                  "+data@data.also.prcc=prcc", "logger=csv")  # fmt: skip
    assert done.returncode == 2
    assert (
        "data.also.prcc.root is not set; give the folder of prcc as data.also.prcc.root=FOLDER" in done.stderr
    )
