"""Runs are named after data, method, student and seed."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from clip3dreid.config.folder import conf_dir, options
from clip3dreid.config.hydra import register

NAMES = {
    (): "clip3dreid_resnet50_seed1",
    ("method=ce", "seed=3"): "ce_resnet50_seed3",
    ("method=cal", "model/student=resnet18_quarter"): "cal_resnet18_quarter_seed1",
    # A weight is a detail; another choice of losses is another method.
    ("loss.global.weight=2",): "clip3dreid_resnet50_seed1",
    ("loss=[identity,local]",): "identity+local_resnet50_seed1",
    # Of the same entries as the method's own, and other terms.
    ("loss=[identity,local,global,shape]",): "identity+local+global+shape_resnet50_seed1",
    ("~loss.shape",): "identity+local+global_resnet50_seed1",
    ("method=ce", "variant=a/b: c"): "a-b-c_resnet50_seed1",
    ("+experiment=demo", "+ablation=all_other_words"): "all_other_words_resnet18_quarter_seed1",
    ("+recipe=clip3dreid_release",): "clip3dreid_release_tiny_vit_21m_release_seed42",
}


def folder(*overrides: str) -> str:
    """The run's folder, without the time, and the names in its dashboard."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", ["data=ltcc", *overrides], return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    place, name = str(cfg.hydra.run.dir).rsplit("/", 1)
    label = name.split("_", 2)[2]
    cfg.hydra.job.num = 7
    assert cfg.hydra.sweep.subdir == f"7_{cfg.run_name}_{label}"
    dashboard = cfg.logger.get("wandb")
    if dashboard is not None:
        what, _, seed = label.rpartition("_seed")
        assert dashboard.name == f"{dashboard.group}-seed{seed}"
        assert dashboard.group.startswith(f"{cfg.run_name}-")
        assert what == "_".join(dashboard.tags[1:])
        assert dashboard.tags[0] == cfg.data.name
    assert place == f"runs/{cfg.run_name}"
    return label


@pytest.mark.parametrize("overrides", NAMES, ids=" ".join)
def test_a_run_is_named_after_what_it_trains(overrides: tuple[str, ...]) -> None:
    assert folder(*overrides) == NAMES[overrides]


@pytest.mark.parametrize("method", options("method"))
def test_every_method_of_ours_is_called_by_its_name(method: str) -> None:
    assert folder(f"method={method}") == f"{method}_resnet50_seed1"


def test_dashboards_group_the_runs_of_a_sweep_and_others_by_their_name(tmp_path: Path) -> None:
    register()
    run = tmp_path / "sweeps" / "2026-11-24_18-00-00" / "3"
    node = OmegaConf.create(
        {"group": "${run_group:ltcc-ce-resnet50}", "hydra": {"runtime": {"output_dir": str(run)}}}
    )
    assert node.group == "ltcc-ce-resnet50"
    run.mkdir(parents=True)
    # Hydra writes it before the first run of a sweep begins; a run that is resumed later finds it too.
    (run.parent / "multirun.yaml").touch()
    assert node.group == "sweeps/2026-11-24_18-00-00"
