"""A package of the user's own, outside the project: its student, loss, view and data set work at every door.

It is trusted by name on each command line, and refused with that hint otherwise: no file says whom to trust.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import clip3dreid
from clip3dreid.errors import InputError
from tests.conftest import TINY, Command, write_ltcc

PACKAGE = {
    "__init__.py": "",
    "net.py": '''
        """A network of nobody else's."""
        from torch import nn

        from clip3dreid.model.backbone import Backbone, BackboneOutput
        from clip3dreid.model.student import Student


        class Tiny(Backbone):
            def __init__(self, width):
                super().__init__()
                self.layers = nn.Sequential(
                    nn.Conv2d(3, width, 4, stride=4, bias=False), nn.BatchNorm2d(width), nn.ReLU()
                )

            def forward(self, images):
                return BackboneOutput(self.layers(images), None)


        class Person(Student):
            """A student that takes its parts as any other, and a key of its own."""

            def __init__(self, backbone, pooling, mean, std, loud=False):
                super().__init__(backbone, pooling, mean, std)
                self.loud = loud
    ''',
    "losses.py": """
        from torch import nn
        from torch.nn import functional as F

        from clip3dreid.loss.term import Term


        class Identity(Term):
            def __init__(self, dimensions, scale):
                super().__init__()
                self.scale = scale
                self.head = nn.Linear(dimensions.width, dimensions.people)

            def forward(self, features, *others):
                return self.scale * F.cross_entropy(self.head(features.embedding), others[-1].person)
    """,
    "views.py": """
        from clip3dreid.data.images import TrainView


        class Dark(TrainView):
            def __call__(self, image, seed):
                return super().__call__(image // 2, seed)
    """,
    "folders.py": """
        from clip3dreid.data.datasets import ltcc


        def read(root, name):
            return ltcc.read(root, name)
    """,
}
CONF = {
    "model/student/mine.yaml": '''
        # @package model
        student:
          _target_: mypkg.net.Person
          backbone: {_target_: mypkg.net.Tiny, width: 8}
          pooling: {_target_: clip3dreid.model.pooling.MaximumAverage}
          mean: [0.5, 0.5, 0.5]
          std: [0.25, 0.25, 0.25]
          loud: true
        pretrained: null
        fetch: null
    ''',
    "loss/mine.yaml": '''
        # @package loss.mine
        weight: 1.0
        start_epoch: 0
        warmup_epochs: 0
        term: {_target_: mypkg.losses.Identity, _partial_: true, scale: 2.0}
    ''',
    "data/mine.yaml": '''
        defaults:
          - base
          - /protocol@protocols: [general]
          - /protocol@val_protocols: [general]
          - _self_
        name: mine
        headline: general
        read: {_target_: mypkg.folders.read, _partial_: true, name: mine}
    ''',
}  # fmt: skip
TRUST = "trusted=[mypkg]"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the package, which can be imported from there, and with its configs."""
    place = tmp_path / "elsewhere"
    write(place / "mypkg", PACKAGE)
    write(place / "conf", CONF)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place), prepend=":")
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


def test_a_package_of_ones_own_works_at_every_door_where_it_is_trusted_by_name(
    own: Path, invoke: Command, command: Command, tmp_path: Path
) -> None:
    write_ltcc(tmp_path / "pictures")
    data = ["data=mine", "data.root=pictures"]
    sizes = [one for one in TINY if not one.startswith(("method", "model"))]
    recipe = [*data, "model/student=mine", "method=[]", "loss=mine", *sizes]
    recipe += ["datamodule.train_view._target_=mypkg.views.Dark", "epochs=2", "evaluate_every=1"]
    conf = ["--config-dir", str(own / "conf")]

    def refused(*arguments: str) -> None:
        done = invoke(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "if you trust the package mypkg, give trusted=[mypkg]" in done.stderr

    refused("train", *recipe, "hydra.run.dir=run", *conf)
    assert not (tmp_path / "run").exists()
    done = invoke("train", *recipe, TRUST, "hydra.run.dir=run", *conf)
    assert done.returncode == 0, done.stderr

    refused("train", "resume=run", "epochs=3", *conf)
    done = invoke("train", "resume=run", "epochs=3", TRUST, *conf)
    assert done.returncode == 0, done.stderr
    assert "epochs 2 -> 3" in done.stdout + done.stderr

    card = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["clip3dreid"]
    assert card["student"]["_target_"] == "mypkg.net.Person"
    assert "trusted" not in json.dumps(card)

    scoring = ["checkpoint=run", *data, "trainer=cpu", "datamodule.workers=0", "out=scores.json", *conf]
    refused("evaluate", *scoring)
    # In a process of its own: found by PYTHONPATH alone.
    done = command("evaluate", TRUST, *scoring)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"][0]["results"]
    assert (
        json.loads((tmp_path / "scores.json").read_text())["results"]["general"]["r1"] == run["general"]["r1"]
    )

    looking = ["checkpoint=run", "pictures=pictures/query", "out=shards", "trainer=cpu", "workers=0"]
    refused("extract", *looking)
    done = invoke("extract", TRUST, *looking)
    assert done.returncode == 0, done.stderr
    asking = ["gallery=shards", "checkpoint=run", "picture=pictures/query", "top=1", "out=hits.json"]
    refused("search", *asking)
    done = invoke("search", TRUST, *asking)
    assert done.returncode == 0, done.stderr
    for query in json.loads((tmp_path / "hits.json").read_text())["queries"]:
        assert Path(query["query"]).name == query["hits"][0]["path"]

    exporting = ["checkpoint=run", "out=files", "format=[onnx,torch_export]", "timing=0"]
    refused("export", *exporting)
    done = invoke("export", TRUST, *exporting)
    assert done.returncode == 0, done.stderr

    with pytest.raises(InputError, match=r"give trusted=\[mypkg\]"):
        clip3dreid.load(tmp_path / "run")
    model = clip3dreid.load(tmp_path / "run", trusted=("mypkg",))
    assert type(model.student).__module__ == "mypkg.net"
    model.save_pretrained(tmp_path / "saved")
    again = clip3dreid.load(tmp_path / "saved", trusted=("mypkg",))
    assert again.fingerprint == model.fingerprint
    assert "trusted" not in (tmp_path / "saved" / "config.json").read_text()


def test_trust_in_a_folder_is_nobodys(own: Path, invoke: Command, tmp_path: Path) -> None:
    """A run of a stranger that says whom to trust is resumed as if it had not."""
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    lines = ["data=ltcc", "datamodule.train_view._target_=mypkg.views.Dark", TRUST]
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(lines))
    done = invoke("train", "resume=run")
    assert done.returncode == 2
    assert "names what to build; if you trust the package mypkg, give trusted=[mypkg]" in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[nowhere_at_all]", "no package of that name can be imported; install it, or name its folder in"),
        ("[a-b]", "trusted: a-b is no name of a package; give trusted=[mypkg]"),
        ("[3]", "trusted: 3 is no name of a package"),
    ],
)
def test_a_package_that_cannot_be_trusted_is_one_line(
    invoke: Command, tmp_path: Path, value: str, message: str
) -> None:
    done = invoke("extract", "checkpoint=x", "pictures=.", "out=y", f"trusted={value}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
