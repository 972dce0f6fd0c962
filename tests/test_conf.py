"""Every YAML composes, and every node fits its target: a mistyped key fails here, not in the third hour."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config import conf_dir, register
from clip3dreid.model.teacher import NODE_KEYS, Teacher
from clip3dreid.weights import print_needs

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


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
        if target is Teacher:
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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("method", options("method"))
def test_every_experiment_with_every_method_composes_binds_and_says_what_it_needs(
    experiment: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = composed("train", f"+experiment={experiment}", f"method={method}", "data.root=/nowhere")
    assert check_bindings(cfg) > 10
    print_needs(cfg, [f"+experiment={experiment}", f"method={method}", "data.root=/nowhere"])
    shown = capsys.readouterr().out
    assert "/nowhere" in shown
    assert f"Then: python -m clip3dreid.train +experiment={experiment} method={method}" in shown


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("model/student", "loss", "optimizer", "trainer", "logger", "loader", "protocol")
        for option in options(group)
    ],
)
def test_every_option_of_every_group_composes_and_binds(group: str, option: str) -> None:
    cfg = composed("train", "data=ltcc", "data.root=/nowhere", f"{group}={option}")
    assert check_bindings(cfg) > 10


CHOSEN = "chosen by the user"
CHOICES = {
    "loader": "loader",
    "model/student": "model",
    "model/teacher": "model.teacher",
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
            # The teacher, of another group, lies in the same node.
            found.pop("teacher", None)
        assert found == wanted[group], group


TRAINING = (
    "loader", "model/student", "model/teacher", "language", "body", "optimizer", "trainer", "callbacks", "logger",
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


@pytest.mark.parametrize("rung", options("ladder"))
def test_no_rung_of_the_ladder_changes_anything_in_what_the_user_chose(
    rung: str, mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, (*TRAINING, "loss"), "train", "data=ltcc", f"+ladder={rung}")


@pytest.mark.parametrize(
    ("root", "groups", "overrides"),
    [
        ("label", ("loader", "model/teacher", "language"), ("data=ltcc",)),
        ("pretrain_teacher", ("language", "optimizer", "trainer", "callbacks", "logger"), ()),
        ("evaluate", ("loader", "trainer", "model/student"), ("data=ltcc",)),
        ("extract", ("trainer",), ()),
        ("search", ("engine", "model/teacher"), ()),
        ("synthesize", ("layout", "body", "world", "language"), ()),
    ],
)
def test_no_other_entry_point_changes_anything_in_what_the_user_chose(
    root: str, groups: tuple[str, ...], overrides: tuple[str, ...], mine: tuple[Path, dict[str, Any]]
) -> None:
    check_choices(mine, groups, root, *overrides)


SHIPPED = ("loader=base_recipe", "model/student=vit_b16", "model/teacher=clip_vit_l14", "optimizer=sgd")


@pytest.fixture(scope="module")
def shipped() -> DictConfig:
    """Options that we ship, without any experiment."""
    return composed("train", "data=ltcc", "data.root=/nowhere", *SHIPPED)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_options_that_we_ship_are_the_same_in_every_experiment(
    experiment: str, shipped: DictConfig
) -> None:
    cfg = composed("train", f"+experiment={experiment}", "data.root=/nowhere", *SHIPPED)
    for key in ("loader", "model.student", "model.pretrained", "model.teacher.path", "optimizer.optimizer"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(shipped, key), key


@pytest.mark.parametrize("experiment", ["demo", "ltcc"])
def test_a_trial_is_the_same_trial_in_every_experiment(experiment: str) -> None:
    cfg = composed("train", f"+experiment={experiment}", "data.root=/nowhere", "trainer=debug")
    assert (cfg.trainer.max_epochs, cfg.trainer.accelerator) == (30, "auto")
    assert cfg.loader.overfit_batches == 1


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


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_can_be_trained_with_every_optimizer(experiment: str, optimizer: str) -> None:
    cfg = composed("train", f"+experiment={experiment}", f"optimizer={optimizer}", "data.root=/nowhere")
    rates = [instantiate(cfg.optimizer.schedule)(epoch) for epoch in range(cfg.epochs)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] < 0.1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_cites_its_source_command_cost_and_score(experiment: str) -> None:
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    for word in ("paper:", "command:", "cost:", "score:"):
        assert word in text, f"{experiment} lacks `{word}`"
    assert f"+experiment={experiment}" in text


def test_every_loss_has_a_package_of_its_own() -> None:
    files = {path.stem: path for path in Path(conf_dir() / "loss").glob("*.yaml")}
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        # `local_unbalanced` is a variant of `local`: it may take the other's place, so that both never train at once.
        variant_of = {other for other in files if name.startswith(f"{other}_")}
        assert first in {f"# @package loss.{owner}" for owner in {name} | variant_of}, path.name


GUIDED = ["identity", "local", "global", "body"]
RUNGS = {
    "ce": ["identity"],
    "local": ["identity", "local"],
    "global": ["identity", "global"],
    "local_global": ["identity", "local", "global"],
    "body": ["identity", "body"],
    "all": GUIDED,
    "cal": ["identity", "clothes_adversarial"],
    "all_cal": [*GUIDED, "clothes_adversarial"],
    "extra_pictures": ["identity", "body_identity"],
    "shuffled_words": GUIDED,
    "shuffled_betas": GUIDED,
}


@pytest.mark.parametrize("rung", sorted(RUNGS.keys() | set(options("ladder"))))
def test_every_rung_of_the_ladder_names_itself_and_has_its_losses(rung: str) -> None:
    cfg = composed("train", "data=ltcc", "data.root=/nowhere", f"+ladder={rung}")
    assert cfg.rung == rung
    assert list(cfg.loss) == RUNGS[rung]
    assert (cfg.labels.shuffled, cfg.bodies.shuffled) == (rung == "shuffled_words", rung == "shuffled_betas")
    assert check_bindings(cfg) > 10


@pytest.mark.parametrize("method", ["ce", "cal", "clip3dreid", "clip3dreid_cal"])
def test_a_rung_that_is_a_method_has_its_losses_value_for_value(method: str) -> None:
    rung = method.replace("clip3dreid", "all")
    ladder = composed("train", "data=ltcc", "data.root=/nowhere", f"+ladder={rung}")
    assert ladder.loss == composed("train", "data=ltcc", "data.root=/nowhere", f"method={method}").loss


def test_the_sweep_trains_every_rung_of_the_ladder() -> None:
    sweep = OmegaConf.load(conf_dir() / "sweep" / "ladder.yaml")
    assert sorted(sweep.hydra.sweeper.params["+ladder"].split(",")) == options("ladder")


def test_an_experiment_sets_no_loss_of_its_own() -> None:
    for path in Path(conf_dir() / "experiment").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "\nloss:" not in text, path.name
        assert "/loss" not in text, path.name
