"""A command composes its config once, and gets what Hydra would have composed."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clip3dreid.config.one_composition import composed_once

FILES = {
    "root.yaml": "defaults: [_self_, {size: small}, {colour: null}, {override hydra/job_logging: none}, "
    "{override hydra/hydra_logging: none}]\nseed: 1\nhydra: {run: {dir: run}, sweep: {dir: sweep}}\n",
    "unchosen.yaml": "defaults: [root, {shape: '???'}, _self_]\n",
    "size/small.yaml": "edge: 1\n",
    "size/large.yaml": "edge: 9\ndouble: ${size.edge}\n",
    "colour/red.yaml": "red: true\n",
    "shape/round.yaml": "round: true\n",
    "many/runs.yaml": "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n",
}
"""A command's config: what is composed is compared whole, so that a small one says as much as ours."""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text, encoding="utf-8")
    yield tmp_path / "conf"
    # Which a run leaves for whoever asks next.
    HydraConfig.instance().cfg = None


def ran(conf: Path, block: Any, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """All that a command is handed, job by job; how it ends; and how often its config is composed."""
    jobs: list[Any] = []
    compositions: list[list[str]] = []
    compose = ConfigLoaderImpl._load_configuration_impl

    def counted(
        self: ConfigLoaderImpl, config_name: str, overrides: list[str], *more: Any, **how: Any
    ) -> Any:
        compositions.append(overrides)
        return compose(self, config_name, overrides, *more, **how)

    def task(cfg: DictConfig) -> None:
        jobs.append((OmegaConf.to_container(cfg), OmegaConf.to_container(HydraConfig.get())))

    with monkeypatch.context() as patch, block:
        patch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
        patch.setattr(sys, "argv", ["command", *arguments])
        try:
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(task)()
            end = ""
        except Exception as error:
            end = f"{type(error).__name__}: {error} <- {error.__cause__!r}"
    return jobs, end, len(compositions)


@pytest.mark.parametrize(
    ("name", "arguments", "jobs", "compositions"),
    [
        ("root", [], 1, 1),
        ("root", ["size=large", "colour=red", "seed=5", "hydra.job.chdir=false"], 1, 1),
        ("unchosen", ["shape=round"], 1, 1),
        # Where a mode is set, or a run cannot be composed, Hydra's own way is gone.
        ("root", ["hydra.mode=RUN"], 1, None),
        ("root", ["+many=runs"], 2, None),
        ("root", ["-m", "seed=1,2,3"], 3, None),
        ("root", ["seed=1,2"], 0, None),
        ("root", ["sede=1"], 0, None),
        ("root", ["size=middling"], 0, None),
        ("unchosen", [], 0, None),
    ],
)
def test_a_command_gets_what_hydra_composes_and_a_run_composes_it_once(
    name: str,
    arguments: list[str],
    jobs: int,
    compositions: int | None,
    conf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twice, end, most = ran(conf, nullcontext(), name, arguments, monkeypatch)
    once, same_end, count = ran(conf, composed_once(), name, arguments, monkeypatch)
    assert once == twice
    assert same_end == end
    assert len(once) == jobs
    assert bool(end) == (jobs == 0)
    if compositions is None:
        assert count <= most + 1
    else:
        assert (count, most) == (compositions, 2 * compositions)


def test_hydra_is_left_as_it_was() -> None:
    ask = Hydra.get_mode
    with composed_once():
        assert Hydra.get_mode is not ask
    assert Hydra.get_mode is ask
