import functools
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from clip3dreid.errors import InputError
from clip3dreid.model.card import CARD as KEY
from clip3dreid.model.resnet import ResNet
from clip3dreid.model.student import Student
from clip3dreid.model.weights import (
    CHECKSUM,
    HEADS,
    add_checksum,
    check_same_student,
    load_pretrained,
    read_card,
    read_checkpoint,
    save_weights,
    student_from_checkpoint,
)
from tests.processes import PATIENCE_S

CONFIG = {
    "_target_": "clip3dreid.model.student.Student",
    "backbone": {"_target_": "clip3dreid.model.resnet.ResNet", "depth": 18, "width": 8},
    "pooling": {"_target_": "clip3dreid.model.pooling.MaximumAverage"},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
CARD = {"version": 1, "student": CONFIG, "height": 64, "width": 32, "data": ["ltcc"]}


def student(seed: int = 0, **changes: object) -> Student:
    torch.manual_seed(seed)
    return instantiate({**CONFIG, **changes})


@functools.cache
def trained() -> Student:
    """A student whose running statistics are not at their start; shared, so never to be changed."""
    network = student(1)
    network(torch.rand(4, 3, 64, 32))
    return network.eval()


class Cal(nn.Module):
    """The released layout of CAL, written anew: a Sequential of torchvision's children, max+avg, `bn`."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.base = nn.Sequential(*backbone.children())
        self.bn = nn.BatchNorm1d(128)

    def forward(self, x):
        x = self.base(x)
        return self.bn(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))


def cal(seed: int = 2) -> Cal:
    torch.manual_seed(seed)
    network = Cal(ResNet(18, width=8))
    network(torch.randn(4, 3, 64, 32))
    return network.eval()


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(CONFIG["mean"]).view(3, 1, 1)) / torch.tensor(CONFIG["std"]).view(3, 1, 1)


IMAGES = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_a_cal_checkpoint_gives_cals_own_embeddings(tmp_path, prefix):
    original = cal()
    state = OrderedDict((prefix + name, tensor) for name, tensor in original.state_dict().items())
    assert f"{prefix}base.7.1.conv2.weight" in state
    torch.save(
        {
            "model_state_dict": state,
            "classifier_state_dict": {"classifier.weight": torch.zeros(3, 128)},
            "clothes_classifier_state_dict": {"weight": torch.zeros(5, 128)},
            "rank1": np.float64(0.5),  # a numpy scalar, which plain `weights_only` refuses
            "epoch": 59,
        },
        tmp_path / "best_model.pth.tar",
    )
    ours = student().eval()
    loaded = load_pretrained(ours, tmp_path / "best_model.pth.tar")
    torch.testing.assert_close(ours(IMAGES).embedding, original(normalised(IMAGES)))
    assert loaded == set(ours.state_dict())


@torch.no_grad()
def test_of_an_aim_checkpoint_the_retrieval_branch_is_taken(tmp_path):
    original = cal()
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    state = {}
    for name, tensor in original.state_dict().items():
        head, _, rest = name.partition(".")
        child, _, tail = rest.partition(".")
        state[f"{names[child]}.{tail}" if head == "base" else name] = tensor
    assert {"conv1.weight", "bn.weight", "layer4.1.bn2.weight"} <= set(state)
    torch.save(
        {
            "model_state_dict": state,
            "model2_state_dict": {"conv1.weight": torch.zeros(8, 3, 7, 7)},
            "fuse_state_dict": {"weight": torch.zeros(2, 2)},
            "rank1": np.float32(0.58),
            "epoch": 80,
        },
        tmp_path / "aim.pth",
    )
    ours = student().eval()
    load_pretrained(ours, tmp_path / "aim.pth")
    torch.testing.assert_close(ours(IMAGES).embedding, original(normalised(IMAGES)))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_imagenet_file_fills_the_backbone_and_leaves_the_neck(tmp_path, zipped):
    torch.manual_seed(5)
    source = ResNet(18, width=8)
    state = OrderedDict(source.state_dict())
    # Old files do not count batches.
    state = OrderedDict((k, v) for k, v in state.items() if not k.endswith("num_batches_tracked"))
    state |= {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet18-00000000.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    ours = student()
    neck = ours.neck.weight.clone()
    loaded = load_pretrained(ours, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(ours.backbone.state_dict()[name], tensor), name
    assert torch.equal(ours.neck.weight, neck)
    assert not any(name.startswith("neck") for name in loaded)


def lightning(path: Path, network: Student, card: object = CARD) -> Path:
    """A file as Lightning writes it, with a head, an optimiser and our card."""
    state = {f"student.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(
        {
            "state_dict": state | {"losses.identity.weight": torch.zeros(7, 128)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
            "epoch": 3,
            "clip3dreid": card,
        },
        path,
    )
    return path


@torch.no_grad()
def test_our_checkpoints_rebuild_the_student_they_hold(tmp_path):
    original = trained()
    save_weights(original.state_dict(), CARD, tmp_path / "a.safetensors")
    for path in (lightning(tmp_path / "last.ckpt", original), tmp_path / "a.safetensors"):
        rebuilt = student_from_checkpoint(path)
        assert not rebuilt.training
        assert torch.equal(rebuilt(IMAGES).embedding, original(IMAGES).embedding)
        assert read_card(path) == CARD


@torch.no_grad()
def test_training_can_start_from_our_checkpoint(tmp_path):
    original = trained()
    ours = student().eval()
    load_pretrained(ours, lightning(tmp_path / "last.ckpt", original))
    assert torch.equal(ours(IMAGES).embedding, original(IMAGES).embedding)


def test_a_misfit_lists_keys_missing_left_over_and_of_another_shape(tmp_path):
    state = trained().state_dict()
    state["backbone.conv1.weight"] = torch.zeros(8, 1, 7, 7)
    for block in range(2):
        for number in (1, 2):
            for tensor in ("weight", "bias"):
                del state[f"backbone.layer3.{block}.bn{number}.{tensor}"]
    state["backbone.layer9.weight"] = torch.zeros(1)
    save_weights(state, CARD, tmp_path / "odd.safetensors")
    ours = student()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_pretrained(ours, tmp_path / "odd.safetensors")
    message = str(error.value)
    assert "backbone.layer3.0.bn1.bias, backbone.layer3.0.bn1.weight" in message
    assert "and 3 more" in message  # eight are missing, five are named
    assert "left over: backbone.layer9.weight" in message
    assert "backbone.conv1.weight (there (8, 1, 7, 7), here (8, 3, 7, 7))" in message
    assert "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_half_a_neck_is_a_misfit(tmp_path):
    state = trained().state_dict()
    del state["neck.running_var"]
    save_weights(state, CARD, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"missing: neck\.running_var"):
        load_pretrained(student(), tmp_path / "half.safetensors")


def test_a_checkpoint_without_a_neck_is_no_student(tmp_path):
    state = {name: tensor for name, tensor in trained().state_dict().items() if name.startswith("backbone")}
    save_weights(state, CARD, tmp_path / "backbone.safetensors")
    with pytest.raises(InputError, match=r"missing: neck\.bias"):
        student_from_checkpoint(tmp_path / "backbone.safetensors")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    other = student(backbone={**CONFIG["backbone"], "depth": 34})
    with pytest.raises(InputError, match="another architecture"):
        student_from_checkpoint(lightning(tmp_path / "last.ckpt", other))
    with pytest.raises(InputError, match="another architecture"):
        load_pretrained(student(), lightning(tmp_path / "last.ckpt", other))


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    content = {"state_dict": {"student.neck.bias": torch.zeros(2)}, "clip3dreid": CARD, "extra": Bomb(marker)}
    torch.save(content, tmp_path / "evil.ckpt")
    torch.save(content, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content["extra"], protocol=2))
    for name in ("evil.ckpt", "legacy.ckpt", "plain.pkl"):
        for read in (student_from_checkpoint, read_card, lambda path: load_pretrained(student(), path)):
            with pytest.raises(InputError, match=r"mkdir.*refused") as error:
                read(tmp_path / name)
            assert "\n" not in str(error.value)
    assert not marker.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert marker.exists()  # the bomb was live


def test_only_numpys_scalars_are_let_through_and_nothing_is_made_of_them(tmp_path):
    torch.save({"a": torch.zeros(1), "rank1": np.float64(0.25)}, tmp_path / "scalar.pth")
    assert list(read_checkpoint(tmp_path / "scalar.pth").state) == ["a"]
    # numpy 1 called its module numpy.core.
    with (
        zipfile.ZipFile(tmp_path / "scalar.pth") as new,
        zipfile.ZipFile(tmp_path / "old.pth", "w", zipfile.ZIP_STORED) as old,
    ):
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    assert list(read_checkpoint(tmp_path / "old.pth").state) == ["a"]
    torch.save({"a": torch.zeros(1), "array": np.zeros(3)}, tmp_path / "array.pth")
    with pytest.raises(InputError, match="_reconstruct"):
        read_checkpoint(tmp_path / "array.pth")


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.mkdir", "path": "MARKER"},
        # Begins like one of ours, and reaches whatever that module imported.
        {"_target_": "clip3dreid.model.student.torch.hub.load", "repo_or_dir": "MARKER"},
        {"_target_": "clip3dreid.model.weights.atomic", "path": "MARKER"},
        {"_target_": "clip3dreid.model.resnet.nn.Linear", "in_features": 1, "out_features": 1},
        {"_target_": "clip3dreid.model.student.Backbone"},
        {"_target_": "clip3dreid.model.nothing.Here"},
        {"_target_": ["os.mkdir"]},
        {"_target_": "clip3dreid.model.pooling.Average", "_partial_": True},
        {"_target_": "clip3dreid.model.pooling.GeneralisedMean", "p": "${oc.env:HOME}"},
        {"_target_": "clip3dreid.model.pooling.GeneralisedMean", "p": {"deep": [{"_target_": "os.mkdir"}]}},
        {"_target_": "clip3dreid.model.pooling.GeneralisedMean", "p": torch.zeros(1)},
    ],
    ids=lambda node: str(node["_target_"])[-30:],
)
def test_a_checkpoint_can_build_nothing_but_our_modules(tmp_path, node, monkeypatch):
    marker = tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    text = {key: str(marker) if value == "MARKER" else value for key, value in node.items()}
    path = lightning(tmp_path / "last.ckpt", trained(), {**CARD, "student": {**CONFIG, "pooling": text}})
    with pytest.raises(InputError, match="is refused") as error:
        student_from_checkpoint(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (None, "does not say which student"),
        ({**CARD, "version": 2}, "has checkpoint version 2, this program reads 1"),
        (
            {**CARD, "student": CONFIG["backbone"]},
            "wants to build .*ResNet, where only Student, ClipStudent may stand",
        ),
        ({**CARD, "student": None}, "its student is a NoneType, where only Student, ClipStudent may stand"),
        ({**CARD, "student": {**CONFIG, "colour": "red"}}, "its student has no key colour"),
        (
            {**CARD, "student": {**CONFIG, "backbone": {**CONFIG["backbone"], "depth": 7}}},
            "depth=7 is unknown; choose 18",
        ),
    ],
    ids=["none", "version", "part", "empty", "key", "value"],
)
def test_a_card_that_describes_no_student_of_this_version_is_refused(tmp_path, card, told):
    path = lightning(tmp_path / "last.ckpt", trained(), card)
    with pytest.raises(InputError, match=told) as error:
        student_from_checkpoint(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<html>404 Not Found</html>\n")
    (tmp_path / "page.safetensors").write_text("<html>404 Not Found</html>\n")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "card.safetensors", {"clip3dreid": "{not json"})
    whole = lightning(tmp_path / "whole.ckpt", trained()).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for name in (
        "empty.pth",
        "page.pth",
        "page.safetensors",
        "list.pth",
        "numbers.pth",
        "card.safetensors",
        "cut.ckpt",
        "nowhere.ckpt",
    ):
        with pytest.raises(InputError) as error:
            read_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_missing_weights_name_the_command_that_fetches_them(tmp_path):
    path = tmp_path / "resnet18-f37072fd.pth"
    command = f"curl -fL -o {path} https://example.org/resnet18-f37072fd.pth"
    with pytest.raises(InputError, match="no weights at") as error:
        load_pretrained(student(), path, command)
    assert command in str(error.value)
    # A file of the user's own is not what the command would bring.
    with pytest.raises(InputError, match=r"mine\.pth; give a file that is there"):
        load_pretrained(student(), tmp_path / "mine.pth", command)
    with pytest.raises(InputError, match="is a folder"):
        load_pretrained(student(), tmp_path, command)


def test_saved_weights_are_plain_safetensors_with_the_card_as_json(tmp_path):
    save_weights(trained().state_dict(), {"student": CONFIG}, tmp_path / "deep" / "a.safetensors")
    raw = (tmp_path / "deep" / "a.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    card = json.loads(header["__metadata__"]["clip3dreid"])
    assert re.fullmatch("[0-9a-f]{8}", card.pop("checksum"))
    assert card == {"version": 1, "student": CONFIG}
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        save_weights({}, {}, tmp_path / "a.pth")


def test_a_config_that_says_nothing_of_the_neck_has_one(tmp_path):
    save_weights(trained().state_dict(), CARD, tmp_path / "old.safetensors")
    check_same_student(tmp_path / "old.safetensors", CONFIG | {"neck": True})
    with pytest.raises(InputError, match=r"model\.student\.neck is True there, False here"):
        check_same_student(tmp_path / "old.safetensors", CONFIG | {"neck": False})


def test_a_student_without_a_neck_is_rebuilt_from_its_checkpoint(tmp_path):
    bare = student(2, neck=False).eval()
    path = tmp_path / "bare.safetensors"
    save_weights(bare.state_dict(), CARD | {"student": CONFIG | {"neck": False}}, path)
    images = torch.rand(2, 3, 64, 32)
    assert torch.equal(student_from_checkpoint(path)(images).embedding, bare(images).embedding)
    assert not [name for name in read_checkpoint(path).state if name.startswith("neck")]


def sealed(path: Path, network: Student, heads: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as training writes it, with its checksum."""
    content = {
        "state_dict": {f"student.{name}": tensor for name, tensor in network.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        KEY: CARD,
        HEADS: heads,
    }
    add_checksum(content)
    torch.save(content, path)
    return path


HEAD = {"shape.weight": torch.arange(6.0).view(2, 3), "shape.bias": torch.tensor([0.125, 0.375])}


def damage(path: Path, value: float, other: float) -> None:
    """One number of a tensor for another, which no reader notices."""
    data = path.read_bytes()
    old = np.array([value], np.float32).tobytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, np.array([other], np.float32).tobytes()))


@pytest.mark.parametrize("name", ["a.safetensors", "last.ckpt"])
@pytest.mark.parametrize("part", ["student", "head", "card", "dtype"])
def test_damage_that_no_reader_notices_is_told_by_the_checksum(tmp_path, name, part):
    network = student(3)
    network.neck.bias.data[5] = 0.7654321
    path = tmp_path / name
    if name.endswith(".ckpt"):
        sealed(path, network, HEAD)
    else:
        heads = {f"heads.{key}": tensor for key, tensor in HEAD.items()}
        save_weights(network.state_dict() | heads, CARD, path)
    read_checkpoint(path)
    whole = path.read_bytes()
    if part == "student":
        damage(path, 0.7654321, 0.7654322)
    elif part == "head":
        damage(path, 0.375, 0.376)
    elif part == "card":
        assert whole.count(b"ltcc") == 1
        path.write_bytes(whole.replace(b"ltcc", b"prcc"))
    elif name.endswith(".ckpt"):
        assert whole.count(b"FloatStorage") == 1
        path.write_bytes(whole.replace(b"FloatStorage", b"Int32Storage"))
    else:
        # As many bytes, another kind of number.
        path.write_bytes(whole.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(InputError, match=r"damaged|cannot be read") as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    if part in ("student", "head"):
        assert "its checksum is another" in str(error.value)


def test_a_file_without_a_checksum_is_read_with_a_line_in_the_log(tmp_path, caplog):
    lightning(tmp_path / "old.ckpt", trained())
    assert read_card(tmp_path / "old.ckpt") == CARD
    assert "old.ckpt has no checksum, as earlier versions wrote it" in caplog.text
    caplog.clear()
    content = torch.load(sealed(tmp_path / "guided.ckpt", trained(), HEAD))
    del content[CHECKSUM]
    torch.save(content, tmp_path / "guided.ckpt")
    assert read_checkpoint(tmp_path / "guided.ckpt").heads.keys() == HEAD.keys()
    assert "guided.ckpt has no checksum" in caplog.text
    caplog.clear()
    torch.save(trained().state_dict(), tmp_path / "theirs.pth")
    read_checkpoint(tmp_path / "theirs.pth")
    read_checkpoint(sealed(tmp_path / "new.ckpt", trained(), HEAD))
    assert not caplog.text


def test_the_name_of_a_checksum_that_was_damaged_is_no_way_around_it(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(trained().state_dict(), CARD, path)
    assert path.read_bytes().count(b"checksum") == 1
    path.write_bytes(path.read_bytes().replace(b"checksum", b"checksun"))
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path)


def test_both_formats_of_one_model_have_one_checksum(tmp_path):
    sealed(tmp_path / "last.ckpt", trained(), {})
    save_weights(trained().state_dict(), CARD, tmp_path / "a.safetensors")
    content = torch.load(tmp_path / "last.ckpt")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["clip3dreid"])["checksum"] == content[CHECKSUM]


def replaced_pickle(path: Path, pickled: bytes) -> Path:
    """A torch file with another pickle in it."""
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path) as old:
        held = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in held.items():
            new.writestr(name, pickled if name.endswith("data.pkl") else data)
    return path


HOSTILE = {
    # Hashing it would overflow the stack.
    "a million tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"Ns.",
    "a million lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "the four billionth memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a state for a class": b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00aK\x01sb.",
    "an array of numpy": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
}


TRY = """
import sys
from pathlib import Path
from clip3dreid.errors import InputError
from clip3dreid.model.weights import read_checkpoint
for path in map(Path, sys.argv[1:]):
    try:
        read_checkpoint(path)
        print(path.name, "was read")
    except InputError as error:
        print(path.name, "refused", str(error).count("\\n"))
"""


def test_no_torch_file_reaches_memory_that_is_not_its_own(tmp_path):
    paths = []
    for attack, data in HOSTILE.items():
        paths += [replaced_pickle(tmp_path / f"{attack}.zipped", data), tmp_path / f"{attack}.plain"]
        paths[-1].write_bytes(data)
    # In a process of its own, which such a file may end.
    command = [sys.executable, "-c", TRY, *map(str, paths)]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert tried.stdout.splitlines() == [f"{path.name} refused 0" for path in paths], tried.stderr[-500:]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**11),
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["endless", "sparse", "without data"],
)
def test_tensors_that_are_none_of_a_student_are_refused(tmp_path, tensor):
    torch.save({"state_dict": {"a": tensor}}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"no plain tensor|larger than the file"):
        read_checkpoint(tmp_path / "odd.pth")


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights({"a": torch.zeros(1)}, {}, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clip3dreid.model.weights.save_file", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.safetensors: .*No space left.*make room"):
        save_weights({"a": torch.zeros(1)}, {}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
