"""What a recipe needs on this disk: for each thing its place, its size, whether it is there, and how it is got."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.folder import options
from clip3dreid.config.objects import check_data_roots, no_data
from clip3dreid.config.signatures import class_names
from clip3dreid.errors import InputError

THERE, MISSING, NOT_GIVEN = "there", "missing", "not given"
# Functions that read official body files -> the option of the group `body`, and where the files come from.
_OFFICIAL = {
    "clip3dreid.body.official.load_smpl": ("smpl", "https://smpl.is.tue.mpg.de"),
    "clip3dreid.body.official.load_smplx": ("smplx", "https://smpl-x.is.tue.mpg.de"),
}
# Teachers that embed pictures and no texts -> what their files are, the package that reads them, and its extra.
_IMAGES = "clip3dreid.model.image_teacher"
_IMAGE_TEACHERS = {
    f"{_IMAGES}.OnnxTeacher": ("FILE.onnx", "onnxruntime", "onnx"),
    f"{_IMAGES}.OpenVinoTeacher": ("FILE.xml", "openvino", "openvino"),
    f"{_IMAGES}.TransformersTeacher": ("FOLDER", "transformers", None),
}
_BY_HAND = "# "
_ENTRY = {"weight", "start_epoch", "warmup_epochs", "term"}


class Item(NamedTuple):
    """One thing that a recipe needs."""

    what: str
    key: str
    """Key of the config that says where it lies."""
    place: str
    """As the config has it; empty where it says nothing."""
    state: str
    """`there …`, or what is wrong with it."""
    megabytes: float | None = None
    """10^6 bytes: on this disk, or of what will be got; None where nobody can say."""
    get: str | None = None
    """The command that gets it; after `# ` what is done by hand; None where nothing needs to be done."""

    @property
    def problem(self) -> str:
        """Return what is wrong, for a message."""
        return f"{self.what}{self.place and ' '}{self.place} ({self.key}) is {self.state}"


def checklist(cfg: DictConfig, *, sums: bool = False) -> list[Item]:
    """Look for everything that a training needs; nothing is read or downloaded.

    Args:
        cfg: `conf/train.yaml` or `conf/weights.yaml`, composed.
        sums: compare the student's file with its checksum, which reads all of it.

    Returns:
        Student, teacher, labels, bodies, the body's file and data sets: what the losses need of these.

    Raises:
        InputError: if the losses' entries are wrong.
    """
    wanted = needed(cfg.loss)
    items = list(_student(cfg, sums))
    if wanted & {"TextTargets", "TeacherSpace"}:
        items += _teacher(cfg.model.get("teacher"), words="TextTargets" in wanted)
    if "TextTargets" in wanted and cfg.labels.path is not None:
        items += [_own("labels", "labels.path", cfg.labels.path, "clip3dreid label makes them")]
    if "BodySpace" in wanted:
        items += [_bodies(cfg), *_body(cfg.body)]
    if "ShapeTargets" in wanted:
        items += [_shape_teacher(cfg.model.get("shape_teacher"))]
    return [*items, *_data(cfg)]


def needed(losses: DictConfig) -> set[str]:
    """Return what the losses of a config need, by the names of `types.Need`.

    It is read in their sources, without loading torch; where these do not say, the losses themselves are asked.

    Raises:
        InputError: if an entry is wrong.
    """
    found: set[str] = set()
    for entry in losses.values():
        names = None
        if _is_plain(entry) and isinstance(entry.weight, int | float):
            names = class_names(str(entry.term.get("_target_")), "needs") if entry.weight >= 0 else None
        if names is None:
            from clip3dreid.loss.weighted import needs

            return {kind.__name__ for kind in needs(instantiate(losses))}
        if entry.weight > 0:
            found |= names
    return found


def _is_plain(entry: Any) -> bool:
    """Return whether a loss has the keys that it needs, and no share, which takes all losses to be checked."""
    return isinstance(entry, DictConfig) and set(entry) - {"share"} == _ENTRY and entry.get("share") is None


def check_files(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a training that lacks something before anything is read, and say all that is missing at once.

    Where data alone are missing their reader says so: it knows the names, and looks for folders alike.

    Args:
        cfg: `conf/train.yaml`, composed.
        overrides: what it was composed from, for the message.

    Raises:
        InputError: naming each thing that is missing, and how all of it is got.
    """
    if no_data(cfg):
        return
    missing = [item for item in checklist(cfg) if item.get is not None]
    if all(item.key.startswith("data") for item in missing):
        check_data_roots(cfg)
        return
    problems = "; ".join(item.problem for item in missing)
    if len(missing) == 1:
        get = str(missing[0].get)
        raise InputError(
            f"{problems}; {get.removeprefix(_BY_HAND) if get.startswith(_BY_HAND) else f'get it: {get}'}"
        )
    # Of a resumed run: where it lies is no part of what it needs.
    recipe = [one for one in overrides if not one.startswith(("hydra.", "resume="))]
    command = shlex.join(["clip3dreid", "weights", *recipe])
    raise InputError(f"{len(missing)} things are missing: {problems}. How to get all of them: {command}")


def commands(items: Sequence[Item]) -> list[str]:
    """Return what gets everything that is missing, nothing twice, commands first."""
    found = dict.fromkeys(item.get for item in items if item.get is not None)
    return sorted(found, key=lambda line: line.startswith(_BY_HAND))


def to_get(items: Sequence[Item]) -> float:
    """Return the megabytes that `commands` get, as far as they are known: once where two things lie in one folder."""
    return sum({item.get: item.megabytes or 0.0 for item in items if item.get is not None}.values())


def own_command(fetch: str | None, place: str) -> str | None:
    """Return the command on record that gets what lies at `place`, for a shell; the user's own files have none."""
    alone = rf"(?<!\S){re.escape(place)}(?!\S)"
    if fetch is None or not re.search(alone, fetch):
        return None
    return fetch.replace(place, shlex.quote(place))


def weights_state(path: Path, sha256: str | None) -> str:
    """Return `missing`, `incomplete …`, `DAMAGED …`, or `there`, with a word on the checksum.

    Args:
        path: a file of weights, or the folder of a model of `transformers`.
        sha256: of the file, hexadecimal; None where nobody has noted it.
    """
    if path.is_dir():
        weights = any(path.glob("*.safetensors")) or (path / "pytorch_model.bin").is_file()
        parts = {"config.json": (path / "config.json").is_file(), "weights": weights}
        lacking = [name for name, there in parts.items() if not there]
        if lacking:
            return f"incomplete: no {' and no '.join(lacking)}"
    elif not path.is_file():
        return MISSING
    elif sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{THERE}, checksum right" if digest == sha256 else "DAMAGED, checksum wrong"
    return f"{THERE}, checksum not known"


def megabytes(path: Path) -> float | None:
    """Size of a file, or of the files in a folder; None where there is nothing."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6 if files else None


def _own(what: str, key: str, place: Any, advice: str) -> Item:
    """Return the entry of a file that only the user can bring."""
    path = Path(str(place)).expanduser()
    if path.exists():
        return Item(what, key, str(place), THERE, megabytes(path))
    return Item(
        what,
        key,
        str(place),
        MISSING,
        None,
        f"{_BY_HAND}{what}: give {key}=PATH of one that is there; {advice}",
    )


def _student(cfg: DictConfig, sums: bool) -> Iterator[Item]:
    if cfg.init_from is not None:
        yield _own("student", "init_from", cfg.init_from, "a run's folder, a checkpoint or a saved model")
        return
    model, key = cfg.model, "model.pretrained"
    if "pretrained" not in model:
        get = f"{_BY_HAND}student: its YAML says nothing of {key}; give a file, or null to start from nothing"
        yield Item("student", key, "", NOT_GIVEN, None, get)
    elif model.pretrained is None:
        yield Item("student", key, "", "from scratch: nothing to get")
    elif (fetch := own_command(model.get("fetch"), str(model.pretrained))) is None:
        yield _own("student", key, model.pretrained, "null starts from nothing")
    else:
        place, path = str(model.pretrained), Path(model.pretrained).expanduser()
        state = weights_state(path, model.get("sha256") if sums else None)
        if state.startswith(THERE):
            yield Item("student", key, place, state, megabytes(path))
            return
        damaged = f"rm {shlex.quote(place)} && " if state.startswith("DAMAGED") else ""
        yield Item("student", key, place, state, model.get("megabytes"), damaged + fetch)


def _teacher(node: DictConfig | None, *, words: bool) -> Iterator[Item]:
    from clip3dreid.model.places import PACKAGED, packaged
    from clip3dreid.model.teacher_files import lacking, on_hub

    key = "model.teacher.path"
    if node is None:
        names = ", ".join(options("model/teacher"))
        get = f"{_BY_HAND}this method needs a teacher: give model/teacher=NAME; NAME is one of {names}"
        yield Item("teacher", "model/teacher", "", "not chosen", None, get)
        return
    if node.get("_target_") in _IMAGE_TEACHERS:
        yield from _image_teacher(node, words)
        return
    what, place, fetch = f"teacher {node.name}", str(node.path), node.get("fetch")
    if place.startswith(PACKAGED):
        yield Item(what, key, place, f"{THERE}, in the package", megabytes(packaged(place)))
        return
    if on_hub(place, fetch):
        yield Item(
            what, key, place, f"{THERE}: downloaded from the hub when it is needed, unless it was before"
        )
        return
    folder, command = Path(place).expanduser(), own_command(fetch, place)
    absent = lacking(folder)
    if not absent:
        yield Item(what, key, place, THERE, megabytes(folder))
    elif command is None:
        advice = f"copy all files of the published model there, or give {key}=FOLDER"
        state = f"incomplete: no {' and no '.join(absent)}" if folder.is_dir() else MISSING
        yield Item(what, key, place, state, None, f"{_BY_HAND}{what}: {advice}")
    else:
        state = f"incomplete: no {' and no '.join(absent)}" if folder.is_dir() else MISSING
        yield Item(what, key, place, state, node.get("megabytes"), command)
    pieces = (folder / "spiece.model").is_file() or (command is not None and "spiece.model" in command)
    if pieces and not (folder / "tokenizer.json").is_file():
        packages = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if packages:
            get = "pip install sentencepiece protobuf"
            yield Item(
                f"package {' and '.join(packages)} of the tokenizer", key, "", "not installed", None, get
            )


def _shape_teacher(node: DictConfig | None) -> Item:
    from clip3dreid.model.checked_folder import CARD
    from clip3dreid.model.places import PACKAGED, packaged

    key = "model.shape_teacher.path"
    if node is None or "path" not in node:
        get = f"{_BY_HAND}this method needs a shape teacher: give model/shape_teacher=NAME; NAME is one of "
        return Item(
            "shape teacher",
            "model/shape_teacher",
            "",
            "not chosen",
            None,
            get + ", ".join(options("model/shape_teacher")),
        )
    what, place = f"shape teacher {node.name}", str(node.path)
    folder = packaged(place) if place.startswith(PACKAGED) else Path(place).expanduser()
    if not (folder / CARD).is_file():
        get = f"{_BY_HAND}{what}: make one with clip3dreid pretrain_shape_teacher, and give {key}=FOLDER"
        return Item(what, key, place, MISSING, None, get)
    there = f"{THERE}, in the package" if place.startswith(PACKAGED) else THERE
    return Item(what, key, place, there, megabytes(folder))


def _image_teacher(node: DictConfig, words: bool) -> Iterator[Item]:
    what, key = f"teacher {node.name}", "model.teacher.path"
    files, package, extra = _IMAGE_TEACHERS[node._target_]
    if words:
        get = (
            f"{_BY_HAND}give one that has, such as model/teacher=clip_vit_b16, or train without words: "
            "loss=[identity,global]"
        )
        yield Item(what, "model/teacher", "", "without a text tower, and a loss asks it for words", None, get)
    if node.path is None:
        yield Item(what, key, "", NOT_GIVEN, None, f"{_BY_HAND}{what}: give {key}={files}")
    else:
        place, path = str(node.path), Path(str(node.path)).expanduser()
        state = weights_state(path, None) if path.is_dir() or not path.exists() else THERE
        if path.suffix == ".xml" and path.is_file() and not path.with_suffix(".bin").is_file():
            state = f"incomplete: no {path.with_suffix('.bin').name}"
        if state.startswith(THERE):
            yield Item(what, key, place, THERE, megabytes(path))
        else:
            get = (
                own_command(node.get("fetch"), place) or f"{_BY_HAND}{what}: give {key}={files} that is there"
            )
            yield Item(what, key, place, state, node.get("megabytes"), get)
    if not _installed(package):
        yield Item(f"package {package}", key, "", "not installed", None, f"pip install 'clip3dreid[{extra}]'")


def _bodies(cfg: DictConfig) -> Item:
    from clip3dreid.data.bodies import COMMAND, COMMAND_MB
    from clip3dreid.data.truth_file import TRUTH

    what, key, place = "textureless bodies", "bodies.root", str(cfg.bodies.root)
    folder = Path(place).expanduser()
    if (folder / TRUTH).is_file():
        return Item(what, key, place, THERE)
    command = COMMAND.format(root=shlex.quote(place)) + _option(cfg.body)
    return Item(what, key, place, MISSING, COMMAND_MB, command)


def _option(body: DictConfig) -> str:
    """Return what makes `synthesize` use the body that the recipe uses; nothing for its own default."""
    path = str(body.path)
    if body.get("_target_") in _OFFICIAL:
        file = "FILE" if body.path is None else shlex.quote(path)
        return f" body={_OFFICIAL[body._target_][0]} body.path={file}"
    return "" if path == "anny_light" else f" body=anny body.path={shlex.quote(path)}"


def _body(body: DictConfig) -> Iterator[Item]:
    from clip3dreid.body.smpl import SHIPPED, shipped

    key = "body.path"
    if str(body.path) in SHIPPED:
        name = str(body.path)
        yield Item("body", key, name, f"{THERE}, in the package", megabytes(shipped(name)))
        return
    official = _OFFICIAL.get(str(body.get("_target_")))
    if body.path is None:
        place = "" if official is None else f", from {official[1]} after registration (non-commercial)"
        yield Item("body's file", key, "", NOT_GIVEN, None, f"{_BY_HAND}body: give {key}=FILE{place}")
    else:
        yield _own("body's file", key, body.path, "body=anny_light needs none")
    if official is not None and not _installed("smplx"):
        get = "pip install 'clip3dreid[smpl]'"
        yield Item("package smplx (non-commercial research)", "body", "", "not installed", None, get)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is a part of
        return False


def _data(cfg: DictConfig) -> Iterator[Item]:
    if no_data(cfg):
        return
    sets = {"data": cfg.data, **{f"data.also.{name}": node for name, node in cfg.data.also.items()}}
    for prefix, node in sets.items():
        what, key = f"data {node.name}", f"{prefix}.root"
        place = "" if OmegaConf.is_missing(node, "root") else str(node.root)
        if place and Path(place).expanduser().exists():
            yield Item(what, key, place, THERE)
            continue
        get = f"{_BY_HAND}{what}: docs/datasets.md says where it comes from; give its folder as {key}=FOLDER"
        if (fetch := node.get("fetch")) is not None:
            get = str(fetch).format(root=shlex.quote(place) if place else "FOLDER")
        yield Item(what, key, place, MISSING if place else NOT_GIVEN, None, get)
