import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from clip3dreid.errors import InputError
from clip3dreid.io.files import FileIdentity
from clip3dreid.search.settings import ShardSettings
from clip3dreid.search.shard_writer import ShardWriter
from clip3dreid.search.shards import Shards, unreadable
from tests.small_disk import fill as fill_disk
from tests.small_disk import small_disk

COUNT, WIDTH = 10, 3
FACTS = {"fingerprint": "f" * 64, "vectors": {"embedding": WIDTH, "betas": 2}}
TABLE = pl.DataFrame(
    {"path": [f"{row}.png" for row in range(COUNT)], "person": [None, "007", *map(str, range(2, COUNT))]}
)
IDENTITIES = [FileIdentity(path, 5, 7) for path in TABLE["path"]]


def open_writer(folder: Path, *, form="parquet", dtype="float32", rows_per_shard=4, **changes) -> ShardWriter:
    settings = ShardSettings(form, dtype, rows_per_shard)
    given = {"table": TABLE, "identities": IDENTITIES, "facts": FACTS, **changes}
    return ShardWriter(folder, settings=settings, **given)


def vectors_of(rows) -> dict:
    values = np.arange(COUNT * WIDTH, dtype=np.float32).reshape(COUNT, WIDTH)[rows]
    return {"embedding": values, "betas": values[:, :2] / 3}


def fill(writer: ShardWriter, numbers=None, skip=()) -> None:
    for number in writer.missing() if numbers is None else numbers:
        rows = np.array([row for row in writer.rows(number) if row not in skip], np.int64)
        skipped = [(row, "no picture") for row in writer.rows(number) if row in skip]
        writer.put(number, rows, vectors_of(rows), [["tall", f"w{row}"] for row in rows], skipped)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path, form, dtype):
    writer = open_writer(tmp_path, form=form, dtype=dtype)
    assert writer.missing() == [0, 1, 2]
    fill(writer, skip=(1, 8, 9))
    assert not writer.missing()
    assert not open_writer(tmp_path, form=form, dtype=dtype).missing()
    shards = Shards(tmp_path)
    kept = [0, 2, 3, 4, 5, 6, 7]
    assert shards.labels["row"].to_list() == kept
    assert len(shards) == 7
    assert shards.labels["person"].to_list() == [None, *map(str, kept[1:])]
    assert shards.labels["words"].to_list() == [["tall", f"w{row}"] for row in kept]
    expected = vectors_of(kept)["embedding"].astype(dtype)
    assert np.array_equal(torch.cat(list(shards.blocks("embedding"))).numpy(), expected)
    assert [len(block) for block in shards.blocks("betas")] == [3, 4, 0]
    assert unreadable(tmp_path).rows() == [(f"{row}.png", "no picture") for row in (1, 8, 9)]


def test_any_reader_of_the_formats_can_do_without_us(tmp_path):
    fill(open_writer(tmp_path / "a"))
    fill(open_writer(tmp_path / "b", form="safetensors"))
    table = pl.read_parquet(tmp_path / "a" / "shard-*.parquet")
    assert table["embedding"].dtype == pl.Array(pl.Float32, WIDTH)
    assert table["path"][9] == "9.png"
    found = load_file(tmp_path / "b" / "shard-000001.safetensors")
    assert np.array_equal(found["embedding"], vectors_of(range(4, 8))["embedding"])


def test_processes_fill_one_folder_together(tmp_path):
    fill(open_writer(tmp_path / "one"))
    for process in (1, 0):
        writer = open_writer(tmp_path / "two", share=(process, 2))
        assert writer.missing() == list(range(process, 3, 2))
        fill(writer)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "other"])
def test_a_damaged_shard_is_named_and_made_anew_and_the_others_are_kept(tmp_path, form, harm):
    folder = tmp_path / "shards"
    fill(open_writer(folder, form=form))
    whole = contents(folder)
    path = folder / f"shard-000001.{form}"
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        place = bytes(data).index(np.float32(14).tobytes())  # in the middle of a vector
        data[place] ^= 1
        path.write_bytes(data)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes((folder / f"shard-000000.{form}").read_bytes())
    with pytest.raises(InputError, match=r"shard-000001.*run extract again"):
        list(Shards(folder).blocks("embedding"))
    writer = open_writer(folder, form=form)
    assert writer.missing() == [1]
    fill(writer)
    assert contents(folder) == whole


def test_changed_pictures_and_labels_are_computed_anew(tmp_path):
    fill(open_writer(tmp_path))
    changed = [*IDENTITIES[:5], FileIdentity("5.png", 5, 8), *IDENTITIES[6:]]
    assert open_writer(tmp_path, identities=changed).missing() == [1]
    relabelled = TABLE.with_columns(
        person=pl.when(pl.col("path") == "9.png").then(pl.lit("x")).otherwise("person")
    )
    assert open_writer(tmp_path, table=relabelled).missing() == [2]
    longer = pl.concat([TABLE, pl.DataFrame({"path": ["10.png"], "person": ["1"]})])
    more = [*IDENTITIES, FileIdentity("10.png", 5, 7)]
    writer = open_writer(tmp_path, table=longer, identities=more)
    assert writer.missing() == [2]
    with pytest.raises(
        InputError, match=r"1 of 3 shards are missing, damaged or of other pictures.*shard-000002"
    ):
        list(Shards(tmp_path).blocks("embedding"))


def test_an_unfinished_extraction_of_changed_labels_is_no_gallery(tmp_path):
    fill(open_writer(tmp_path))
    writer = open_writer(tmp_path, table=TABLE.with_columns(camera=pl.lit("1")))
    assert writer.missing() == [0, 1, 2]
    fill(writer, [0, 1])
    with pytest.raises(InputError, match=r"1 of 3 shards.*first shard-000002"):
        Shards(tmp_path)


def test_shards_of_a_longer_list_are_removed(tmp_path):
    fill(open_writer(tmp_path))
    fill(open_writer(tmp_path, table=TABLE[:3], identities=IDENTITIES[:3]))
    assert pl.read_parquet(tmp_path / "shard-*.parquet")["path"].to_list() == ["0.png", "1.png", "2.png"]


def test_pictures_that_went_missing_do_not_cost_their_shards(tmp_path):
    fill(open_writer(tmp_path), skip=(1,))
    before = contents(tmp_path)
    gone = [FileIdentity(one.path, -1, 0) if one.path == "5.png" else one for one in IDENTITIES]
    with pytest.raises(InputError, match=r"not there any more, first 5\.png; bring them back"):
        open_writer(tmp_path, identities=gone)
    assert contents(tmp_path) == before
    # The one that was skipped has nothing to lose.
    skipped = [FileIdentity(one.path, -1, 0) if one.path == "1.png" else one for one in IDENTITIES]
    assert open_writer(tmp_path, identities=skipped).missing() == [0]


def test_no_damage_of_a_byte_is_more_than_one_line(tmp_path):
    fill(open_writer(tmp_path))
    path = tmp_path / "shard-000001.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(7)
    for place in rng.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        assert open_writer(tmp_path).missing() in ([1], [])
        said = "shard-000001"
        try:
            list(Shards(tmp_path).blocks("embedding"))
        except InputError as error:
            said = str(error)
        assert "shard-000001" in said


def test_a_folder_keeps_its_own_shard_size(tmp_path):
    fill(open_writer(tmp_path))
    writer = open_writer(tmp_path, rows_per_shard=100)
    assert writer.rows_per_shard == 4
    assert not writer.missing()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"facts": {**FACTS, "fingerprint": "e" * 64}}, "holds shards of another model"),
        ({"facts": {**FACTS, "flip": True}}, "holds shards of flip=None"),
        ({"form": "safetensors"}, "holds shards of format=parquet"),
        ({"form": "csv"}, "format=csv is unknown"),
        ({"dtype": "int8"}, "dtype=int8 is unknown"),
        ({"rows_per_shard": 0}, "rows_per_shard=0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, said):
    fill(open_writer(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=said):
        open_writer(tmp_path, **changes)
    assert contents(tmp_path) == before


def test_vectors_that_are_no_numbers_name_the_picture(tmp_path):
    writer = open_writer(tmp_path)
    vectors = vectors_of(range(4))
    vectors["betas"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"2\.png a betas with NaN"):
        writer.put(0, np.arange(4), vectors, None, [])
    half = open_writer(tmp_path / "half", dtype="float16")
    with pytest.raises(InputError, match="too large for float16"):
        half.put(0, np.arange(4), {"embedding": np.full((4, 3), 1e6, np.float32)}, None, [])


def test_rows_of_another_shard_are_a_defect(tmp_path):
    with pytest.raises(ValueError, match="rows 0 to 3"):
        open_writer(tmp_path).put(0, np.arange(3), vectors_of(range(3)), None, [])


def test_what_shards_do_not_hold_is_said(tmp_path):
    fill(open_writer(tmp_path))
    with pytest.raises(InputError, match="holds no joint"):
        Shards(tmp_path).width("joint")
    with pytest.raises(InputError, match="holds no shards"):
        Shards(tmp_path / "nothing")
    index = json.loads((tmp_path / "index.json").read_text())
    for broken, said in (
        ({"version": 9}, "version 9"),
        ({"format": "csv"}, "damaged"),
        ({"shards": "x"}, "damaged"),
    ):
        (tmp_path / "index.json").write_text(json.dumps(index | broken))
        with pytest.raises(InputError, match=said):
            Shards(tmp_path)


def test_nothing_is_lost_when_the_disk_is_full(tmp_path):
    """A real write fails, for the limit of a process's files, in the middle of the second shard."""
    code = """
import resource, sys
from tests.search.test_shards import fill, open_writer
from clip3dreid.errors import InputError
from pathlib import Path
writer = open_writer(Path(sys.argv[1]))
fill(writer, [0])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    fill(writer, [1])
except InputError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    folder = tmp_path / "shards"
    found = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot write shard-000001" in found.stdout
    assert "the rest is kept" in found.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "shard-000000.parquet"]
    writer = open_writer(folder)
    assert writer.missing() == [1, 2]
    fill(writer)
    fill(open_writer(tmp_path / "undisturbed"))
    assert contents(folder) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "safetensors"])
@pytest.mark.parametrize("leave", range(0, 40_000, 4_000))
def test_a_disk_that_fills_up_for_real_is_one_line_and_the_next_run_goes_on(tmp_path, form, leave):
    fill(open_writer(tmp_path / "undisturbed", form=form))
    with small_disk(tmp_path / "disk", 400) as disk:
        filler = fill_disk(disk, leave=leave)
        copies = (disk / str(copy) for copy in range(20))
        last = disk

        def fill_many() -> None:
            nonlocal last
            for last in copies:
                fill(open_writer(last, form=form))

        with pytest.raises(InputError, match="No space left on device"):
            fill_many()
        filler.unlink()
        # An ending in the middle leaves nothing but whole files.
        assert not list(disk.rglob(".*"))
        fill(open_writer(last, form=form))
        assert contents(last) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "name", ["shard-000000.parquet", "shard-000009.safetensors", "unreadable.csv", "index.json"]
)
def test_files_that_are_nobody_knows_whose_are_neither_replaced_nor_removed(tmp_path, name):
    """A wrong `out`, such as another program's folder of shards."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=r"no index\.json that says whose|of something else|has version None"
    ) as error:
        open_writer(tmp_path)
    assert "remove" not in str(error.value)
    assert contents(tmp_path) == {name: b"{}"}


def test_shards_beyond_the_list_are_removed_only_if_the_index_knows_them(tmp_path):
    fill(open_writer(tmp_path))
    (tmp_path / "shard-000077.parquet").write_text("mine")
    fill(open_writer(tmp_path, table=TABLE[:3], identities=IDENTITIES[:3]))
    assert sorted(contents(tmp_path)) == ["index.json", "shard-000000.parquet", "shard-000077.parquet"]


@pytest.mark.parametrize("name", ["shard-000001.parquet", "shard-000002.parquet", "index.json"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path, name):
    folder = tmp_path / "shards"
    fill(open_writer(folder))
    (folder / name).rename(tmp_path / "precious")
    (folder / name).symlink_to(tmp_path / "precious")
    before = (tmp_path / "precious").read_bytes()
    with pytest.raises(InputError, match="is a link"):
        fill(open_writer(folder, table=TABLE[:7].reverse(), identities=IDENTITIES[:7]))
    assert (tmp_path / "precious").read_bytes() == before
    assert (folder / name).is_symlink()


def test_the_folder_itself_may_be_a_link_to_a_large_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "shards").symlink_to(tmp_path / "disk")
    fill(open_writer(tmp_path / "shards"))
    fill(open_writer(tmp_path / "plain"))
    assert contents(tmp_path / "disk") == contents(tmp_path / "plain")


def test_what_killed_processes_were_writing_is_swept_away_by_whoever_writes_it_now(tmp_path):
    fill(open_writer(tmp_path))
    litter = [f".shard-00000{number}-abcdefgh.parquet" for number in range(3)]
    for name in [*litter, ".index-abcdefgh.json", ".notes-abcdefgh.txt"]:
        (tmp_path / name).write_text("half")
    open_writer(tmp_path, share=(1, 2))
    assert [name for name in contents(tmp_path) if name.startswith(".shard")] == [litter[0], litter[2]]
    open_writer(tmp_path, share=(0, 2))
    assert [name for name in contents(tmp_path) if name.startswith(".")] == [".notes-abcdefgh.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*index\.json: Not a directory"):
        open_writer(tmp_path / "file" / "shards")
