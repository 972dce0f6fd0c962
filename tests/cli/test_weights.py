import hashlib
import sys

import pytest
import torch

from clip3dreid.cli import weights
from clip3dreid.config.checklist import weights_state
from clip3dreid.config.folder import conf_dir
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.weights import read_card, read_checkpoint, student_from_checkpoint
from tests.conftest import student_config

SMALL = ["model/student=resnet18", "model.student.backbone.width=8"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIP3DREID_WEIGHTS", raising=False)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["weights", *arguments])
        status = 0
        try:
            weights.main()
        except SystemExit as end:
            status = int(end.code)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_every_student_is_listed_with_its_file_and_the_command_that_fetches_it(run, tmp_path):
    status, out, _ = run("weights_dir=elsewhere")
    assert status == 0
    students = sorted(path.stem for path in (conf_dir() / "model" / "student").glob("*.yaml"))
    nodes = {name: student_config(name, weights_dir="elsewhere") for name in students}
    nodes = {name: node for name, node in nodes.items() if node.pretrained is not None}
    assert len(nodes) >= 10
    for name, node in nodes.items():
        line = next(line for line in out.splitlines() if f" {name} " in line)
        assert node.pretrained in line
        assert "missing" in line
        assert out.splitlines().count(f"  {node.fetch}") == 1
    assert list(tmp_path.iterdir()) == []


def test_published_models_are_listed_with_their_scores_and_the_commands_that_convert_them(run):
    status, out, _ = run()
    assert status == 0
    line = next(line for line in out.splitlines() if " osnet_x1_0_market1501 " in line)
    assert "94.2" in line
    assert "82.6" in line
    assert "model/student=osnet_x1_0 " in line
    assert (
        "  curl -fL -o market_bot_r101_ibn.pth "
        "https://github.com/JDAI-CV/fast-reid/releases/download/v0.1.1/market_bot_R101-ibn.pth && "
        "clip3dreid weights convert=market_bot_r101_ibn.pth out=market_bot_r101_ibn.safetensors "
        "model/student=resnet50_bot_ibn model.student.backbone.depth=101 height=256 width=128"
    ) in out.splitlines()


def test_present_files_are_checked_and_a_damaged_one_ends_with_status_2(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP3DREID_WEIGHTS", str(tmp_path))
    folder = tmp_path / "swin-tiny-patch4-window7-224"
    folder.mkdir()
    status, out, _ = run()
    assert status == 0
    assert sum("incomplete: no config.json and no weights" in line for line in out.splitlines()) == 1
    assert f"--local-dir {folder}" in out
    for name in ("config.json", "model.safetensors"):
        (folder / name).touch()
    status, out, _ = run()
    assert sum("checksum not known" in line for line in out.splitlines()) == 1
    assert f"--local-dir {folder}" not in out
    damaged = tmp_path / "resnet50-0676ba61.pth"
    damaged.write_bytes(b"half a download")
    status, out, err = run()
    assert status == 2
    assert any("resnet50" in line and "DAMAGED" in line for line in out.splitlines())
    assert f"{damaged}: checksum wrong; delete and fetch again" in err
    assert f"-o {damaged} " not in out


def test_a_file_with_the_right_checksum_is_called_right(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert weights_state(path, digest) == "there, checksum right"


def cal_file(path):
    """A checkpoint in CAL's layout, and its backbone."""
    torch.manual_seed(0)
    backbone = ResNet(18, width=8)
    backbone(torch.randn(4, 3, 64, 32))
    children = torch.nn.ModuleDict({"base": torch.nn.Sequential(*backbone.children())})
    children["bn"] = torch.nn.BatchNorm1d(128)
    torch.save({"model_state_dict": children.state_dict(), "epoch": 1}, path)
    return backbone.eval()


@torch.no_grad()
def test_a_converted_cal_checkpoint_is_a_checkpoint_of_ours(run, tmp_path):
    backbone = cal_file(tmp_path / "cal.pth.tar")
    status, out, _ = run("convert=cal.pth.tar", "out=cal.safetensors", "height=256", "width=128", *SMALL)
    assert status == 0
    assert "ready to evaluate" in out
    converted = student_from_checkpoint(tmp_path / "cal.safetensors")
    images = torch.rand(2, 3, 64, 32)
    expected = backbone((images - converted.mean) / converted.std).map
    torch.testing.assert_close(converted(images).map, expected)
    card = read_card(tmp_path / "cal.safetensors")
    assert (card["height"], card["width"], card["data"]) == (256, 128, [])


def test_a_converted_imagenet_file_stays_a_backbone(run, tmp_path):
    torch.manual_seed(0)
    state = ResNet(18, width=8).state_dict() | {
        "fc.weight": torch.zeros(1000, 64),
        "fc.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "imagenet.pth")
    status, out, _ = run("convert=imagenet.pth", "out=imagenet.safetensors", *SMALL)
    assert status == 0
    assert "a backbone" in out
    converted = read_checkpoint(tmp_path / "imagenet.safetensors").state
    assert set(converted) == {f"backbone.{name}" for name in state if not name.startswith("fc.")}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["convert=nowhere.pth", "out=a.safetensors"], "no weights at nowhere.pth"),
        (["convert=cal.pth"], "out is not set"),
        (["convert=cal.pth", "out=a.pth"], "must end in .safetensors"),
        (["convert=cal.pth", "out=cal.pth"], "is there already"),
        (["convert=cal.pth", "out=a.safetensors", "model.student.backbone.depth=34"], "another architecture"),
        (
            ["convert=cal.pth", "out=a.safetensors", "model.student.backbone.depth=19"],
            "depth=19 is unknown; choose 18",
        ),
        (["convert=page.pth", "out=a.safetensors"], "page.pth cannot be read as a torch file"),
        (["convrt=cal.pth"], "convrt"),
    ],
)
def test_bad_input_ends_with_one_line_status_2_and_nothing_written(run, tmp_path, arguments, told):
    cal_file(tmp_path / "cal.pth")
    (tmp_path / "page.pth").write_text("<html>")
    before = sorted(tmp_path.iterdir())
    status, _, err = run(*SMALL, *arguments)
    assert status == 2
    assert told in err.strip().splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_recipe_has_one_list_of_what_it_needs_and_one_block_that_gets_it(run, tmp_path):
    status, out, _ = run("+experiment=ltcc", "data.root=ltcc", "weights_dir=w", "method=clip3dreid_paper")
    assert status == 0
    for place in ("w/resnet50-0676ba61.pth", "w/clip-vit-large-patch14", "bodies", "anny_light", "ltcc"):
        assert any(f" {place} " in line for line in out.splitlines()), place
    block = out.split("To get what is missing")[1].split("Then:")[0].splitlines()[1:]
    wanted = [
        student_config("resnet50", weights_dir="w").fetch,
        "hf download openai/clip-vit-large-patch14",
        "clip3dreid synthesize layout=bodies out=bodies",
        "# data ltcc: docs/datasets.md",
    ]
    lines = [line for line in block if line]
    assert [line.startswith(start) for line, start in zip(lines, wanted, strict=True)] == [True] * 4
    assert out.rstrip().endswith(
        "Then: clip3dreid train +experiment=ltcc data.root=ltcc weights_dir=w method=clip3dreid_paper"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_needs_nothing_says_so(run, tmp_path):
    (tmp_path / "PKU").mkdir()
    status, out, _ = run("+experiment=pku", "method=ce", "data.root=PKU")
    assert status == 0
    assert "from scratch: nothing to get" in out
    assert "teacher" not in out
    assert out.rstrip().endswith(
        "Nothing is missing. Then: clip3dreid train +experiment=pku method=ce data.root=PKU"
    )


def test_what_is_not_given_is_asked_for_in_the_command_that_trains(run):
    _, out, _ = run("+experiment=pku")
    assert "not given" in out
    assert out.rstrip().endswith("clip3dreid train +experiment=pku data.root=PATH")


def test_a_damaged_file_of_a_recipe_ends_with_status_2_and_is_fetched_anew(run, tmp_path):
    (tmp_path / "weights").mkdir()
    damaged = tmp_path / "weights" / "resnet50-0676ba61.pth"
    damaged.write_bytes(b"half a download")
    status, out, err = run("+experiment=ltcc", "method=ce")
    assert status == 2
    assert "rm weights/resnet50-0676ba61.pth && curl" in out
    assert "weights/resnet50-0676ba61.pth: checksum wrong" in err


def test_a_mistyped_key_of_a_recipe_is_refused_as_training_refuses_it(run):
    status, _, err = run("+experiment=ltcc", "epohcs=3")
    assert status == 2
    assert "epohcs" in err


@pytest.mark.parametrize("experiment", ["pku", "demo", "ltcc"])
def test_a_students_yaml_of_ones_own_keeps_its_weights_in_every_recipe(run, tmp_path, experiment):
    mine = tmp_path / "myconf" / "model" / "student"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text(
        "# @package model\ndefaults:\n  - resnet18@_here_\n  - _self_\npretrained: mine.pth\n"
    )
    status, out, err = run(
        f"--config-dir={tmp_path}/myconf", f"+experiment={experiment}", "model/student=mine"
    )
    assert status == 0, err
    assert any("mine.pth" in line and "missing" in line for line in out.splitlines())
