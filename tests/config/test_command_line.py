"""Command lines as users type them: what is refused, in which words, and what reaches the config."""

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from clip3dreid.__main__ import main
from clip3dreid.config.command_line import ready
from clip3dreid.config.commands import command_names
from clip3dreid.config.folder import conf_dir
from clip3dreid.config.help import _top
from clip3dreid.config.hydra import register

Line = Callable[..., tuple[int, str, str]]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Line:
    """Runs a command line in an empty folder; gives exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip3dreid", *words])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


NEEDS_DATA = "data.root=/x needs data=NAME with it; NAME is ccda, "
WRONG = [
    ("train lr_=5", "lr_ is no key of train; did you mean optimizer.optimizer.lr?"),
    ("train epoch=3", "epoch is no key of train; did you mean epochs?"),
    ("train +epoch=3", "epoch is no key of train; did you mean epochs?"),
    ("train ++epoch=3", "epoch is no key of train; did you mean epochs?"),
    ("train width=64", "width is no key of train; did you mean datamodule.width"),
    ("train xyz=1", "xyz is no key of train; clip3dreid train --help lists the keys"),
    ("train epochs=three", "epochs=three must be a whole number"),
    ("train epochs=3.5", "epochs=3.5 must be a whole number"),
    ("train epochs=null", "epochs may not be null; give a value"),
    ("train compile=maybe", "compile=maybe is unknown; choose true or false"),
    ("train lr=fast", "optimizer.optimizer.lr=fast must be a number"),
    ("train milestones=3", "milestones must be a list: milestones=[A,B]"),
    ("train seed=1,2", "seed=1,2 has several values: add -m for a run with each"),
    ("train batch=30", "batch=30 must be people times pictures of each, a multiple of datamodule.pictures=8"),
    ("train data=lttc", "data=lttc is unknown; choose ccda, ", "did you mean ltcc?"),
    ("train data=", "data= names nothing; choose ccda, "),
    ("train data=[ltcc=", "data=[ltcc= is unknown; choose ccda, "),
    ("train data.root=/x", NEEDS_DATA),
    ("evaluate data.root=/x", NEEDS_DATA),
    ("evaluate model.pretrained=x", "model.pretrained=x needs model/student=NAME with it; NAME is ap3d_nl_"),
    ("train experiment=ltcc", "experiment=ltcc is added with a plus: +experiment=ltcc"),
    ("train +data=ltcc", "+data=ltcc is chosen without a plus: data=ltcc"),
    ("train loss=identity,body", "loss=identity,body names several: add -m for a run with each, or give a list, "),
    ("search +experiment=ltcc", "search has no experiment to choose; it has engine, model/teacher or network"),
    ("train +data@data.aslo.prcc=prcc data=ltcc", "did you mean data.also.prcc?"),
    ("train --experiment ltcc", "--experiment is no option; give experiment as +experiment=ltcc"),
    ("train --experiment=ltcc", "--experiment is no option; give experiment as +experiment=ltcc"),
    ("train --epochs 3", "--epochs is no option; keys are given as epochs=3"),
    ("train --data ltcc", "--data is no option; keys are given as data=ltcc"),
    ("train --mutlirun", "--mutlirun is no option; did you mean --multirun?; keys are given as key=value"),
    ("train -x", "-x is no option; keys are given as key=value"),
    ("train --cfg yaml", "--cfg=yaml is unknown; choose job, hydra or all"),
    ("train --info foo", "--info=foo is unknown; choose all, config, defaults, defaults-tree, "),
    ("train --config-dir", "--config-dir needs a value behind it"),
    ("train --config-dir=nowhere", "--config-dir=nowhere is no folder; "),
    ("train -sc install=bash", "clip3dreid --completion bash|zsh|fish"),
    ("train lr=true", "optimizer.optimizer.lr=true must be a number"),
    ("train lr=nan", "optimizer.optimizer.lr=nan must be a number"),
    ("train data=null", "data=null names nothing; choose ccda, "),
    ("train logger=null", "logger=null names nothing; choose [] for none: logger=[]"),
    ("train ~epochs", "~epochs: train needs epochs; give epochs=VALUE instead"),
    ("train data=ltcc data.root=null", "data.root may not be null; give a value: data.root=VALUE"),
    ("train data=ltcc data.root=", "data.root is empty; give a value: data.root=VALUE"),
    ("train data=ltcc data.root=${env:HOME}", "${env:…} asks for a value, and there is no env; as mere text: "),
    ("synthesize layout=ltcc out=null", "out may not be null; give a value: out=VALUE"),
    ("synthesize layout=ltcc out=", "out is empty; give a "),
    ("compare out=null", "out may not be null; give a value: out=VALUE"),
    ("label out=", "out is empty; give a path, or leave it out"),
    ("evaluate checkpoint=", "checkpoint is empty; give a path, or leave it out"),
    ("export formats=onnx", "formats=onnx: formats holds keys of its own; give formats.KEY=VALUE"),
    ("train ltcc", "ltcc is no key=value; did you mean +experiment=ltcc or data=ltcc?"),
    ("train =3", "=3 is no key=value"),
    ("train data=ltcc +datamodule.poeple=9", "datamodule.poeple is no key of train; did you mean datamodule.people?"),
    ("train data=ltcc datamodule.poeple=9", "datamodule.poeple is no key of train; did you mean datamodule.people?"),
    ("train +trainer.max_epoch=3", "trainer.max_epoch is no key of train; did you mean trainer.max_epochs"),
    ("train +trainer.limit_train_batchs=3", "did you mean trainer.limit_train_batches"),
    (
        "train model.student.backbone.wdth=8",
        "model.student.backbone.wdth is no key of train; did you mean model.student.backbone.width?",
    ),
    ("train +optimizer.optimizer.amsgard=true", "did you mean optimizer.optimizer.amsgrad"),
    ("train +loss.mine.weight=3", "loss.mine.weight is no key of train"),
    ("train +logger.csw.name=x", "logger.csw.name is no key of train; did you mean logger.csv.name"),
    (
        "train +callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping +callbacks.early.patiens=3",
        "did you mean callbacks.early.patience?",
    ),
    ("train ~logger", "~logger: give logger=[] for none"),
    ("train ~sede", "~sede: there is no sede to leave out; did you mean seed?"),
    ("train ~lr", "~lr: lr is short for optimizer.optimizer.lr, which cannot be left out"),
    ("train data.read={a data=ltcc", "data.read={a cannot be read: close its quotes and brackets"),
    ("train hydra.run.dirr=x", "hydra.run.dirr is no key of Hydra's"),
    ("inspect_data data=ltcc data.root=a${b}", "data.root refers to ${b}, which is not there"),
    ("search where.camra=3", "where.camra is not there; did you mean where.camera?; to add it: +where.camra=3"),
    ("train loader=laptop", "loader has another name now; give datamodule=laptop"),
    ("train loader.people=3", "loader.people has another name now; give datamodule.people=3"),
    ("train +rung=all", "+rung has another name now; give +variant=all"),
    ("train +ladder=ce", "+ladder has another name now; give +ablation=ce"),
    ("train -m +sweep=ladder", "+sweep=ladder has another name now; give +sweep=ablation"),
    ("inspect_data", "no data set: give data=NAME data.root=FOLDER; NAME is one of ccda, "),
]  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[0])
def test_a_wrong_command_line_is_answered_in_one_line_and_status_two(
    words: tuple[str, ...], line: Line
) -> None:
    status, _, err = line(*words[0].split())
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for expected in words[1:]:
        assert expected in err
    for foreign in (
        "hydra.cc",
        "full_key",
        "struct",
        "Traceback",
        "object_type",
        "Config search path",
        "usage:",
    ):
        assert foreign not in err


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bad", "root: [a\nb: c: d\n", "bad.yaml, line 2 is no YAML"),
        ("list", "- a\n", "list.yaml holds no key: value pairs"),
        ("lost", "defaults:\n  - nope\nroot: a\n", "there is no data/nope, which data/lost names"),
    ],
)
def test_a_file_of_ones_own_that_is_no_configuration_is_named(
    line: Line, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / f"{name}.yaml").write_text(text)
    status, _, err = line("train", "--config-dir=mine", f"data={name}")
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def config(line: Line, command: str, *words: str) -> dict:
    status, out, err = line(command, *words, "--cfg", "job")
    assert status == 0, err
    return yaml.safe_load(out)


def value(line: Line, command: str, key: str, *words: str) -> object:
    found = OmegaConf.select(OmegaConf.create(config(line, command, *words)), key)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.mark.parametrize(
    ("command", "word", "expected"),
    [
        ("search", "where.clothes=5_1", "5_1"),
        ("search", "where.clothes=[5_1,a b,null]", ["5_1", "a b", None]),
        ("search", "where.frame=[1,null]", [1, None]),
        ("search", "+where.mood=5_1", "5_1"),
        ("search", "+synonyms.lean=1e5", "1e5"),
        ("search", "+synonyms.man=5_1", "5_1"),
        ("search", "+synonyms.man=null", None),
        ("search", "text=a tall, heavyset man", "a tall, heavyset man"),
        ("search", 'text="a tall, heavyset man"', "a tall, heavyset man"),
        ("search", "text='a tall, heavyset man'", "a tall, heavyset man"),
        ("search", 'text=he\'s "tall", [x] {y} 100%', 'he\'s "tall", [x] {y} 100%'),
        ("search", "picture=a=b c/é,d.jpg", "a=b c/é,d.jpg"),
        ("search", "picture=[a=b c.jpg,é.jpg]", ["a=b c.jpg", "é.jpg"]),
        ("search", "picture=a${b.jpg", "a${b.jpg"),
        ("search", "picture=C:\\x\\y'z", "C:\\x\\y'z"),
        ("search", "picture=~/x.jpg", "~/x.jpg"),
        ("search", "out=2026_11_26", "2026_11_26"),
        ("search", "out=1e5", "1e5"),
        ("search", "out=true", "true"),
        ("search", "out=null", None),
        ("search", "top=5", 5),
        ("label", "out=2_0", "2_0"),
        ("train", "run_name=2026_11", "2026_11"),
        ("train", "run_name=007", "007"),
        ("train", "init_from=runs/a,b", "runs/a,b"),
        ("train", "data.root=worlds/${seed}", "worlds/${seed}"),
        ("train", "data.root=/data/a b=c", "/data/a b=c"),
        ("train", "trainer.gradient_clip_val=1e-3", 1e-3),
        ("train", "trainer.devices=auto", "auto"),
        ("train", "trainer.devices=[0,1]", [0, 1]),
        ("train", "milestones=[3,4]", [3, 4]),
        ("train", "retrieval.open_set=[1e-3,1e-2]", [1e-3, 1e-2]),
        ("demo", "training=[epochs=5,data.val_people=2]", ["epochs=5", "data.val_people=2"]),
        ("compare", "runs=[a b,c=d]", ["a b", "c=d"]),
        ("extract", "outputs=[embedding,joint]", ["embedding", "joint"]),
        ("export", "format=onnx", "onnx"),
    ],
)
def test_a_value_reaches_the_command_as_it_was_typed(
    line: Line, command: str, word: str, expected: object
) -> None:
    data = ["data=ltcc"] if command in ("train", "label") else []
    found = config(line, command, *data, word)
    key = word.partition("=")[0].lstrip("+")
    for part in key.split("."):
        found = found[part]
    if found == "a\\${b.jpg":  # as YAML has what refers to nothing
        found = OmegaConf.create({"key": found}).key
    assert found == expected
    assert type(found) is type(expected)
    # What was made ready stays as it is: for a resumed run, and for a process that another one starts.
    once = ready(command, [*data, word])
    assert ready(command, once) == once


def test_folders_that_compare_is_given_keep_their_names(line: Line, tmp_path: Path) -> None:
    for name in ("5_1", "a,b", "x=y"):
        (tmp_path / name).mkdir()
    assert value(line, "compare", "runs", "5_1", "a,b", "x=y") == ["5_1", "a,b", "x=y"]


@pytest.mark.parametrize(
    ("command", "word", "key", "expected"),
    [
        ("train", "lr=1e-4", "optimizer.optimizer.lr", 1e-4),
        ("train", "+lr=1e-4", "optimizer.optimizer.lr", 1e-4),
        ("train", "workers=3", "datamodule.workers", 3),
        ("train", "precision=16-mixed", "trainer.precision", "16-mixed"),
        ("train", "precision=32", "trainer.precision", "32"),
        ("train", "batch=32", "datamodule.people", 4),
        ("evaluate", "batch=7", "datamodule.evaluation_batch", 7),
        ("evaluate", "workers=1", "datamodule.workers", 1),
        ("pretrain_teacher", "lr=1e-4", "optimizer.optimizer.lr", 1e-4),
        ("pretrain_teacher", "batch=8", "batch", 8),
        ("extract", "workers=1", "workers", 1),
        ("extract", "precision=bf16-mixed", "trainer.precision", "bf16-mixed"),
    ],
)
def test_a_short_way_sets_the_key_that_people_look_for(
    line: Line, command: str, word: str, key: str, expected: object
) -> None:
    data = ["data=ltcc"] if command in ("train", "evaluate") else []
    assert value(line, command, key, *data, word) == expected


def test_a_batch_is_people_times_the_pictures_given_beside_it() -> None:
    words = ready("train", ["data=ltcc", "datamodule.pictures=4", "batch=32"])
    assert words == ["data=ltcc", "datamodule.pictures=4", "datamodule.people=8"]


def test_the_values_of_a_sweep_stay_apart_and_are_kept_one_by_one() -> None:
    given = [
        "-m",
        "data=ltcc",
        "seed=1,2,3",
        "data.root=a=b,c",
        "method=ce,cal",
        "batch=32,64",
        "lr=1e-3,1e-4",
    ]
    assert ready("train", given) == [
        "data=ltcc", "seed=1,2,3", "data.root='a=b',c", "method=ce,cal", "datamodule.people=4,8",
        "optimizer.optimizer.lr=1e-3,1e-4", "-m",
    ]  # fmt: skip
    assert ready("train", ["-m", "data=ltcc", "seed=range(1,4)"]) == ["data=ltcc", "seed=range(1,4)", "-m"]
    assert (
        ready("train", ["-m", "+ablation=ce,local", "+sweep=ablation", "data=ltcc"])[0]
        == "+ablation=ce,local"
    )


OPEN = [
    ("train", "trainer.limit_train_batches=2"),
    ("train", "+trainer.fast_dev_run=true"),
    ("train", "optimizer.optimizer.amsgrad=true"),
    ("train", "+logger.wandb.tags=[a,b]"),
    ("train", "+model.student.pooling.p=4 model.student.pooling._target_=clip3dreid.model.pooling.GeneralisedMean"),
    ("train", "model/student=vit_b16 +model.student.backbone.config.qkv_bias=false"),
    ("train", "+datamodule._convert_=all"),
    ("train", "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping callbacks.early.monitor=loss"),
    ("train", "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: loss}"),
    ("train", "+loss.mine.weight=1 +loss.mine.term._target_=mypkg.losses.Mine +loss.mine.term.margin=0.3"),
    ("train", "+data@data.also.prcc=prcc data.also.prcc.root=/b"),
    ("train", "+rerank@retrieval.rerank=k_reciprocal retrieval.rerank.k1=30"),
    ("train", "+recipe=clip3dreid_release"),
    ("train", "+ablation=ce"),
    ("train", "loss=[identity,local] loss.local.weight=0.3"),
    ("train", "~callbacks.progress"),
    ("train", "logger=[]"),
    ("train", "++seed=4"),
    ("train", "bodies.view.height=64"),
    ("train", "hydra.run.dir=here"),
    ("weights", "convert=a out=b"),
    ("search", "+where.mood=glad"),
    ("search", "engine=lance +engine.connection.region=eu"),
    ("evaluate", "rerank=k_reciprocal rerank.k1=20"),
    ("synthesize", "layout=ltcc +world.bare_backgrounds.kinds.wall=1"),
    ("export", "formats.onnx.opset=20"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "words"), OPEN)
def test_what_is_open_by_design_stays_possible(line: Line, command: str, words: str) -> None:
    data = ["data=ltcc"] if command in ("train", "evaluate", "weights") else []
    status, _, err = line(command, *data, *_words(words), "--cfg", "job")
    assert (status, err) == (0, "")


def _words(text: str) -> list[str]:
    return [text] if "{" in text else text.split()


def test_options_of_ones_own_are_chosen_by_name(line: Line, tmp_path: Path) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "my_set.yaml").write_text("defaults:\n  - base\n  - _self_\nname: my_set\n")
    found = config(line, "inspect_data", "--config-dir=mine", "data=my_set", "data.root=5_1")
    assert (found["data"]["name"], found["data"]["root"]) == ("my_set", "5_1")
    status, _, err = line("inspect_data", "--config-dir", "mine", "data=my_st")
    assert status == 2
    assert "did you mean my_set?" in err


@pytest.mark.parametrize("command", command_names())
def test_every_example_of_a_commands_help_is_understood_by_it(command: str) -> None:
    register()
    examples, _ = _top((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    assert examples
    for example in examples:
        words = shlex.split(example.partition("   ")[0])
        assert words[0] == "clip3dreid"
        # Behind -- stands a line of another command.
        end = words.index("--") if "--" in words else len(words)
        for name, line in ((words[1], words[2:end]), ("train", words[end + 1 :])):
            arguments = [word for word in line if "=" in word or word.startswith("-")]
            assert ready(name, arguments) or not arguments


@pytest.mark.parametrize("command", command_names())
def test_help_shows_every_key_of_the_root_and_the_groups_of_the_command_alone(
    line: Line, command: str
) -> None:
    status, out, err = line(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"clip3dreid {command}: ")
    assert "usage" not in out
    root = yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    groups = {
        name.partition("@")[0]
        for entry in root["defaults"] if isinstance(entry, dict) for name in entry if "override" not in name
    }  # fmt: skip
    for key in root.keys() - {"defaults", "hydra"} - groups:
        assert f"  {key}=" in out or f"  {key}." in out, key
    for path in conf_dir().iterdir():
        if path.is_dir() and path.name not in ("model", "experiment", "recipe", "ablation", "sweep"):
            assert (f"\n  {path.name}=" in out) == (path.name in groups), path.name
    assert max(map(len, out.splitlines())) <= 170


def test_the_command_line_is_given_back_to_the_host_program(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = importlib.import_module("clip3dreid.cli.search")
    words = ["prog", "where.clothes=5_1", "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", words)
    door.main()
    assert sys.argv is words
    assert sys.argv == ["prog", "where.clothes=5_1", "--cfg", "job"]


def test_a_variable_that_holds_no_reference_is_told_in_a_line(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIP3DREID_WEIGHTS", "${x")
    status, _, error = line("doctor")
    assert status == 2
    assert error == ("error: weights_dir holds a ${ that is no reference to a key; mend it where it is set\n")
