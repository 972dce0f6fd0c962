"""A pack holds the pictures as trainings take them, goes on where it was killed, and is refused if it is another."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from clip3dreid.data.datamodule import ReidDataModule
from clip3dreid.data.datasets import ltcc
from clip3dreid.data.images import TestView, TrainView
from clip3dreid.data.manifest import Manifest
from clip3dreid.data.pack import Pack, PackSize
from clip3dreid.data.pack_settings import PackSettings
from clip3dreid.data.packing import pack
from clip3dreid.errors import InputError
from clip3dreid.io.files import identify
from clip3dreid.io.pictures import UnreadablePicture, read_rgb
from tests.conftest import write_ltcc
from tests.processes import PATIENCE_S

PER_PART = 20


def settings(out: Path, **changes) -> PackSettings:
    return PackSettings(out, **{"height": 32, "width": 16, "workers": 0, **changes})


def module(manifest: Manifest, **changes) -> ReidDataModule:
    sizes = {"height": 32, "width": 16, "people": 4, "pictures": 2, "evaluation_batch": 7}
    return ReidDataModule([manifest], **{**sizes, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ltcc(tmp_path_factory.mktemp("data") / "LTCC_ReID")


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return ltcc.read(root)


@pytest.fixture(scope="module")
def packed(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "ltcc"
    pack([manifest], settings(out), rows_per_part=PER_PART)
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What it holds.


def test_a_pack_has_every_picture_as_the_views_resize_it(manifest: Manifest, packed: Path) -> None:
    found = Pack(packed)
    paths = manifest.table["path"].to_list()
    rows = found.rows_of(identify(manifest.root, paths), "ltcc")
    assert len(found) == len(set(paths)) == len(set(rows.tolist()))
    for path, row in zip(paths, rows.tolist(), strict=True):
        np.testing.assert_array_equal(
            found[row].transpose(2, 0, 1), TestView(32, 16)(read_rgb(manifest.root / path))
        )
    found.check_whole()


def test_a_picture_that_is_query_and_gallery_is_packed_once(tmp_path: Path, manifest: Manifest) -> None:
    twice = manifest.part("test", "query").with_columns(role=pl.lit("gallery"))
    double = manifest.replace(table=pl.concat([manifest.table, twice]))
    report = pack([double], settings(tmp_path / "p"))
    assert report.pictures == double.table["path"].n_unique()


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("augment_on", ["worker", "device"])
@pytest.mark.parametrize("square", [False, True])
def test_training_and_evaluation_see_the_same_bits_as_from_files(
    manifest: Manifest, tmp_path: Path, augment_on: str, square: bool
) -> None:
    size = {"height": 32, "width": 32 if square else 16, "square": square}
    pack([manifest], settings(tmp_path / "p", **size))
    view = TrainView(**size)
    both = [
        module(manifest, **size, augment_on=augment_on, train_view=view, keep_view=True, pack=folder)
        for folder in (None, tmp_path / "p")
    ]
    streams = [
        [[one.on_after_batch_transfer(batch, 0) for batch in loader] for loader in loaders(one)]
        for one in both
    ]
    assert len(streams[0]) == 2
    for files, mapped in zip(*streams, strict=True):
        assert len(files) == len(mapped) > 1
        for one, other in zip(files, mapped, strict=True):
            assert all(map(equal, one, other))
    assert streams[1][0][0].view is not None


def loaders(data: ReidDataModule) -> list:
    return [data.train_dataloader(), *data.test_dataloader()]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_training_that_goes_on_in_mid_epoch_sees_the_rest_of_the_batches(
    manifest: Manifest, packed: Path, workers: int
) -> None:
    def batches(first: int) -> list:
        data = module(manifest, pack=packed, augment_on="device", workers=workers)
        loader = data.train_dataloader()
        loader.batch_sampler.seek(2, first)
        return [data.on_after_batch_transfer(batch, 0) for batch in loader]

    whole, rest = batches(0), batches(2)
    assert len(whole) == len(rest) + 2 > 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(map(equal, one, other))


def test_pictures_that_are_kept_in_memory_are_augmented_on_the_device_too(manifest: Manifest) -> None:
    streams = [
        list(module(manifest, augment_on="device", keep_pictures=kept).train_dataloader())
        for kept in (False, True)
    ]
    for one, other in zip(*streams, strict=True):
        assert torch.equal(one.batch.images, other.batch.images)
        assert torch.equal(one.draws, other.draws)


def test_a_pack_goes_to_other_processes_without_its_pictures(packed: Path) -> None:
    found = Pack(packed)
    first = found[0].copy()
    sent = pickle.dumps(found)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent)[0], first)  # noqa: S301 - its own


def test_several_data_sets_share_a_pack(root: Path, manifest: Manifest, tmp_path: Path) -> None:
    second = ltcc.read(write_ltcc(tmp_path / "LTCC_ReID", train=range(30, 34))).renamed("second")
    report = pack([manifest, second], settings(tmp_path / "p"))
    assert report.pictures == len(manifest.table) + len(second.table)
    from_files, mapped = (
        list(ReidDataModule([manifest, second], height=32, width=16, pack=folder).train_dataloader())
        for folder in (None, tmp_path / "p")
    )
    for one, other in zip(from_files, mapped, strict=True):
        assert all(map(equal, one, other))


def test_the_other_processes_of_a_run_do_not_look_at_the_files(
    manifest: Manifest, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module(manifest, pack=packed)
    first.share_evaluations(tmp_path)
    first.share_pack(tmp_path)
    expected = [list(loader) for loader in loaders(first)]

    def never(*_: object) -> None:
        raise AssertionError("files were looked at")

    monkeypatch.setattr("clip3dreid.data.datamodule.identify", never)
    found = [list(loader) for loader in loaders(module(manifest, pack=packed, shared=tmp_path))]
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            one, other = getattr(one, "batch", one), getattr(other, "batch", other)
            assert all(map(equal, one, other))


# Going on.


def test_what_is_there_is_kept_and_the_end_is_the_same(root: Path, packed: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "LTCC_ReID", tmp_path / "p"
    shutil.copytree(root, data)
    victim = sorted((data / "train").iterdir())[-1]
    whole = victim.read_bytes()
    times = victim.stat()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadablePicture, match=r"leave it out with data\.on_error=skip"):
        pack([ltcc.read(data)], settings(out), rows_per_part=PER_PART)
    made = {name: (out / name).stat().st_mtime_ns for name in contents(out) if name.startswith("pictures")}
    assert 0 < len(made) < len(contents(packed)) - 1
    with pytest.raises(InputError, match=r"is not finished: \d of \d parts are missing"):
        Pack(out)
    victim.write_bytes(whole)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = pack([ltcc.read(data)], settings(out, workers=2))
    assert report.found == len(made) * PER_PART
    assert {name: (out / name).stat().st_mtime_ns for name in made} == made
    assert contents(out) == contents(packed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_that_was_killed_goes_on(root: Path, manifest: Manifest, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "p"
    code = (
        "import sys; from pathlib import Path; from clip3dreid.data.datasets import ltcc;"
        "from clip3dreid.data.packing import pack; from clip3dreid.data.pack_settings import PackSettings\n"
        f"if __name__ == '__main__':\n    pack([ltcc.read(Path({str(root)!r}))], "
        f"PackSettings(Path({str(out)!r}), height=512, width=256, workers={workers}), rows_per_part=4)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + PATIENCE_S
    while len(list(out.glob("pictures-*"))) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = pack([manifest], settings(out, height=512, width=256))
    assert 8 <= report.found <= report.pictures
    Pack(out).check_whole()
    pack([manifest], settings(tmp_path / "q", height=512, width=256), rows_per_part=4)
    assert contents(out) == contents(tmp_path / "q")


def test_parts_of_changed_pictures_alone_are_made_anew(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = shutil.copytree(root, tmp_path / "LTCC_ReID"), tmp_path / "p"
    pack([ltcc.read(data)], settings(out), rows_per_part=PER_PART)
    changed = sorted((data / "train").iterdir())[0]
    Image.fromarray(np.full((40, 20, 3), 9, np.uint8)).save(changed)
    with pytest.raises(
        InputError, match=r"is a pack of another version of ltcc: 1 of 80 pictures .*train/000_1_c1_"
    ):
        module(ltcc.read(data), pack=out).check_pack()
    count = len(ltcc.read(data).table)
    assert pack([ltcc.read(data)], settings(out)).found in (count - PER_PART, PER_PART * (count // PER_PART))
    assert "1 parts are of other or changed pictures, or damaged, and are made anew" in caplog.text
    module(ltcc.read(data), pack=out).check_pack()


def test_fewer_pictures_leave_no_part_behind(root: Path, manifest: Manifest, copy: Path) -> None:
    fewer = manifest.replace(table=manifest.part("train"))
    pack([fewer], settings(copy))
    assert len(Pack(copy)) == 48
    assert len(list(copy.glob("pictures-*"))) == 3


# What is refused.


def test_another_size_is_refused_by_both_sides(manifest: Manifest, copy: Path) -> None:
    with pytest.raises(InputError, match=r"is a pack of 32x16, not 48x16; give another out"):
        pack([manifest], settings(copy, height=48))
    line = r"is a pack of 32x16, and .* to be 48x24; make another with clip3dreid pack height=48 width=24 …"
    with pytest.raises(InputError, match=line):
        module(manifest, height=48, width=24, pack=copy)
    with pytest.raises(InputError, match=r"32x16, and .* 32x32, padded to squares; .* square=true"):
        Pack(copy).check_size(PackSize(32, 32, True))


def test_a_folder_without_a_pack_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no pack; make one with clip3dreid pack"):
        module(manifest, pack=tmp_path)


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def _swap(folder: Path) -> None:
    one, other = folder / "pictures-00000.safetensors", folder / "pictures-00001.safetensors"
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def _index(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"rows": index["rows"] - 1}))


def part(folder: Path) -> Path:
    return folder / "pictures-00001.safetensors"


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a part is gone": lambda folder: part(folder).unlink(),
    "a part is cut short": lambda folder: part(folder).write_bytes(part(folder).read_bytes()[:-1]),
    "a part is empty": lambda folder: part(folder).write_bytes(b""),
    "a byte of a header is another": lambda folder: _flip(part(folder), 20),
    "a byte of the hashes is another": lambda folder: _flip(
        part(folder), part(folder).stat().st_size - 32 * 16 * 3 * 20 - 4
    ),
    "a byte of a picture is another": lambda folder: _flip(part(folder), part(folder).stat().st_size - 7),
    "parts stand in each other's place": _swap,
    "the index was edited": _index,
    "the index is gone": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_a_line_and_mended_by_packing_again(
    manifest: Manifest, packed: Path, copy: Path, damage: str
) -> None:
    DAMAGE[damage](copy)
    with pytest.raises(InputError) as caught:
        module(manifest, pack=copy).train_dataloader()
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        pack([manifest], settings(copy, verify=True))
    if damage.startswith("the index"):
        return  # nobody knows what it was: it says so, and writes over nothing
    pack([manifest], settings(copy))
    assert contents(copy) == contents(packed)


def test_verifying_changes_nothing_and_says_what_is_there(
    manifest: Manifest, packed: Path, tmp_path: Path
) -> None:
    before = contents(packed)
    report = pack([manifest], settings(packed, verify=True))
    assert (report.pictures, report.found) == (len(manifest.table), len(manifest.table))
    assert report.megabytes == pytest.approx(len(manifest.table) * 32 * 16 * 3 / 1e6)
    assert contents(packed) == before
    with pytest.raises(InputError, match="holds no pack"):
        pack([manifest], settings(tmp_path / "none", verify=True))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"height": 0}, "height=0 must be a whole number, 1 or more"),
        ({"workers": -1}, "workers=-1"),
        ({"square": True}, "square=true pads .* say 32x16; make the two equal"),
        ({"verify": "yes"}, "verify=yes"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        settings(tmp_path, **changes)


def test_another_place_for_augmentation_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=r"datamodule\.augment_on=gpu is unknown; choose worker or device"):
        module(manifest, augment_on="gpu")
