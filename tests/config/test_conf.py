"""Every YAML composes, and every node fits its target: a mistyped key fails here, not in the third hour."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.hydra import register
from clip3dreid.config.needs import print_needs
from clip3dreid.model.frozen import FrozenNetwork
from clip3dreid.model.teacher import NODE_KEYS

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))

CAL_OF_PICTURES = {
    "ltcc": ("cal", 8),
    "prcc": ("cal", 8),
    "vc_clothes": ("cal", 8),
    "deepchange": ("cal", 4),
    "last": ("cal_triplet", 4),
}
CAL = {**CAL_OF_PICTURES, "ccvid": ("cal", 4)}
"""Experiments with a score of CAL in their header: the method that its code trains there, and pictures a person."""


def composed(root: str, *overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(root, [*overrides], return_hydra_config=True)
    # Hydra fills these in at run time; here any folder will do.
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = "/nowhere"
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


@cache
def experiment_config(experiment: str) -> DictConfig:
    """An experiment as it is, shared and so never to be changed; to compose takes a quarter of a second."""
    return composed("train", f"+experiment={experiment}", "data.root=/nowhere")


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes with a `_target_`, with their place."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, below in value.items():
            yield from nodes(below, f"{path}.{key}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from nodes(below, f"{path}[{index}]")


def check_bindings(cfg: DictConfig) -> int:
    plain = OmegaConf.to_container(cfg, resolve=True)
    count = 0
    for path, node in nodes(plain):
        target = get_object(node["_target_"])
        keys = {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}
        if inspect.isclass(target) and issubclass(target, FrozenNetwork):
            keys = {key: value for key, value in keys.items() if key not in NODE_KEYS}
        signature = inspect.signature(target)
        try:
            if node.get("_partial_"):
                signature.bind_partial(**keys)
            else:
                signature.bind(**keys)
        except TypeError as error:
            pytest.fail(f"{path}: {node['_target_']}: {error}")
        if node["_target_"] == "hydra.utils.get_method":
            assert callable(get_method(node["path"]))
        count += 1
    return count


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if path.stem != "base")


def pairs() -> Iterator[Any]:
    """Every experiment with every method; quick are each with one of the other and those that a header names."""
    for method in options("method"):
        for experiment in EXPERIMENTS:
            named = CAL.get(experiment, ("",))[0] == method
            quick = experiment == "ltcc" or method == "clip3dreid" or named
            yield pytest.param(experiment, method, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("experiment", "method"), pairs())
def test_every_experiment_with_every_method_composes_binds_and_says_what_it_needs(
    experiment: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed("train", f"+experiment={experiment}", f"method={method}", "data.root=/nowhere")
    assert check_bindings(cfg) > 10
    print_needs(cfg, [f"+experiment={experiment}", f"method={method}", "data.root=/nowhere"])
    shown = capsys.readouterr().out
    assert "/nowhere" in shown
    assert f"Then: clip3dreid train +experiment={experiment} method={method}" in shown


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("model/student", "loss", "optimizer", "trainer", "logger", "datamodule", "protocol")
        for option in options(group)
    ],
)
def test_every_option_of_every_group_composes_and_binds(group: str, option: str) -> None:
    cfg = composed("train", "data=ltcc", "data.root=/nowhere", f"{group}={option}")
    assert check_bindings(cfg) > 10


CHOSEN = "chosen by the user"
CHOICES = {
    "datamodule": "datamodule",
    "model/student": "model",
    "model/teacher": "model.teacher",
    "model/shape_teacher": "model.shape_teacher",
    "language": "language",
    "body": "body",
    "optimizer": "optimizer",
    "trainer": "trainer",
    "callbacks": "callbacks",
    "logger": "logger.mine",
    "world": "world",
    "layout": "layout",
    "engine": "engine",
    "loss": "loss.local",
}
"""Groups that a user may choose from with YAML of his own -> the node that it makes."""


def every_key(files: list[Path]) -> Any:
    """What these files set, all leaves with one value that no config of ours has."""

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: marked(below) for key, below in value.items() if key != "defaults"}
        return CHOSEN

    # Nested keys win over plain values, whichever comes first.
    merged: dict[str, Any] = {}

    def add(into: dict[str, Any], node: dict[str, Any]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                below = into.get(key)
                into[key] = below if isinstance(below, dict) else {}
                add(into[key], value)
            elif not isinstance(into.get(key), dict):
                into[key] = value

    for file in files:
        add(merged, marked(OmegaConf.to_container(OmegaConf.load(file))))
    return merged


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A user's folder with an option `mine` in every group, and what each must result in."""
    folder, wanted = tmp_path_factory.mktemp("mine"), {}
    for group, node in CHOICES.items():
        pattern = "local*.yaml" if group == "loss" else "*.yaml"
        files = sorted((conf_dir() / group).glob(pattern))
        if group == "trainer":
            # Of the whole config, not of the group alone: it is a mode, tested by itself.
            files = [file for file in files if file.stem != "debug"]
        wanted[group] = every_key(files)
        (folder / group).mkdir(parents=True)
        text = f"# @package {node}\n{OmegaConf.to_yaml(OmegaConf.create(wanted[group]))}"
        (folder / group / "mine.yaml").write_text(text, encoding="utf-8")
    return folder, wanted


def check_choices(
    mine: tuple[Path, dict[str, Any]], groups: tuple[str, ...], root: str, *overrides: str
) -> None:
    """Asserts that every group is exactly what the user chose, whatever else was composed."""
    folder, wanted = mine
    chosen = [f"{group}={'[mine]' if group in ('logger', 'loss') else 'mine'}" for group in groups]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(root, [f"hydra.searchpath=[file://{folder}]", *overrides, *chosen])
    for group in groups:
        found = OmegaConf.to_container(OmegaConf.select(cfg, CHOICES[group]), resolve=False)
        assert isinstance(found, dict)
        if group == "model/student":
            # The teachers, of other groups, lie in the same node.
            found.pop("teacher", None)
            found.pop("shape_teacher", None)
        assert found == wanted[group], group


TRAINING = (
    "datamodule", "model/student", "model/teacher", "model/shape_teacher", "language", "body", "optimizer", "trainer",
    "callbacks", "logger",
)  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_experiment_changes_anything_in_what_the_user_chose(
    experiment: str, mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, TRAINING, "train", f"+experiment={experiment}")


@pytest.mark.parametrize("method", options("method"))
def test_no_method_changes_anything_in_what_the_user_chose(
    method: str, mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, (*TRAINING, "loss"), "train", "data=ltcc", f"method={method}")


@pytest.mark.parametrize("recipe", options("recipe"))
def test_no_recipe_behind_an_experiment_changes_anything_in_what_the_user_chose(
    recipe: str, mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, (*TRAINING, "loss"), "train", "+experiment=ltcc", f"+recipe={recipe}")


@pytest.mark.parametrize("variant", options("ablation"))
def test_no_variant_of_the_ablation_changes_anything_in_what_the_user_chose(
    variant: str, mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, (*TRAINING, "loss"), "train", "data=ltcc", f"+ablation={variant}")


@pytest.mark.parametrize(
    ("root", "groups", "overrides"),
    [
        ("label", ("model/teacher", "language"), ("data=ltcc",)),
        ("pretrain_teacher", ("language", "optimizer", "trainer", "callbacks", "logger"), ()),
        ("evaluate", ("datamodule", "trainer", "model/student"), ("data=ltcc",)),
        ("extract", ("trainer",), ()),
        ("search", ("engine", "model/teacher"), ()),
        ("synthesize", ("layout", "body", "world", "language"), ()),
    ],
)
def test_no_other_entry_point_changes_anything_in_what_the_user_chose(
    root: str, groups: tuple[str, ...], overrides: tuple[str, ...], mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, groups, root, *overrides)


SHIPPED = ("datamodule=base_recipe", "model/student=vit_b16", "model/teacher=clip_vit_l14", "optimizer=sgd")


@pytest.fixture(scope="module")
def shipped() -> DictConfig:
    """Options that we ship, without any experiment."""
    return composed("train", "data=ltcc", "data.root=/nowhere", *SHIPPED)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_options_that_we_ship_are_the_same_in_every_experiment(
    experiment: str, shipped: DictConfig
) -> None:
    cfg = composed("train", f"+experiment={experiment}", "data.root=/nowhere", *SHIPPED)
    for key in (
        "datamodule",
        "model.student",
        "model.pretrained",
        "model.teacher.path",
        "optimizer.optimizer",
    ):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(shipped, key), key


@pytest.mark.parametrize("experiment", ["demo", "ltcc"])
def test_a_trial_is_the_same_trial_in_every_experiment(experiment: str) -> None:
    cfg = composed("train", f"+experiment={experiment}", "data.root=/nowhere", "trainer=debug")
    assert (cfg.trainer.max_epochs, cfg.trainer.accelerator) == (30, "auto")
    assert cfg.datamodule.overfit_batches == 1


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("root", ["evaluate", "inspect_data"])
def test_every_data_set_composes_under_the_other_entry_points(root: str, data: str) -> None:
    assert check_bindings(composed(root, f"data={data}", "data.root=/nowhere")) > 1


@pytest.mark.parametrize("teacher", options("model/teacher"))
def test_every_teacher_composes_and_binds(teacher: str) -> None:
    cfg = composed("label", "data=ltcc", "data.root=/nowhere", f"model/teacher={teacher}")
    assert cfg.model.teacher.cache == "disk"
    assert cfg.model.teacher.name == teacher
    assert check_bindings(cfg) > 3


@pytest.mark.parametrize("rerank", options("rerank"))
def test_every_re_ranking_composes_and_binds_in_evaluation_and_training(rerank: str) -> None:
    found = [
        composed("evaluate", "data=ltcc", "data.root=/nowhere", f"rerank={rerank}").rerank,
        composed(
            "train", "data=ltcc", "data.root=/nowhere", f"+rerank@retrieval.rerank={rerank}"
        ).retrieval.rerank,
    ]
    assert found[0] == found[1]
    assert check_bindings(found[0]) == 1


@pytest.mark.parametrize("engine", options("engine"))
def test_every_engine_composes_and_binds(engine: str) -> None:
    assert check_bindings(composed("search", f"engine={engine}", "model/teacher=body_clip")) > 2


def test_extraction_and_export_compose_and_bind() -> None:
    assert (
        check_bindings(composed("extract", "checkpoint=a", "data=ltcc", "data.root=/nowhere", "trainer=ddp"))
        > 2
    )
    assert check_bindings(composed("export", "checkpoint=a", "out=b")) == 2


def test_the_training_of_a_teacher_composes_and_binds() -> None:
    cfg = composed("pretrain_teacher", "worlds=/nowhere", "out=run")
    # The vocabulary is handed over by the program.
    del cfg["sentences"]["_target_"]
    assert check_bindings(cfg) > 5


def test_a_second_data_set_joins_by_composition() -> None:
    cfg = composed(
        "train", "data=ltcc", "data.root=/a", "+data@data.also.prcc=prcc", "data.also.prcc.root=/b"
    )
    assert cfg.data.also.prcc.name == "prcc"
    assert check_bindings(cfg) > 10


@cache
def optimizer_config(name: str) -> DictConfig:
    """An option of the group by itself, with what it is made from."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found: DictConfig = compose(overrides=[f"+optimizer={name}"]).optimizer
    return found


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_can_be_trained_with_every_optimizer(experiment: str, optimizer: str) -> None:
    cfg = experiment_config(experiment).copy()
    cfg.optimizer = optimizer_config(optimizer).copy()
    schedule = instantiate(cfg.optimizer.schedule)
    rates = [schedule(epoch) for epoch in range(cfg.epochs)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) == 1
    # The release's steps are small: 0.85 every ten epochs.
    assert rates[-1] < (0.9 if optimizer == "adam_step" else 0.1)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_cites_its_source_command_cost_and_score(experiment: str) -> None:
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    for word in ("paper:", "command:", "cost:", "score:"):
        assert word in text, f"{experiment} lacks `{word}`"
    assert f"+experiment={experiment}" in text


def header(experiment: str) -> str:
    """The comments of an experiment as one line."""
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))


def test_every_override_that_a_header_names_composes() -> None:
    tried: set[tuple[str, str]] = set()
    for experiment in EXPERIMENTS:
        named = re.findall(r"(?<![\w/=])(\+?[a-z][\w./]*)=([\w./|-]+)", header(experiment))
        assert ("+experiment", experiment) in named
        for key, value in ((key, value) for key, values in named for value in values.rstrip(".").split("|")):
            if key not in ("+experiment", "data.root") and (key, value) not in tried:
                composed("train", f"+experiment={experiment}", "data.root=/nowhere", f"{key}={value}")
                tried.add((key, value))
    assert {("method", "cal_triplet"), ("trainer", "debug"), ("data.clothes_from_day", "true")} <= tried


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_sizes_schedule_optimiser_and_cost_of_a_header_are_what_is_composed(experiment: str) -> None:
    text, cfg = header(experiment), experiment_config(experiment)
    if "base recipe: ResNet-50" in text:
        said = re.search(r"base recipe: ResNet-50, (\d+)x(\d+), Adam, (\d+) epochs", text)
        assert said is not None
        assert [int(number) for number in said.groups()] == [
            cfg.datamodule.height,
            cfg.datamodule.width,
            cfg.epochs,
        ]
        assert cfg.model.student.backbone.depth == 50
        assert cfg.optimizer.optimizer["_target_"] == "torch.optim.Adam"
    for size in re.findall(r"\b(\d{2,3}x\d{2,3})\b", text):
        assert size == f"{cfg.datamodule.height}x{cfg.datamodule.width}"
    for epochs in re.findall(r"\b(\d+) epochs", text):
        assert int(epochs) == cfg.epochs
    cost = re.search(r"about (\d+) PFLOP .*\((\d+) epochs x ([\d,]+) pictures x 3 x ([\d.]+) GFLOP\)", text)
    if cost is not None:
        peta, epochs, pictures, giga = (float(number.replace(",", "")) for number in cost.groups())
        assert peta == pytest.approx(epochs * pictures * 3 * giga * 1e9 / 1e15, abs=0.5)
        hour = re.search(r"an hour at (\d+) TFLOP/s", text)
        assert hour is not None
        assert float(hour[1]) == pytest.approx(peta * 1000 / 3600, abs=0.6)
    if cfg.datamodule.clips is not None and "PFLOP" in text:
        cost = re.search(
            r"about (\d+) PFLOP .*\((\d+) epochs x ([\d,]+) pieces x (\d+) frames x 3 x ([\d.]+) GFLOP\).*an hour at "
            r"(\d+) TFLOP/s",
            text,
        )
        assert cost is not None
        peta, epochs, pieces, frames, giga, tera = (
            float(number.replace(",", "")) for number in cost.groups()
        )
        assert (epochs, frames) == (cfg.epochs, cfg.datamodule.clips.frames)
        assert peta == pytest.approx(epochs * pieces * frames * 3 * giga * 1e9 / 1e15, abs=0.5)
        assert tera == pytest.approx(peta * 1000 / 3600, abs=0.6)


def test_every_score_of_cal_names_the_method_that_gives_it() -> None:
    for experiment in EXPERIMENTS:
        score = header(experiment).partition("score:")[2]
        named = re.findall(r"method=(\w+)", score) if "CAL" in score else []
        assert named == ([CAL[experiment][0]] if experiment in CAL else []), experiment


@pytest.mark.parametrize("experiment", CAL_OF_PICTURES)
def test_the_method_beside_a_score_of_cal_composes_the_recipe_of_its_code(experiment: str) -> None:
    method, pictures = CAL[experiment]
    cfg = composed("train", f"+experiment={experiment}", f"method={method}", "data.root=/nowhere")
    losses = ["identity", "clothes_adversarial", *(["triplet"] if method == "cal_triplet" else [])]
    assert list(cfg.loss) == losses
    assert all(entry.weight == 1 and entry.warmup_epochs == 0 for entry in cfg.loss.values())
    assert cfg.loss.identity.term.smoothing == 0.1
    adversarial = cfg.loss.clothes_adversarial
    assert (adversarial.start_epoch, adversarial.term.scale, adversarial.term.epsilon) == (25, 16, 0.1)
    if method == "cal_triplet":
        assert (cfg.loss.triplet.term.margin, cfg.loss.triplet.term.distance) == (0.3, "cosine")
    optimizer = instantiate(cfg.optimizer.optimizer)([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (3.5e-4, 5e-4)
    rates = [instantiate(cfg.optimizer.schedule)(epoch) for epoch in (0, 19, 20, 39, 40, 59)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert (cfg.epochs, cfg.seed) == (60, 1)
    datamodule = cfg.datamodule
    assert (datamodule.height, datamodule.width, datamodule.square, datamodule.sampler) == (
        384,
        192,
        False,
        "chunks",
    )
    # Two processes of 32 there; groups of as many here.
    assert (datamodule.people * datamodule.pictures, datamodule.pictures) == (64, pictures)
    student = cfg.model.student
    assert (student.ghost_group, student.neck_bias, student.get("neck", True)) == (32, True, True)
    assert (student.backbone.depth, student.backbone.last_stride) == (50, 1)
    assert student.pooling["_target_"].endswith(".MaximumAverage")
    assert (cfg.retrieval.metric, cfg.retrieval.flip, cfg.retrieval.rerank) == ("cosine", True, None)


def test_the_recipe_of_tracklets_is_that_of_the_base_code() -> None:
    cfg = composed("train", "+experiment=ccvid", "method=cal", "data.root=/nowhere")
    assert list(cfg.loss) == ["identity", "clothes_adversarial"]
    assert cfg.loss.identity.term.smoothing == 0
    adversarial = cfg.loss.clothes_adversarial
    assert (adversarial.start_epoch, adversarial.term.scale, adversarial.term.epsilon) == (50, 16, 0.1)
    rates = [instantiate(cfg.optimizer.schedule)(epoch) for epoch in (0, 39, 40, 79, 80, 119, 120, 149)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3])
    assert (cfg.optimizer.optimizer.lr, cfg.optimizer.optimizer.weight_decay) == (3.5e-4, 5e-4)
    datamodule = cfg.datamodule
    assert (datamodule.height, datamodule.width, datamodule.sampler) == (256, 128, "chunks")
    # Two processes of 16 there; groups of as many here.
    assert (datamodule.people * datamodule.pictures, datamodule.pictures) == (32, 4)
    clips = instantiate(datamodule.clips)
    assert (clips.frames, clips.stride, clips.piece, clips.sampling) == (8, 4, 64, "stride")
    view = datamodule.train_view
    assert (view.enlarge_probability, view.flip_probability, view.erase_probability) == (0, 0.5, 0)
    student = cfg.model.student
    assert (student.ghost_group, student.time, student.backbone.depth) == (16, "average", 50)
    assert student.pooling["_target_"].endswith(".Maximum")


def test_sgd_of_the_base_code_is_nesterov_with_steps() -> None:
    cfg = composed("train", "+experiment=last", "optimizer=sgd_base", "data.root=/nowhere")
    optimizer = instantiate(cfg.optimizer.optimizer)([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.SGD
    found = {key: optimizer.defaults[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    assert found == {"lr": 3.5e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    rates = [instantiate(cfg.optimizer.schedule)(epoch) for epoch in (0, 19, 20, 40)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01])


REAL = sorted(set(EXPERIMENTS) - {"body_student", "demo", "pku", "walking"})
"""Experiments whose student starts from published weights."""


@cache
def release_method() -> DictConfig:
    return composed("train", "+experiment=ltcc", "method=clip3dreid_release", "data.root=/nowhere")


@pytest.mark.parametrize("experiment", REAL)
def test_the_recipe_of_the_release_is_the_whole_of_it_over_any_experiment(experiment: str) -> None:
    cfg = composed("train", f"+experiment={experiment}", "+recipe=clip3dreid_release", "data.root=/nowhere")
    assert check_bindings(cfg) > 10
    alone = release_method()
    assert cfg.loss == alone.loss
    assert cfg.model.teacher.cache == "off_erased"
    assert (cfg.model.teacher.name, cfg.model.teacher.view.size) == ("clip_vit_l14", 224)
    optimizer = instantiate(cfg.optimizer.optimizer)([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (3.5e-4, 0)
    schedule = instantiate(cfg.optimizer.schedule)
    rates = [schedule(epoch) for epoch in range(100)]
    assert rates == pytest.approx([0.85 ** (epoch // 10) for epoch in range(100)])
    assert (cfg.epochs, cfg.seed, cfg.evaluate_every) == (100, 42, 5)
    assert (cfg.label_smoothing, cfg.datamodule.clips) == (0.1, None)
    datamodule = cfg.datamodule
    assert (datamodule.height, datamodule.width, datamodule.square) == (224, 224, True)
    assert (datamodule.people * datamodule.pictures, datamodule.pictures, datamodule.sampler) == (
        32,
        8,
        "chunks",
    )
    student = cfg.model.student
    assert student.backbone["_target_"].endswith(".TinyViT")
    assert not student.neck
    mean, deviation = student.mean, student.std
    assert mean == [0.48145466, 0.4578275, 0.40821073]
    fill = [0.4914, 0.4822, 0.4465]
    raw = [m + d * f for m, d, f in zip(mean, deviation, fill, strict=True)]
    assert list(datamodule.train_view.erase_fill) == pytest.approx(raw, abs=1e-4)
    assert (cfg.retrieval.metric, cfg.retrieval.flip) == ("cosine", True)
    assert cfg.data == experiment_config(experiment).data
    assert cfg.run_name == f"{cfg.data.name}_release"


def test_the_command_line_wins_over_a_recipe() -> None:
    cfg = composed(
        "train", "+experiment=ltcc", "+recipe=clip3dreid_release", "data.root=/nowhere", "seed=3", "epochs=7",
        "model/student=resnet18", "method=ce", "optimizer=adam",
    )  # fmt: skip
    assert (cfg.seed, cfg.epochs, list(cfg.loss)) == (3, 7, ["identity"])
    assert cfg.model.student.backbone.depth == 18
    assert cfg.optimizer.optimizer.weight_decay == 5e-4


def test_every_loss_has_a_package_of_its_own() -> None:
    files = {path.stem: path for path in Path(conf_dir() / "loss").glob("*.yaml")}
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        # `local_unbalanced` is a variant of `local`: it may take the other's place, so that both never train at once.
        variant_of = {other for other in files if name.startswith(f"{other}_")}
        assert first in {f"# @package loss.{owner}" for owner in {name} | variant_of}, path.name


GUIDED = ["identity", "local", "global", "shape"]
VARIANTS = {
    "ce": ["identity"],
    "local": ["identity", "local"],
    "global": ["identity", "global"],
    "shape": ["identity", "shape"],
    "local_global": ["identity", "local", "global"],
    "local_shape": ["identity", "local", "shape"],
    "global_shape": ["identity", "global", "shape"],
    "all": GUIDED,
    "local_pull": ["identity", "local"],
    "all_pull": GUIDED,
    "paper": ["identity", "local", "global", "body"],
    "cal": ["identity", "clothes_adversarial"],
    "all_cal": [*GUIDED, "clothes_adversarial"],
    "identity_stream": ["identity", "body_identity"],
}
PULLED = {"local_pull", "all_pull", "paper"}
"""Those with the local term of the paper; the others compare."""
EXCHANGED = {"words": "labels.shuffled", "shapes": "shapes.shuffled", "views": "teacher_shuffled"}
"""What a control exchanges, by the end of its name, and the one key that asks for it."""
EXCHANGES = [name for name in options("ablation") if "_other_" in name]


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() | set(options("ablation")) - set(EXCHANGES)))
def test_every_variant_of_the_ablation_names_itself_and_has_its_losses(variant: str) -> None:
    cfg = composed("train", "data=ltcc", "data.root=/nowhere", f"+ablation={variant}")
    assert cfg.variant == variant
    assert list(cfg.loss) == VARIANTS[variant]
    if "local" in cfg.loss:
        assert cfg.loss.local.term["_target_"].endswith(
            ".LocalAlignment" if variant in PULLED else ".LocalContrast"
        )
    assert not any(OmegaConf.select(cfg, key) for key in (*EXCHANGED.values(), "bodies.shuffled"))
    assert cfg.bodies.dressed == (variant == "identity_stream")
    assert check_bindings(cfg) > 10


@pytest.mark.parametrize("variant", EXCHANGES)
def test_a_control_is_its_variant_with_one_thing_exchanged_and_nothing_else(variant: str) -> None:
    real, _, what = variant.partition("_other_")
    cfg, of = (
        composed("train", "data=ltcc", "data.root=/nowhere", f"+ablation={name}") for name in (variant, real)
    )
    OmegaConf.update(of, EXCHANGED[what], True)
    of.variant = variant
    assert OmegaConf.to_container(cfg, resolve=True) == OmegaConf.to_container(of, resolve=True)


def test_every_guide_has_its_control_alone_and_with_all_others() -> None:
    assert set(EXCHANGES) == {
        *("local_other_words", "local_global_other_words", "all_other_words", "shape_other_shapes"),
        *("all_other_shapes", "global_other_views", "all_other_views"),
    }


@pytest.mark.parametrize("method", ["ce", "cal", "clip3dreid", "clip3dreid_cal"])
def test_a_variant_that_is_a_method_has_its_losses_value_for_value(method: str) -> None:
    variant = method.replace("clip3dreid", "all")
    ablation = composed("train", "data=ltcc", "data.root=/nowhere", f"+ablation={variant}")
    assert ablation.loss == composed("train", "data=ltcc", "data.root=/nowhere", f"method={method}").loss


def test_the_sweep_trains_every_variant_of_the_ablation() -> None:
    sweep = OmegaConf.load(conf_dir() / "sweep" / "ablation.yaml")
    # Whose second stream shows others than that of `paper`: they cannot share one command.
    assert sorted([*sweep.hydra.sweeper.params["+ablation"].split(","), "identity_stream"]) == options(
        "ablation"
    )


def test_an_experiment_sets_no_loss_of_its_own() -> None:
    for path in Path(conf_dir() / "experiment").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "\nloss:" not in text, path.name
        assert "/loss" not in text, path.name


GUIDES = {
    "local",
    "local_contrastive",
    "local_geomloss",
    "local_unbalanced",
    "global",
    "global_kl",
    "shape",
    "body",
}


@pytest.mark.parametrize("option", sorted(path.stem for path in (conf_dir() / "loss").glob("*.yaml")))
def test_one_share_is_that_of_every_guide_and_of_no_other_loss(option: str) -> None:
    """`guide_share=0.5` is for terms that guide; the release's own are as they were, and a loss's own word counts."""
    cfg = composed("train", "+experiment=demo", "data.root=/nowhere", f"loss=[{option}]", "guide_share=0.5")
    shares = {name: loss.get("share") for name, loss in cfg.loss.items()}
    assert set(shares.values()) == ({0.5} if option in GUIDES else {None})
    if option in GUIDES:
        name = next(iter(shares))
        own = f"loss.{name}.share=null"
        cfg = composed(
            "train", "+experiment=demo", "data.root=/nowhere", f"loss=[{option}]", "guide_share=0.5", own
        )
        assert cfg.loss[name].share is None
