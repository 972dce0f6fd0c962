"""The command line of a run that goes on: its folder is data to whoever resumes it."""

import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip3dreid.config.folder import conf_dir
from clip3dreid.config.resumed import _refused, resumed
from clip3dreid.errors import InputError
from clip3dreid.io.run_folder import resume_argument


def a_run(folder: Path, *overrides: str) -> Path:
    """As much of a run's folder as is looked at before it is resumed."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


HONEST = [
    "+experiment=ltcc", "data=ltcc", "data.root=/data/LTCC ReID", "data.root='/data/a=b'", "loss=[identity,triplet]",
    "+data@data.also.prcc=prcc", "data.also.prcc.root=${oc.env:PRCC,/data/prcc}", "seed=3", "milestones=[20,40]",
    "~callbacks.progress", "+trainer.limit_train_batches=10", "trainer=ddp", "trainer.devices=2",
    "model/student=mine", "trainer.strategy=ddp_find_unused_parameters_true",
    "optimizer.optimizer.lr=1e-3", "+rerank@retrieval.rerank=k_reciprocal", "bodies.root=worlds/${seed}",
    "variant=a_b",
    "retrieval.open_set=[1e-3,1e-2]", "protocol=[]", "data.val_people=2", "model.pretrained=null",
]  # fmt: skip
HOSTILE = {
    "a class to build": "loss.identity.term._target_=torch.load",
    "a class in a mapping": "loss.identity.term={_target_:os.system,command:ls}",
    "a class in a list": "datamodule.train_view.extra=[{_target_:os.system}]",
    "a class deep below": "+data.read={a:[{b:{_target_:os.system}}]}",
    "arguments of a class": "+data.read._args_=[1]",
    "positional call": "+trainer._partial_=true",
    "Hydra itself": "hydra.run.dir=/tmp/x",
    "Hydra's launcher": "hydra/launcher=joblib",
    "a group put into Hydra": "+rerank@hydra.callbacks.x=k_reciprocal",
    "a package of Hydra's own words": "+loss@_global_.x=identity",
    "a computed value": "data.root=${hydra:runtime.cwd}",
    "a resolver within": "run_name=x${oc.decode:1}",
    "a resolver by another name": "run_name=${${a}:b}",
    "an option outside the groups": "data=../../../tmp/evil",
    "an absolute option": "data=/tmp/evil",
    "a sweep": "seed=1,2",
    "a flag": "--config-dir=/tmp/evil",
    "another flag": "-m",
    "where checkpoints go": "callbacks.last.dirpath=/home/somebody/.ssh",
    "where checkpoints go, in a mapping": "callbacks.last={dirpath:/home/somebody/.ssh}",
    "objects of the trainer, in a mapping": "trainer={plugins:[x]}",
    "where logs go": "logger.csv.save_dir=/tmp",
    "where Lightning writes": "trainer.default_root_dir=/tmp",
    "objects of the trainer": "+trainer.plugins=[x]",
    "a key of nobody": "+evil.key=1",
    "no override": "rm -rf /",
    "an empty line": "",
}  # fmt: skip


@pytest.mark.parametrize("line", HONEST)
def test_what_runs_are_started_with_is_taken_from_their_folder(line: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", line)
    assert resumed([f"resume={folder}"])[0] == line


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_of_somebody_else_s_is_data_and_the_refusal_names_the_line(
    case: str, tmp_path: Path
) -> None:
    folder = a_run(tmp_path / "run", "seed=1", HOSTILE[case])
    with pytest.raises(InputError) as refused:
        resumed([f"resume={folder}"])
    assert HOSTILE[case] in str(refused.value)
    assert "repeat it on the command line" in str(refused.value)


def test_a_line_that_is_repeated_on_the_command_line_is_the_user_s_own(tmp_path: Path) -> None:
    line = HOSTILE["a class in a list"]
    folder = a_run(tmp_path / "run", "seed=1", line)
    assert resumed([line, f"resume={folder}"])[:2] == ["seed=1", line]


def test_a_class_of_a_package_is_taken_where_the_command_line_trusts_it_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    line = "datamodule.train_view._target_=mypkg.views.Dark"
    nested = "loss.mine={term:{_target_:mypkg.losses.Mine,scale:1}}"
    folder = a_run(tmp_path / "run", line, nested, "trusted=[evil]")
    taken = resumed([f"resume={folder}", "trusted=[mypkg]"])
    assert taken[:2] == [line, nested]
    assert [one for one in taken if one.startswith("trusted")] == ["trusted=[mypkg]"]
    for trust in ([], ["trusted=[other]"], ["trusted=[my]"], ["trusted=[mypkg.losses]"], ["trusted="]):
        with pytest.raises(InputError, match=r"names what to build; if you trust .* give trusted=\[mypkg\]"):
            resumed([f"resume={folder}", *trust])
    for hostile in ("datamodule.train_view._args_=mypkg.views.Dark", "a._target_.b=mypkg.views.Dark"):
        assert _refused(hostile, ("mypkg",)) is not None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["loss", "data", "trainer", "x"]), max_size=3),
    st.sampled_from(["_target_", "_args_", "_partial_", "_recursive_", "_convert_"]),
    st.sampled_from(["", "+", "++"]),
    st.sampled_from(["1", "os.system", "'os.system'", "[a]", "null"]),
)
def test_no_spelling_lets_a_folder_name_what_to_build(
    parents: list[str], word: str, sign: str, value: str
) -> None:
    assert _refused(f"{sign}{'.'.join([*parents, word])}={value}") is not None
    assert _refused(f"{sign}datamodule.train_view.extra=[{{{word}:{value}}}]") is not None


def test_every_option_of_every_group_may_stand_in_a_run_s_folder_but_hydra_s_own() -> None:
    for path in conf_dir().rglob("*.yaml"):
        group = path.parent.relative_to(conf_dir())
        if group != Path():
            hydras = group.parts[0] == "hydra"
            assert (_refused(f"{group}={path.stem}") is not None) == hydras, path


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"a: [", b"a: 1", b"- {a: 1}", b"- !!python/object:os.system x"]
)
def test_overrides_that_cannot_be_read_are_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"overrides\.yaml .*start the run anew"):
        resumed([f"resume={folder}"])


def test_what_is_asked_for_last_is_what_a_run_goes_on_with(tmp_path: Path) -> None:
    """A run that was taken from one machine to another and comes back."""
    folder = a_run(tmp_path / "run", "trainer=cpu", "epochs=3", "trainer=gpu")
    rewritten = resumed([f"resume={folder}", "trainer=cpu", "epochs=3"])
    assert rewritten[:4] == ["trainer=cpu", "epochs=3", "trainer=gpu", "trainer=cpu"]
    assert len(rewritten) == 6
    # A further process of this run; or one of torchrun's that comes after the first has noted its overrides.
    folder = a_run(tmp_path / "other", *rewritten[:4])
    there = [line.replace(f"{tmp_path}/run", f"{tmp_path}/other") for line in rewritten]
    assert resumed([*there, "hydra.job.name=x"])[:4] == there[:4]
    assert "epochs=3" not in resumed([*there, "hydra.job.name=x"])[4:]
    assert resumed([f"resume={folder}", "trainer=cpu", "epochs=3"]) == there


@pytest.mark.parametrize("name", ["it's", "a=b, c", "back\\", "\\'", "größe {x}", "'quoted'"])
def test_a_folder_of_any_name_is_resumed(name: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path / name, "seed=1")
    rewritten = resumed([f"resume={folder}"])
    for line in rewritten[1:]:
        assert OverridesParser.create().parse_override(line).value() == str(folder)
    assert set(resumed(rewritten)) == set(rewritten)
    (said,) = shlex.split(resume_argument(folder))
    assert said == f"resume={folder}"


def test_resume_is_no_sweep_and_leaves_hydra_s_options_at_the_end(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", "seed=1")
    with pytest.raises(InputError, match="leave -m out"):
        resumed([f"resume={folder}", "-m", "epochs=2,3"])
    assert resumed([f"resume={folder}", "epochs=2", "--cfg", "job"])[-2:] == ["--cfg", "job"]
    assert resumed([f"++resume={folder}"]) == resumed([f"resume={folder}"])


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(InputError, match=r"last\.ckpt.*start it anew"):
        resumed([f"resume={folder}"])
