"""Export: the files compute what the model computes, for anybody, or are not written."""

import dataclasses
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional as F

from clip3dreid.config import objects
from clip3dreid.config.folder import conf_dir
from clip3dreid.errors import InputError
from clip3dreid.export import run as exporting
from clip3dreid.export.formats import Onnx, Opened, TorchExport
from clip3dreid.export.graph import Graph
from clip3dreid.export.parity import drawn
from clip3dreid.export.run import export
from clip3dreid.export.settings import ExportSettings
from clip3dreid.inference.model import ReidModel, load
from clip3dreid.inference.parts import as_feature
from tests import conftest
from tests.conftest import Command
from tests.export.models import FRAMES, HEIGHT, JOINT, OF_CLIPS, STUDENT, WIDTH, D, made, noise
from tests.processes import PATIENCE_S, holding
from tests.small_disk import fill, small_disk

ROOT = Path(__file__).parents[2]
BOTH = ("joint", "embedding")  # not the order of the code


@pytest.fixture(scope="module")
def saved(model: ReidModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model: ReidModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, with both outputs and all defaults."""
    out = tmp_path_factory.mktemp("files") / "new" / "out"
    formats = {"onnx": Onnx(), "torch_export": TorchExport()}
    export(model, ExportSettings(outputs=BOTH, timing=0), formats, out)
    return out


def opened(folder: Path, kind: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A file as its users open it, without this package's own reader."""
    if kind == "model.onnx":
        session = onnxruntime.InferenceSession(str(folder / kind), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda pictures: dict(zip(names, session.run(None, {"pictures": pictures}), strict=True))
    module = torch.export.load(folder / kind).module()
    return lambda pictures: {key: value.numpy() for key, value in module(torch.tensor(pictures)).items()}


@pytest.mark.parametrize("kind", ["model.onnx", "model.pt2"])
def test_a_file_gives_the_models_features_for_any_number_of_pictures(
    exported: Path, model: ReidModel, kind: str
) -> None:
    run = opened(exported, kind)
    for count in (1, 2, 3, 7):
        pictures = noise(count, seed=count)
        found = run(pictures.astype(np.float32) / 255)
        assert list(found) == list(BOTH)
        wanted = {
            "embedding": model.embed(torch.tensor(pictures)),
            "joint": model.joint(torch.tensor(pictures)),
        }
        for name, value in wanted.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4)


def test_both_files_and_the_record_say_the_same_of_themselves(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    about = json.loads(session.get_modelmeta().custom_metadata_map["clip3dreid"])
    extra = {"clip3dreid.json": ""}
    torch.export.load(exported / "model.pt2", extra_files=extra)
    record = json.loads((exported / "export.json").read_text())
    assert about == json.loads(extra["clip3dreid.json"])
    assert about.items() <= record.items()
    assert about["outputs"] == {"joint": JOINT, "embedding": D}
    assert (about["normalise"], about["mean"], about["std"]) == ("inside", None, None)
    assert session.get_inputs()[0].shape == ["batch", 3, HEIGHT, WIDTH]
    assert record["files"]["onnx"]["opset"] >= 18
    assert record["files"]["onnx"]["megabytes"] * 1e6 == (exported / "model.onnx").stat().st_size
    assert record["parameters"] == sum(p.numel() for p in made().student.parameters()) + 64 * JOINT + JOINT
    assert record["milliseconds_per_picture"] is None
    for file in record["files"].values():
        assert file["cosine"] > 1 - 1e-9
        assert file["difference"] < 1e-4


def test_files_hold_no_paths_of_the_machine_that_wrote_them(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"model.onnx", "model.pt2", "export.json"}
    for path in exported.iterdir():
        for place in (ROOT, Path.home(), Path(sys.prefix), exported):
            assert str(place).encode() not in path.read_bytes(), (path.name, place)


ALONE = "import sys; sys.modules |= dict.fromkeys(BLOCKED)\n"


def alone(code: str, folder: Path, *blocked: str) -> list[float]:
    """Runs code in a process where these modules cannot be imported; returns the numbers it prints."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE.replace("BLOCKED", repr(blocked)) + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_the_example_of_the_documentation_runs_without_torch_and_this_package(
    exported: Path, model: ReidModel
) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert example is not None
    # Larger, smaller and of the model's size; OpenCV enlarges in evaluation, to one grey level the same.
    sizes = {"a": (150, 70), "b": (40, 21), "c": (HEIGHT, WIDTH)}
    with_pictures = exported.parent / "user"
    with_pictures.mkdir()
    (with_pictures / "model.onnx").symlink_to(exported / "model.onnx")
    for number, (name, size) in enumerate(sizes.items()):
        picture = drawn(2 * number + 1, *size)[-1].transpose(1, 2, 0)
        Image.fromarray(picture).save(with_pictures / f"{name}.png")
    code = f"{example[1]}\nprint(*distance.ravel())"
    found = alone(code, with_pictures, "torch", "clip3dreid", "transformers")
    features = F.normalize(model.embed([with_pictures / f"{name}.png" for name in sizes]), dim=1)
    assert found == pytest.approx((1 - features[:2] @ features[2]).tolist(), abs=1e-4)


def test_the_call_of_the_documentation_exports(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "exported = export(" in block]
    (tmp_path / "model").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("unit_length=True", "unit_length=True, timing=0"), names)
    record = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert names["exported"].report() == record
    assert record["unit_length"] is True


def test_a_program_runs_without_this_package(exported: Path, model: ReidModel) -> None:
    code = (
        "import torch; program = torch.export.load('model.pt2').module()\n"
        f"print(*program(torch.full((3, 3, {HEIGHT}, {WIDTH}), 0.25))['joint'][2].tolist())"
    )
    found = alone(code, exported, "clip3dreid", "transformers", "onnxruntime")
    wanted = model.joint(torch.full((1, 3, HEIGHT, WIDTH), 0.25))[0]
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)


def program(
    model: ReidModel, settings: ExportSettings, out: Path
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    export(model, replace(settings, timing=0), {"torch_export": TorchExport()}, out)
    return opened(out, "model.pt2")


def test_normalised_outside_a_file_takes_pictures_that_its_own_numbers_have_normalised(
    model: ReidModel, tmp_path: Path
) -> None:
    run = program(model, ExportSettings(normalise="outside"), tmp_path)
    record = json.loads((tmp_path / "export.json").read_text())
    assert (record["normalise"], record["mean"], record["std"]) == (
        "outside",
        STUDENT["mean"],
        STUDENT["std"],
    )
    pictures = noise(3).astype(np.float32) / 255
    mean, std = (np.array(record[key], np.float32)[:, None, None] for key in ("mean", "std"))
    wanted = model.embed(torch.tensor(pictures)).numpy()
    np.testing.assert_allclose(run((pictures - mean) / std)["embedding"], wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(run(pictures)["embedding"] - wanted).max() > 0.1
    # The model itself still normalises.
    assert model.student.mean.flatten().tolist() == pytest.approx(STUDENT["mean"])


def test_bytes_are_scaled_inside(model: ReidModel, tmp_path: Path) -> None:
    export(model, ExportSettings(input="uint8", timing=0), {"onnx": Onnx(opset=18)}, tmp_path)
    pictures = noise(3)
    found = opened(tmp_path, "model.onnx")(pictures)["embedding"]
    np.testing.assert_allclose(found, model.embed(torch.tensor(pictures)).numpy(), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "export.json").read_text())["files"]["onnx"]["opset"] == 18


def test_the_mirror_image_and_the_length_are_as_asked_for(model: ReidModel, tmp_path: Path) -> None:
    pictures = noise(3)
    run = program(model, ExportSettings(flip=False, unit_length=True), tmp_path)
    wanted = F.normalize(model.embed(torch.tensor(pictures), flip=False), dim=1).numpy()
    np.testing.assert_allclose(run(pictures.astype(np.float32) / 255)["embedding"], wanted, atol=1e-5)


class Twice(Graph):
    """A graph that normalises what has been normalised already."""

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward((pictures - self.student.mean) / self.student.std)


class Never(Graph):
    """A graph that says `inside` and normalises nothing."""

    def __init__(self, model: ReidModel, settings: ExportSettings) -> None:
        super().__init__(model, settings)
        self.student.mean.zero_()
        self.student.std.fill_(1)


class Damaged(Graph):
    """A graph with a weight that is not a number."""

    def __init__(self, model: ReidModel, settings: ExportSettings) -> None:
        super().__init__(model, settings)
        self.student.neck.weight[0] = torch.nan


@pytest.mark.parametrize("wrong", [Twice, Never, Damaged])
def test_a_file_that_does_not_compute_the_model_is_not_written(
    model: ReidModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: type[Graph]
) -> None:
    monkeypatch.setattr(exporting, "Graph", wrong)
    out = tmp_path / "out"
    before = {"model.pt2": "an earlier file", "export.json": '{"version": 1, "files": {}, "outputs": {}}'}
    if wrong is Twice:
        out.mkdir()
        for name, text in before.items():
            (out / name).write_text(text)
    with pytest.raises(InputError, match="does not compute what the model computes: cosine") as error:
        export(model, ExportSettings(timing=0), {"torch_export": TorchExport()}, out)
    assert "\n" not in str(error.value)
    left = {path.name: path.read_text() for path in out.iterdir()} if out.exists() else None
    assert left == (before if wrong is Twice else None)


@pytest.mark.parametrize("name", ["model.pt2", "export.json"])
@pytest.mark.parametrize("text", ["mine", "{}", "[]"])
def test_a_file_that_was_not_exported_is_not_written_over(
    model: ReidModel, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"holds {name} and no export\.json that says it was exported"):
        export(model, ExportSettings(timing=0), {"torch_export": TorchExport()}, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: text}


@pytest.mark.parametrize("name", ["model.pt2", "export.json", ".unfinished"])
def test_nothing_is_exported_through_a_link(model: ReidModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=f"out/{name} is a link"):
        export(model, ExportSettings(timing=0), {"torch_export": TorchExport()}, tmp_path / "out")
    assert not list((tmp_path / "precious").iterdir())


def test_a_folder_in_use_is_refused(model: ReidModel, tmp_path: Path) -> None:
    with (
        holding(tmp_path / "out", "exports") as holder,
        pytest.raises(InputError, match=rf"in use: process {holder} .*exports"),
    ):
        export(model, ExportSettings(timing=0), {"torch_export": TorchExport()}, tmp_path / "out")


FULL = """
import sys
from pathlib import Path
import clip3dreid
from clip3dreid.config.hydra import explained
from clip3dreid.export.formats import Onnx, TorchExport
from clip3dreid.export.run import export
from clip3dreid.export.settings import ExportSettings
with explained():
    formats = {"onnx": Onnx(), "torch_export": TorchExport()}
    export(clip3dreid.load(sys.argv[1]), ExportSettings(timing=0), formats, Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 100_000, 800_000, 1_000_000])
def test_a_disk_that_fills_up_for_real_is_one_line_and_leaves_the_earlier_files(
    saved: Path, tmp_path: Path, leave: int
) -> None:
    """In a process of its own: a writer of torch's would end it."""
    with small_disk(tmp_path / "disk", 8000) as disk:
        (disk / "out").mkdir()
        before = {"model.pt2": "an earlier file", "export.json": '{"version": 1, "files": {}, "outputs": {}}'}
        for name, text in before.items():
            (disk / "out" / name).write_text(text)
        filler = fill(disk, leave=leave)
        command = [sys.executable, "-c", FULL, str(saved), str(disk / "out")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 2, done.stderr
        assert "No space left on device" in done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert {path.name: path.read_text() for path in (disk / "out").iterdir()} == before
        filler.unlink()
        assert subprocess.run(command, capture_output=True, timeout=PATIENCE_S).returncode == 0


def test_a_file_that_says_another_thing_than_it_does_is_not_written(model: ReidModel, tmp_path: Path) -> None:
    class Liar(TorchExport):
        def write(self, program: Any, contract: Any, path: Path) -> dict[str, Any]:
            outside = {"normalise": "outside", "mean": STUDENT["mean"], "std": STUDENT["std"]}
            return super().write(program, contract | outside, path)

    with pytest.raises(InputError, match="says another thing of itself"):
        export(model, ExportSettings(timing=0), {"torch_export": Liar()}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_takes_one_size_of_batch_is_not_written(model: ReidModel, tmp_path: Path) -> None:
    class Fixed(TorchExport):
        def open(self, path: Path, threads: int) -> Opened:
            opened = super().open(path, threads)

            def run(pictures: np.ndarray) -> dict[str, np.ndarray]:
                if len(pictures) != 1:
                    raise RuntimeError("expected 1,\ngot more")
                return opened.run(pictures)

            return Opened(run, opened.contract)

    with pytest.raises(
        InputError, match=r"does not take batches of \(1, 2, 5\) pictures: expected 1, got more;"
    ):
        export(model, ExportSettings(timing=0), {"torch_export": Fixed()}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def composed() -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("export", ["checkpoint=a", "out=b"])


def test_defaults_of_the_code_are_those_of_the_yaml() -> None:
    cfg = composed()
    assert list(cfg.format) == list(cfg.formats)
    fields = {field.name for field in dataclasses.fields(ExportSettings)}
    assert fields <= set(cfg)
    assert objects.settings(ExportSettings, cfg) == ExportSettings()
    assert {name: type(instantiate(node)) for name, node in cfg.formats.items()} == {
        "onnx": Onnx,
        "torch_export": TorchExport,
    }
    assert cfg.formats.onnx.opset == inspect.signature(Onnx).parameters["opset"].default


def test_the_command_writes_files_and_prints_a_table(
    invoke: Command, saved: Path, ltcc_root: Path, tmp_path: Path
) -> None:
    done = invoke("export", f"checkpoint={saved}", "out=x", f"pictures={ltcc_root}", "timing=0.01")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "x" / "export.json").read_text())
    assert [file["file"] for file in record["files"].values()] == ["model.onnx", "model.pt2"]
    for file in record["files"].values():
        assert file["pictures"] == 8 + 32
        assert (tmp_path / "x" / file["file"]).is_file()
        assert file["file"] in done.stdout
    for times in record["milliseconds_per_picture"].values():
        assert list(times) == ["torch", "onnx", "torch_export"]
        assert all(value > 0 for value in times.values())
    assert list(record["milliseconds_per_picture"]) == ["1", "32"]
    assert record["checkpoint"] == str(saved)
    assert record["environment"]["packages"]["torch"]
    assert "M parameters" in done.stdout
    # Notices of the exporter stay off the terminal.
    assert "torchvision" not in done.stdout + done.stderr
    assert "constant folding" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=missing"], "missing is not there; give a run's folder"),
        (["format=tflite"], "format=tflite is unknown; choose onnx or torch_export"),
        (["format=[]"], "no format"),
        (["outputs=[words]"], "outputs[0]=words is unknown; choose embedding or joint"),
        (["outputs=[]"], "outputs must name at least one"),
        (["outputs=[joint,joint]"], "each once"),
        (["normalise=twice"], "normalise=twice is unknown; choose inside or outside"),
        (["input=float16"], "input=float16 is unknown; choose float32 or uint8"),
        (["flip=maybe"], "flip=maybe is unknown; choose true or false"),
        (["normalise=outside", "input=uint8"], "bytes cannot be normalised outside"),
        (["formats.onnx.opset=17"], "opset=17 is not supported; give 18 to 25"),
        (["timing=-1"], "timing=-1 must be a number, 0 or more"),
        (["threads=0"], "threads=0 must be a whole number, 1 or more"),
        (["pictures=missing"], "pictures=missing is no folder"),
        (["pictures=empty"], "pictures=empty holds no pictures"),
        (["pictures=broken"], "cannot read the picture broken/a.png"),
        (["out=file/below"], "cannot write file/below"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    invoke: Command, saved: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    (tmp_path / "file").write_text("a file")
    done = invoke("export", f"checkpoint={saved}", "out=x", *overrides)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_model_without_the_teachers_space_has_no_joint(invoke: Command, tmp_path: Path) -> None:
    torch.manual_seed(1)
    card = {"version": 1, "student": STUDENT, "height": HEIGHT, "width": WIDTH, "data": []}
    ReidModel(instantiate(STUDENT), card, {}).save_pretrained(tmp_path / "plain")
    done = invoke("export", "checkpoint=plain", "out=x", "outputs=[embedding,joint]")
    assert done.returncode == 2
    assert "outputs: this model has no joint, which the loss term loss.local" in done.stderr


def test_without_the_packages_the_extra_is_named(
    invoke: Command, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without_onnx(name: str, package: str | None = None) -> Any:
        return None if name.startswith("onnx") else find_spec(name, package)

    monkeypatch.setattr("importlib.util.find_spec", without_onnx)
    done = invoke("export", f"checkpoint={saved}", "out=x")
    assert done.returncode == 2
    assert "needs onnx, onnxscript, onnxruntime; pip install 'clip3dreid[onnx]'" in done.stderr


# model_type or class of a backbone: what makes it tiny, and a size of pictures with a grid unlike its own.
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
AVERAGE = {"_target_": "clip3dreid.model.pooling.Average"}
TINY: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "vit": (VIT, (128, 64)),
    "clip_vision_model": (VIT, (112, 224)),
    "dinov2": ({**VIT, "mlp_ratio": 2}, (126, 56)),
    "swin": ({"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}, (128, 64)),
    "convnext": ({"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 2, 1]}, (128, 64)),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, (128, 64)),
    "ResNet": ({"width": 8}, (HEIGHT, WIDTH)),
    "ClipResNet": ({"width": 8}, (HEIGHT, WIDTH)),
    "OSNet": ({"width": 4}, (HEIGHT, WIDTH)),
    "VisionTransformer": ({"channels": 16, "depth": 2, "heads": 2}, (128, 64)),
    "TinyViT": ({"widths": [4, 8, 8, 12], "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 3]}, (128, 64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "model/student").glob("*.yaml")))
def test_every_student_can_be_exported_to_every_format(name: str, tmp_path: Path) -> None:
    student: Any = OmegaConf.to_container(conftest.student_config(name).student)
    backbone = student["backbone"]
    shape = backbone.get("config", backbone)
    changes, size = TINY[shape.get("model_type") or backbone["_target_"].rpartition(".")[2]]
    shape |= changes
    if student["pooling"]["_target_"].endswith(".WeighedPositions"):
        # Weights of places fit one size of pictures.
        size = (224, 224)
    if "channels" in student["pooling"]:
        student["pooling"]["channels"] = instantiate({**student, "pooling": AVERAGE}).channels
    model = made(student, size)
    formats = {"onnx": Onnx(), "torch_export": TorchExport()}
    exported = export(model, ExportSettings(outputs=BOTH, timing=0), formats, tmp_path)
    for file in exported.files.values():
        assert file.parity.cosine > 1 - 1e-6
        assert file.parity.relative < 1e-4


AP3D = {
    "_target_": "clip3dreid.model.video.ClipResNet",
    **{"time": "ap3d", "non_local": True, "width": 4},
}


@pytest.mark.parametrize(
    ("student", "flip"),
    [
        (OF_CLIPS, False),
        pytest.param(OF_CLIPS | {"backbone": AP3D, "time": "attention"}, True, marks=pytest.mark.slow),
    ],
)
def test_a_student_of_clips_takes_clips_in_its_files_which_say_so(
    student: dict[str, Any], flip: bool, tmp_path: Path
) -> None:
    model = made(student)
    settings = ExportSettings(outputs=BOTH, timing=0, flip=flip)
    done = export(model, settings, {"onnx": Onnx(), "torch_export": TorchExport()}, tmp_path)
    assert done.contract["clips"] == {"frames": FRAMES, "stride": 2}
    assert all(file.parity.pictures == 8 for file in done.files.values())
    for count in (1, 4):
        clips = noise(count * FRAMES).reshape(count, FRAMES, 3, HEIGHT, WIDTH).astype(np.float32) / 255
        clips[:, 1] = 1 - clips[:, 0]  # frames that differ much, whose order counts
        images = torch.from_numpy(clips)
        with torch.no_grad():
            views = [images, *([images.flip(-1)] if flip else [])]
            wanted = sum(model.student(view).embedding for view in views)
            turned = model.student(images.flip(1)).embedding
        for kind in ("model.onnx", "model.pt2"):
            found = opened(tmp_path, kind)(clips)
            np.testing.assert_allclose(found["embedding"], wanted.numpy(), rtol=1e-3, atol=1e-4)
            assert found["joint"].shape == (count, JOINT)
        across = "time" in student["backbone"]
        assert torch.allclose(turned, model.student(images).embedding, atol=1e-5) != across
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", FRAMES, 3, HEIGHT, WIDTH]
    for kind in ("model.onnx", "model.pt2"):
        with pytest.raises(InputError, match=f"takes clips of {FRAMES} frames, .* give the run"):
            load(tmp_path / kind, network={"output": "embedding"})


def test_a_reduced_embedding_goes_through_saving_loading_and_files(tmp_path: Path) -> None:
    model = made({**STUDENT, "neck_dim": 12})
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.widths["embedding"] == again.student.width == 12
    pictures = torch.from_numpy(noise(3)) / 255
    assert torch.equal(again(pictures).embedding, model(pictures).embedding)
    files = export(again, ExportSettings(outputs=BOTH, timing=0), {"onnx": Onnx()}, tmp_path / "files").files
    assert files["onnx"].parity.cosine > 1 - 1e-6
    found = opened(tmp_path / "files", "model.onnx")(pictures.numpy())
    assert found["embedding"].shape == (3, 12)


@pytest.mark.parametrize("flip", [True, False])
def test_a_feature_of_several_parts_is_inside_the_file_which_says_so(
    model: ReidModel, tmp_path: Path, flip: bool
) -> None:
    heads = model.heads.state_dict() | {
        "teacher.weight": torch.randn(5, D, generator=torch.Generator().manual_seed(2)),
        "teacher.bias": torch.ones(5),
        "shape.weight": torch.randn(3, D, generator=torch.Generator().manual_seed(3)),
        "shape.bias": torch.zeros(3),
        "shape.usual": torch.tensor([1.0, 2, 3]),
        "shape.spread": torch.tensor([0.5, 0, 2]),
    }
    body = {"name": "another", "sha256": "0" * 64, "num_betas": 3}
    whole = ReidModel(model.student, model.card | {"body": body}, heads)
    weights = {"embedding": 1.0, "teacher": 0.5, "joint": 0.25, "betas": 2.0}
    settings = ExportSettings(outputs=BOTH, feature=as_feature(weights), flip=flip, timing=0)
    formats = {"onnx": Onnx(), "torch_export": TorchExport()}
    exported = export(whole, settings, formats, tmp_path / "out")
    assert exported.contract["feature"] == weights
    assert exported.contract["outputs"] == {"joint": JOINT, "embedding": D + 5 + JOINT + 2}
    pictures = noise(3, seed=9)
    expected = whole.embed(torch.tensor(pictures), flip=flip, feature=weights).numpy()
    for kind in ("model.onnx", "model.pt2"):
        found = opened(tmp_path / "out", kind)(pictures.astype(np.float32) / 255)["embedding"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_part_that_the_model_has_not_learnt_is_refused_before_anything_is_written(
    model: ReidModel, tmp_path: Path
) -> None:
    settings = ExportSettings(feature=as_feature(["embedding", "betas"]), timing=0)
    with pytest.raises(InputError, match=r"feature=embedding \+ betas: this model does not know betas"):
        export(model, settings, {"onnx": Onnx()}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
