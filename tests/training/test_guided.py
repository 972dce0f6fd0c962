"""The guided methods through the command line: what guides, what is left alone, and what is refused."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from clip3dreid.model.teacher import Teacher
from clip3dreid.training.module import ReidModule
from clip3dreid.types import Batch, Features
from tests.conftest import TINY, Command, trained, write_bodies, write_ltcc
from tests.training.test_run import column, rows, weights

LTCC = ("data=ltcc", "epochs=2", *TINY)
EVERYTHING = ("identity", "local", "global", "body", "shape")
"""All terms that guides are needed for, those of the paper's form and of ours."""


def arguments(root: Path, *more: str, run: str = "run") -> list[str]:
    return [f"data.root={root}", *LTCC, f"hydra.run.dir={run}", *more]


def test_without_weights_the_full_method_is_ce_bit_for_bit(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke("train", *arguments(ltcc_root, run="ce"))
    assert done.returncode == 0, done.stderr
    # No teacher and no bodies are on this disk under these names: what is not built is not read either.
    done = invoke(
        "train",
        *arguments(ltcc_root, f"loss=[{','.join(EVERYTHING)}]", run="zero"),
        *(f"loss.{name}.weight=0" for name in EVERYTHING if name != "identity"),
        "bodies.root=/nowhere",
        "model.teacher.path=/nowhere",
        "model.shape_teacher.path=/nowhere",
    )
    assert done.returncode == 0, done.stderr
    plain, zero = weights(tmp_path / "ce"), weights(tmp_path / "zero")
    assert list(plain) == list(zero)
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert column(tmp_path / "ce", "loss/total") == column(tmp_path / "zero", "loss/total")


def test_pictures_kept_in_memory_train_the_same_model(
    ltcc_root: Path, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    for run, kept in (("read", "false"), ("kept", "true")):
        done = invoke(
            "train", *arguments(ltcc_root, "method=clip3dreid_paper", "loss=[identity,body]", *guided, run=run),
            f"datamodule.keep_pictures={kept}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    read, held = weights(tmp_path / "read"), weights(tmp_path / "kept")
    assert all(torch.equal(read[name], held[name]) for name in read)


@pytest.fixture(scope="module")
def full(ltcc_root: Path, guided: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the full method, with gradients of every term measured at every step."""
    folder = tmp_path_factory.mktemp("full")
    every = f"loss=[{','.join(EVERYTHING)}]"
    vertices = "loss.body.term.vertex_weight=10"
    overrides = arguments(ltcc_root, every, vertices, *guided, "gradient_norms_every=1")
    return trained(folder, *overrides)


def test_every_term_is_logged_raw_and_weighted_with_its_gradient(full: Path) -> None:
    names = set(rows(full)[0])
    for part in ("identity", "local", "global", "body/beta", "body/vertex", "shape"):
        assert {f"loss/{part}", f"weighted/{part}"} <= names
    for term in EVERYTHING:
        assert all(value > 0 for value in column(full, f"gradient/{term}")), term
    total = column(full, "loss/total")
    parts = [column(full, name) for name in names if name.startswith("weighted/")]
    assert total == pytest.approx([sum(values) for values in zip(*parts, strict=True)], rel=1e-5)
    for name in (
        "local/between_person_variance",
        "global/between_person_variance",
        "body/vertex_mm",
        "shape/explained",
    ):
        assert f"observed/{name}" in names


def test_measuring_changes_nothing_and_shares_are_logged_by_default(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    for run, more in (
        ("never", ["gradient_norms_every=0"]),
        ("usual", []),
        ("always", ["gradient_norms_every=1"]),
    ):
        done = invoke("train", *arguments(ltcc_root, "loss=[identity,triplet]", *more, run=run))
        assert done.returncode == 0, done.stderr
    never, usual, always = (weights(tmp_path / run) for run in ("never", "usual", "always"))
    for name, tensor in never.items():
        assert torch.equal(tensor, usual[name]), name
        assert torch.equal(tensor, always[name]), name
    for run, epochs in (("never", 0), ("usual", 1), ("always", 2)):
        shares, cosines = (column(tmp_path / run, f"{kind}/triplet") for kind in ("share", "aligned"))
        assert len(shares) == len(cosines) == epochs
        assert all(share > 0 for share in shares)
        assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert not [
        name for name in rows(tmp_path / "always")[0] if name.startswith(("weight/", "share/identity"))
    ]


def test_a_share_makes_a_term_s_gradient_that_part_of_identity_s(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    for run, more in (("plain", ["gradient_norms_every=1"]), ("share", ["loss.triplet.share=0.05"])):
        done = invoke("train", *arguments(ltcc_root, "loss=[identity,triplet]", *more, run=run), "epochs=1")
        assert done.returncode == 0, done.stderr
    (before,), (after,) = (column(tmp_path / run, "share/triplet") for run in ("plain", "share"))
    # Of steps 0, 1, 2 and 4: the first has its share exactly, those after it that of the mean.
    assert not 0.025 < before < 0.1
    assert 0.025 < after < 0.1
    (weight,) = column(tmp_path / "share", "weight/triplet")
    assert weight == pytest.approx(0.05 / before, rel=0.5)
    assert "loss.triplet has a share of 0.05" in done.stdout
    assert (tmp_path / "share" / "results.json").is_file()


def test_a_share_of_a_term_that_trains_its_head_alone_is_told_at_the_first_step(
    ltcc_root: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip3dreid.loss.pairwise import Triplet

    original = Triplet.forward

    def apart(self: Triplet, features: Features, batch: Any, bodies: Any) -> Any:
        return original(self, Features(*(part.detach() for part in features)), batch, bodies)

    monkeypatch.setattr(Triplet, "forward", apart)
    done = invoke("train", *arguments(ltcc_root, "loss=[identity,triplet]", "loss.triplet.share=1"))
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "loss.triplet.share=1, but the term sends no gradient into the backbone" in line


def test_the_run_keeps_its_labels_and_the_scores_of_every_query(full: Path) -> None:
    table = pl.read_parquet(full / "labels.parquet")
    assert table["person"].n_unique() == 6
    results = json.loads((full / "results.json").read_text())
    assert results["variant"] == "identity+local+global+body+shape"
    assert results["cost"]["pictures_per_step"] == 12
    entry = results["evaluations"][0]
    for protocol, scores in entry["results"].items():
        queries = pl.read_parquet(full / entry["per_query"][protocol])
        assert len(queries) == scores["valid_queries"]
        assert queries["ap"].mean() == pytest.approx(scores["map"], abs=1e-9)
        assert (queries["first_hit"] <= 1).mean() == pytest.approx(scores["r1"], abs=1e-9)


def test_the_checkpoint_ships_heads_and_names_its_guides_but_no_teacher(full: Path) -> None:
    state: dict[str, Any] = torch.load(full / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in state["state_dict"] if "teacher" in name or "template" in name]
    card, heads = state["clip3dreid"], state["clip3dreid_heads"]
    assert card["teacher"]["name"] == "body_clip"
    assert card["body"]["num_betas"] == 10
    words = sum(len(group) for group in card["vocabulary"]["groups"].values())
    assert heads["joint.usual"].abs().sum() > 0
    assert bool((heads["joint.spread"] > 0).all())
    assert heads["joint.words"].shape == (words, card["teacher"]["width"])
    # The later of two terms that ship a head: the shape teacher says nothing of stature.
    assert heads["shape.weight"].shape[0] == 10
    assert not heads["shape.weight"][0].any()
    assert bool(heads["shape.weight"][1:].any(1).all())
    assert card["shape_teacher"]["name"] == "body_shape"


@pytest.mark.parametrize(("cache", "sees_erased"), [("off", False), ("off_erased", True)])
def test_without_a_cache_the_teacher_sees_the_student_s_picture_before_or_after_erasing(
    cache: str,
    sees_erased: bool,
    ltcc_root: Path,
    invoke: Command,
    guided: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[torch.Tensor] = []
    learnt: list[torch.Tensor] = []
    embed, learn = Teacher.forward, ReidModule._see

    def teacher(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        return embed(self, images)

    def student(self: ReidModule, batch: Batch) -> tuple[Features, Features | None]:
        learnt.append(batch.images)
        return learn(self, batch)

    monkeypatch.setattr(ReidModule, "_see", student)
    monkeypatch.setattr(Teacher, "forward", teacher)
    done = invoke(
        "train", *arguments(ltcc_root, "method=clip3dreid_release", "epochs=1"), *guided,
        f"model.teacher.cache={cache}", "datamodule.train_view.erase_probability=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert learnt
    pairs = zip(shown[-len(learnt) :], learnt, strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [sees_erased] * len(learnt)


@pytest.mark.parametrize("cache", ["off", "off_erased", "disk"])
def test_the_teacher_is_the_same_after_training_and_gets_no_gradient(
    cache: str, ltcc_root: Path, invoke: Command, guided: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Teacher] = []
    original = Teacher.__init__

    def remember(self: Teacher, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        teachers.append(self)
        before.update({name: value.clone() for name, value in self.model.state_dict().items()})

    before: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(Teacher, "__init__", remember)
    done = invoke(
        "train", *arguments(ltcc_root, "method=clip3dreid_release", "epochs=1"), *guided,
        f"model.teacher.cache={cache}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (teacher,) = teachers
    after = teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_an_official_body_guides_as_the_shipped_one_does(
    ltcc_root: Path, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    from tests.body.test_official import _smpl_as_npz

    file = _smpl_as_npz(tmp_path)
    done = invoke(
        "train",
        *arguments(ltcc_root, "loss=[identity,body]", *guided),
        "epochs=1",
        "body=smpl",
        f"body.path={file}",
    )
    assert done.returncode == 0, done.stderr
    state: dict[str, Any] = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["clip3dreid"]["body"]["name"] == file.name


@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_running_statistics_come_from_people_alone_unless_shared(
    norm: str, ltcc_root: Path, invoke: Command, guided: tuple[str, ...], tmp_path: Path
) -> None:
    # Without learning, all that can differ between the two runs is what batch norm has seen.
    still = ("optimizer.optimizer.lr=0", "optimizer.optimizer.weight_decay=0", "epochs=1")
    for run, method in (("ce", "ce"), ("body", "clip3dreid_paper")):
        done = invoke(
            "train", *arguments(ltcc_root, f"method={method}", run=run), *guided, *still,
            f"bodies.batch_norm={norm}", "model.student.ghost_group=null",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    alone, beside = weights(tmp_path / "ce"), weights(tmp_path / "body")
    name = "student.backbone.bn1.running_mean"
    assert torch.equal(alone[name], beside[name]) == (norm == "separate")


CONTROLS = {
    "labels.shuffled=true": "every person has another's words",
    "bodies.shuffled=true": "every textureless body has another's shape",
    "shapes.shuffled=true": "everybody has somebody else's shape",
    "teacher_shuffled=true": "every picture has the teacher's view of somebody else",
}


@pytest.fixture(scope="module")
def uncontrolled(
    ltcc_root: Path, guided: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """What an epoch of the full method makes of a student: to the bit, unless something else is exchanged."""
    every = f"loss=[{','.join(EVERYTHING)}]"
    folder = tmp_path_factory.mktemp("uncontrolled")
    return weights(trained(folder, *arguments(ltcc_root, every, *guided, "epochs=1")))


@pytest.mark.parametrize("control", CONTROLS)
def test_the_controls_train_on_exchanged_guides_and_say_so(
    control: str,
    uncontrolled: dict[str, torch.Tensor],
    ltcc_root: Path,
    invoke: Command,
    guided: tuple[str, ...],
    tmp_path: Path,
) -> None:
    every = f"loss=[{','.join(EVERYTHING)}]"
    done = invoke("train", *arguments(ltcc_root, every, *guided, "epochs=1", control))
    assert done.returncode == 0, done.stderr
    assert f"control: {CONTROLS[control]} ({control})" in done.stdout + done.stderr
    other = weights(tmp_path / "run")
    assert any(not torch.equal(value, other[name]) for name, value in uncontrolled.items())


def test_without_a_control_the_same_training_ends_with_the_same_bits(
    uncontrolled: dict[str, torch.Tensor],
    ltcc_root: Path,
    invoke: Command,
    guided: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """Else the controls would differ from it whatever they do."""
    every = f"loss=[{','.join(EVERYTHING)}]"
    done = invoke("train", *arguments(ltcc_root, every, *guided, "epochs=1"))
    assert done.returncode == 0, done.stderr
    again = weights(tmp_path / "run")
    assert all(torch.equal(value, again[name]) for name, value in uncontrolled.items())


def test_edited_labels_are_read_and_image_labels_guide_picture_by_picture(
    ltcc_root: Path, invoke: Command, guided: tuple[str, ...], full: Path
) -> None:
    done = invoke(
        "train", *arguments(ltcc_root, "method=clip3dreid_paper", "loss=[identity,local]", *guided, "epochs=1"),
        f"labels.path={full / 'labels.parquet'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, more in enumerate(("labels.level=image", "labels.tokens=words")):
        done = invoke(
            "train",
            *arguments(
                ltcc_root,
                "method=clip3dreid_paper",
                "loss=[identity,local]",
                *guided,
                "epochs=1",
                more,
                run=f"run{number}",
            ),
        )
        assert done.returncode == 0, done.stderr


def test_a_loss_that_is_not_finite_names_itself_and_its_files_and_keeps_the_last_good_state(
    ltcc_root: Path, invoke: Command, tmp_path: Path
) -> None:
    done = invoke("train", *arguments(ltcc_root, "optimizer.optimizer.lr=1e30", "epochs=9"))
    assert done.returncode == 1
    assert "identity" in done.stderr
    assert ".png" in done.stderr
    # A rate like this spoils the weights themselves: nothing good is left but the checkpoint of an epoch.
    assert "the weights are not finite either" in done.stderr or "last_good.ckpt" in done.stderr


def test_the_last_good_state_can_be_gone_on_from(
    ltcc_root: Path, invoke: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip3dreid.loss.identity import CrossEntropy

    original, calls = CrossEntropy.forward, []

    def fails_at_the_third(self: CrossEntropy, features: Any, batch: Any, bodies: Any) -> Any:
        calls.append(1)
        return original(self, features, batch, bodies) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(CrossEntropy, "forward", fails_at_the_third)
    done = invoke("train", *arguments(ltcc_root))
    assert done.returncode == 1
    assert "loss not finite (identity = nan)" in done.stderr
    state: dict[str, Any] = torch.load(tmp_path / "run" / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


BAD: dict[str, tuple[list[str], str]] = {
    "no teacher's files": (["model/teacher=clip_vit_l14"], "hf download openai/clip-vit-large-patch14"),
    "no teacher": (["model.teacher=null"], "model/teacher=NAME"),
    "no teacher, and a method that says how it looks": (
        ["~model/teacher", "method=clip3dreid_release"],
        "model/teacher=NAME",
    ),
    "no bodies": (["bodies.root=/nowhere"], "clip3dreid synthesize layout=bodies out=/nowhere"),
    "fewer bodies than a batch": (["bodies.batch=64"], "fewer than bodies.batch=64"),
    "betas of another length": (["body.num_betas=5"], "have 10 shape coefficients and body anny_light has 5"),
    "a negative weight": (["loss.local.weight=-1"], "loss.local.weight=-1 must be a number, 0 or more"),
    "no positive loss": (
        [f"loss.{name}.weight=0" for name in EVERYTHING if name != "shape"],
        "no loss has a weight above 0",
    ),
    "a norm that could not be shared": (["bodies.batch_norm=shared"], "ghost_group=null"),
    "a body alone": (["bodies.batch=1"], "no variance"),
    "a loss that never starts": (["loss.local.start_epoch=9"], "lower loss.local.start_epoch"),
    "an unknown norm": (["bodies.batch_norm=both"], "choose separate or shared"),
    "unknown tokens": (["labels.tokens=letters"], "choose descriptor or words"),
    "no labels": (["labels.path=/nowhere.parquet"], "/nowhere.parquet"),
    "labels of others": (["labels.path=OTHERS"], "have no labels"),
    "no shape teacher": (
        ["loss=[identity,shape]", "model.shape_teacher.path=/nowhere"],
        "make one with clip3dreid pretrain_shape_teacher",
    ),
    "an unknown level": (["loss=[identity,shape]", "shapes.level=outfit"], "choose person or image"),
    "exchanged views that nobody keeps": (
        ["teacher_shuffled=true", "model.teacher.cache=off"],
        "choose memory or disk",
    ),
    "kl without a classifier": (["loss=[triplet,global_kl]"], "loss.identity"),
    "a share of nothing": (["loss=[triplet]", "loss.triplet.share=1"], "is a share of loss.identity"),
    "no share at all": (["loss.local.share=0"], "loss.local.share=0 must be a number above 0"),
    "a share that is never measured": (
        ["loss.local.share=1", "gradient_norms_every=0"],
        "set gradient_norms_every",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_guides_get_one_line_and_status_two_and_leave_nothing(
    case: str, ltcc_root: Path, full: Path, guided: tuple[str, ...], invoke: Command, tmp_path: Path
) -> None:
    changes, message = BAD[case]
    others = tmp_path / "others" / "labels.csv"
    if "OTHERS" in changes[0]:
        others.parent.mkdir()
        table = pl.read_parquet(full / "labels.parquet").with_columns(person="x" + pl.col("person"))
        table.write_csv(others)
        facts = json.loads(pl.read_parquet_metadata(full / "labels.parquet")["clip3dreid_labels"])
        others.with_suffix(".json").write_text(json.dumps(facts))
    changes = [change.replace("OTHERS", str(others)) for change in changes]
    keys = {change.split("=")[0] for change in changes}
    kept = [override for override in guided if override.split("=")[0] not in keys]
    if {"model.teacher=null", "~model/teacher"} & set(changes):
        kept = [override for override in kept if not override.startswith("model.teacher")]
    done = invoke("train", *arguments(ltcc_root, "method=clip3dreid_paper", *kept, *changes))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_refuses_other_bodies(
    ltcc_root: Path, guided: tuple[str, ...], invoke: Command, tmp_path: Path
) -> None:
    bodies = write_bodies(tmp_path / "bodies")
    root = f"bodies.root={bodies}"
    done = invoke("train", *arguments(ltcc_root, "method=clip3dreid_paper", *guided, root, "epochs=1"))
    assert done.returncode == 0, done.stderr
    truth = pl.read_parquet(bodies / "truth.parquet")
    truth.with_columns(pl.col("betas").list.eval(pl.element() + 1)).write_parquet(bodies / "truth.parquet")
    done = invoke("train", "resume=run")
    assert done.returncode == 2
    assert "bodies.root is not what this run began with" in done.stderr


def test_two_data_sets_are_labelled_picture_by_picture(
    ltcc_root: Path, guided: tuple[str, ...], invoke: Command, tmp_path: Path
) -> None:
    other = write_ltcc(tmp_path / "other", train=range(50, 53), test=range(60, 62))
    done = invoke(
        "train", *arguments(ltcc_root, "method=clip3dreid_paper", "loss=[identity,local]", *guided),
        "epochs=1", "labels.level=image", "+data@data.also.second=ltcc", f"data.also.second.root={other}",
        "data.also.second.name=second",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pl.read_parquet(tmp_path / "run" / "labels.parquet")
    assert set(table["data_set"]) == {"ltcc", "second"}
    assert not any(path.startswith("/") for path in table["path"])


def test_clothed_people_are_no_textureless_bodies(
    ltcc_root: Path, guided: tuple[str, ...], invoke: Command, tmp_path: Path
) -> None:
    root = write_bodies(tmp_path / "clothed")
    truth = pl.read_parquet(root / "truth.parquet").with_columns(outfit_top=pl.lit("shirt"))
    truth.write_parquet(root / "truth.parquet")
    done = invoke("train", *arguments(ltcc_root, "method=clip3dreid_paper", *guided, f"bodies.root={root}"))
    assert done.returncode == 2
    assert "shows clothed people" in done.stderr
