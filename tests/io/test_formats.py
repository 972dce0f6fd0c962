"""The one guard around every read, the checksums, and the readers that are built of both."""

import datetime
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip3dreid.errors import InputError
from clip3dreid.io.formats import (
    CHECKSUM,
    TABLE_CHECKSUMS,
    checksum,
    decoding,
    npz_keys,
    read_json,
    read_npz,
    read_table,
    read_text,
    read_yaml,
    seal,
    unseal,
    write_table,
)
from tests.processes import PATIENCE_S


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\nb"), "x.bin cannot be read as a thing (a b); get it again"),
        (KeyError("name"), "x.bin cannot be read as a thing (KeyError 'name'); get it again"),
        (AssertionError(), "x.bin cannot be read as a thing (AssertionError); get it again"),
        (
            FileNotFoundError(2, "No such file"),
            "x.bin cannot be read as a thing (No such file); get it again",
        ),
        (
            pl.exceptions.ComputeError("out of spec"),
            "x.bin cannot be read as a thing (out of spec); get it again",
        ),
        (pl.exceptions.PanicException("at 7"), "x.bin cannot be read as a thing (at 7); get it again"),
        (
            MemoryError("175 TiB"),
            "x.bin asks for more memory than there is: it is damaged, or too large to be read as a thing; "
            "get it again",
        ),
        (InputError("said already"), "said already"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_decoder_raises_is_one_line(error: BaseException, told: str) -> None:
    with pytest.raises(InputError) as caught, decoding("x.bin", "a thing", "get it again"):
        raise error
    assert str(caught.value) == told


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whoever_wants_to_leave_may(error: type[BaseException]) -> None:
    with pytest.raises(error), decoding("x.bin", "a thing", "get it again"):
        raise error


def test_a_panic_of_polars_itself_is_one_line(tmp_path: Path) -> None:
    def panic(series: pl.Series) -> pl.Series:
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")

    with pytest.raises(InputError, match=r"unwrap"), decoding("x", "a table", "y"):
        pl.DataFrame({"a": [1]}).select(pl.col("a").map_batches(panic))


def test_reading_text_needs_no_import_of_polars_or_omegaconf() -> None:
    code = "import sys, clip3dreid.io.formats as f; assert not {'polars', 'omegaconf', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("text", [b"", b"[]", b'"a"', b"3", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_json_that_is_no_object_is_one_line(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"x\.json cannot be read as facts \(.*\); mend it") as error:
        read_json(path, "facts", "mend it")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", [b"a: ]", b"\xff\xfe\x00", b"- !!python/object/apply:os.mkdir [ran]", b"a text alone"]
)
def test_yaml_that_is_none_or_would_run_something_is_one_line(
    tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"x\.yaml cannot be read as a config") as error:
        read_yaml(path, "a config", "mend it")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_texts_and_configs_come_back(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [1, 'x']\nb: ü\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml", "a config", "") == {"a": [1, "x"], "b": "ü"}
    (tmp_path / "x.txt").write_bytes("\ufeffü".encode())
    assert read_text(tmp_path / "x.txt", "x", "") == "ü"
    (tmp_path / "x.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"text_file=x cannot be read as text \(.*\); mend it"):
        read_text(tmp_path / "x.txt", "text_file=x", "mend it")


@pytest.mark.parametrize(
    "value",
    [
        1e-3,
        3.5e-4,
        1e-05,
        1e22,
        5,
        True,
        None,
        "1e-3",
        "5_1",
        "2026_11_26",
        "null",
        "yes",
        "a: b",
        [],
        {"c": [1.0]},
    ],
)
def test_a_config_that_was_saved_comes_back_with_the_same_types(tmp_path: Path, value: Any) -> None:
    from omegaconf import OmegaConf

    path = tmp_path / "x.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"a": value}), resolve=True), encoding="utf-8")
    assert repr(read_yaml(path, "a config", "")) == repr({"a": value})


def test_what_looks_like_a_reference_is_looked_up_nowhere(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: ${oc.env:HOME}\nb: ${a}\n")
    assert read_yaml(tmp_path / "x.yaml", "a config", "") == {"a": "${oc.env:HOME}", "b": "${a}"}


def test_a_power_of_ten_that_a_person_wrote_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1e-3\nb: -2E4\nc: 1e-3x\n")
    assert read_yaml(tmp_path / "x.yaml", "a config", "") == {"a": 1e-3, "b": -2e4, "c": "1e-3x"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text().filter(lambda key: key != CHECKSUM), JSON, max_size=5))
def test_sealed_facts_come_back_from_a_file_as_they_were(facts: dict[str, Any]) -> None:
    read = json.loads(json.dumps(seal(facts)))
    assert unseal(read, Path("x.json"), "") == facts


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from("abc"), JSON, min_size=1), st.sampled_from("abc"), JSON)
def test_a_fact_that_was_changed_is_told(facts: dict[str, Any], key: str, value: Any) -> None:
    sealed = seal(facts)
    changed = sealed | {key: value}
    if json.dumps(changed, sort_keys=True) != json.dumps(sealed, sort_keys=True):
        with pytest.raises(InputError, match=r"x\.json is damaged \(its checksum is another\); mend it"):
            unseal(changed, Path("x.json"), "mend it")


def test_facts_of_an_earlier_version_are_read_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert unseal({"a": 1}, Path("x.json"), "") == {"a": 1}
    assert "x.json has no checksum" in caplog.text


def test_a_checksum_whose_own_name_was_damaged_is_not_taken_for_none(tmp_path: Path) -> None:
    sealed = seal({"a": 1})
    renamed = {"a": 2, "chacksum": sealed[CHECKSUM]}
    with pytest.raises(
        InputError, match=r"x\.json is damaged \('chacksum' stands where checksum would\); mend it"
    ):
        unseal(renamed, Path("x.json"), "mend it")
    for name in (TABLE_CHECKSUMS.replace("dr", "dR"), "clip7dzeid_sheckswms"):
        TABLE.write_parquet(tmp_path / "x.parquet", metadata={name: "{}"})
        with pytest.raises(InputError, match=r"x\.parquet is damaged"):
            read_table(tmp_path / "x.parquet", "a table", "")


@pytest.mark.parametrize("name", ["checkhecksum", "checksu", "hecksum", "cjeckrum"])
def test_letters_of_a_checksum_s_name_may_be_lost_doubled_or_others(name: str) -> None:
    with pytest.raises(InputError, match=r"x\.json is damaged"):
        unseal({"a": 1, name: "0"}, Path("x.json"), "")


def test_names_of_ours_do_not_pass_for_a_damaged_checksum() -> None:
    facts = {"clip3dreid_heads": 1, "checkpoint": 2, "version": 3, "fingerprint": 4}
    assert unseal(facts, Path("x.json"), "") == facts


@given(hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8]), hnp.array_shapes(max_side=4)), st.data())
def test_a_checksum_changes_with_any_bit_name_type_or_shape(array: np.ndarray, data: st.DataObject) -> None:
    ours = checksum(None, [("a", array)])
    raw = bytearray(array.tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    others = [
        np.frombuffer(bytes(raw), array.dtype).reshape(array.shape),
        array[None],
        array.view(np.uint8),
    ]
    assert all(
        checksum(None, [("a", other)]) != ours for other in others[: 2 if array.dtype == np.uint8 else 3]
    )
    assert checksum(None, [("b", array)]) != ours != checksum({}, [("a", array)])
    assert checksum(None, [("a", array.copy(order="F"))]) == ours


TABLE = pl.DataFrame(
    {
        "number": [1, None, 3],
        "text": ["x", None, "üü"],
        "list": [[1.0, 2.0], [], None],
        "deep": [[["a"], []], [], None],
        "fixed": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int32, 2)),
        "nothing": [None, None, None],
        "flag": [True, False, None],
        "record": [{"p": 1, "q": "z"}, None, {"p": 2, "q": None}],
        "day": [datetime.date(2020, 1, 1), None, datetime.date(2021, 1, 1)],
        "kind": pl.Series(["u", "v", None], dtype=pl.Categorical),
        "bytes": [b"\x00", b"", None],
    }
)


def test_a_table_comes_back_whole_or_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "[odd]*name.parquet"  # a pattern, to those who look for one
    write_table(path, TABLE, {"clip3dreid": "facts"})
    table, metadata = read_table(path, "a table", "")
    assert table.equals(TABLE)
    assert metadata == {"clip3dreid": "facts"}
    part, _ = read_table(path, "a table", "", columns=("deep", "text"))
    assert part.equals(TABLE.select("deep", "text"))
    assert not caplog.text


@pytest.mark.parametrize("column", TABLE.columns)
def test_a_value_that_was_changed_is_told_with_its_column(tmp_path: Path, column: str) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, TABLE)
    sums = pl.read_parquet_metadata(path)[TABLE_CHECKSUMS]
    # Nothing for something, something for nothing: as if the file said so.
    changed = TABLE.with_columns(
        pl.col(column).reverse() if column != "nothing" else pl.lit(1).alias("nothing")
    )
    if column in ("day", "flag"):
        changed = TABLE.with_columns(pl.col(column).shift(1))
    changed.write_parquet(path, metadata={TABLE_CHECKSUMS: sums})
    with pytest.raises(
        InputError, match=rf"x\.parquet is damaged \(the checksum of {column} is another\); mend"
    ):
        read_table(path, "a table", "mend it")
    others = [name for name in TABLE.columns if name != column]
    read_table(path, "a table", "", columns=others)


def test_a_column_or_a_fact_that_is_gone_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_table(path, TABLE, {"clip3dreid": "facts"})
    own = pl.read_parquet_metadata(path)
    for table, facts in ((TABLE.drop("text"), "facts"), (TABLE, "fact")):
        kept = {TABLE_CHECKSUMS: own[TABLE_CHECKSUMS], "clip3dreid": facts}
        table.write_parquet(path, metadata=kept)
        with pytest.raises(InputError, match=r"the checksum of (text|metadata) is another"):
            read_table(path, "a table", "")
    with pytest.raises(InputError, match="has no column colour"):
        read_table(path, "a table", "", columns=["colour"])


def test_a_table_without_checksums_is_read_and_only_ours_gets_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.parquet"
    TABLE.write_parquet(path)
    assert read_table(path, "a table", "", sealed=False)[0].equals(TABLE)
    assert not caplog.text
    assert read_table(path, "a table", "")[0].equals(TABLE)
    assert "x.parquet has no checksum" in caplog.text


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, polars as pl, torch
from clip3dreid.errors import InputError
from clip3dreid.io.formats import write_table
from clip3dreid.model.weights import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
folder = Path(sys.argv[1])
for write in (
    lambda: write_table(folder / "a.parquet", pl.DataFrame({"a": np.random.rand(100_000)})),
    lambda: save_weights({"a": torch.rand(100_000)}, {}, folder / "a.safetensors"),
):
    try:
        write()
    except InputError as error:
        print(error)
print(sorted(path.name for path in folder.iterdir()))
"""


def test_a_disk_that_is_full_is_one_line_whatever_library_finds_out(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.safetensors"):
        (tmp_path / name).write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    table, weights, names = done.stdout.splitlines()
    for line, name in ((table, "a.parquet"), (weights, "a.safetensors")):
        assert line.startswith(f"cannot write {tmp_path / name}: "), done.stderr
        assert line.endswith("make room, or choose another place")
        assert (tmp_path / name).read_text() == "old"
    assert names == "['a.parquet', 'a.safetensors']"


def test_a_defect_in_writing_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises((TypeError, pl.exceptions.PolarsError)):
        write_table(tmp_path / "x.parquet", pl.DataFrame({"a": [object()]}, schema={"a": pl.Object}))


@given(
    hnp.arrays(
        st.sampled_from([np.dtype("<f4"), np.dtype(">i8"), np.dtype("?"), np.dtype("<U3"), np.dtype("S2")]),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    ),
    st.booleans(),
    st.booleans(),
)
def test_arrays_come_back_from_an_archive(array: np.ndarray, fortran: bool, compressed: bool) -> None:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        file, a=array.copy(order="F" if fortran else "C"), b=[1]
    )
    path: Any = file  # zipfile takes either
    found = read_npz(path, "x.npz", "", keys=["a", "c"])
    assert found.keys() == {"a"}
    np.testing.assert_array_equal(found["a"], array)
    assert (found["a"].dtype, found["a"].shape) == (array.dtype, array.shape)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray, **header: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    if not header:
        return file.getvalue()
    made = io.BytesIO()
    plain = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(made, plain | header)
    return made.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    "member",
    [
        npy(np.zeros(3), shape=(10**12,)),
        npy(np.zeros(3), shape=(2,)),
        npy(np.zeros(3), shape=(-3,)),
        npy(np.zeros(3), descr="|V24", shape=(1,)),
        npy(np.zeros(3), descr=f"|S{10**12}", shape=(1,)),
        npy(np.zeros(3))[:-1],
        npy(np.zeros(3)) + b"more",
        b"",
        b"\x93NUMPY\x09\x00" + bytes(20),
        pickle.dumps([1]),
    ],
    ids=["huge", "smaller", "negative", "void", "wide", "cut", "longer", "empty", "version", "pickle"],
)
def test_an_array_that_is_not_what_its_header_says_is_one_line(tmp_path: Path, member: bytes) -> None:
    path = archive(tmp_path / "x.npz", a=member)
    with pytest.raises(InputError, match=r"features=x: a cannot be read as an array .*; mend it") as error:
        read_npz(path, "features=x", "mend it")
    assert "\n" not in str(error.value)


def test_an_archive_that_grows_beyond_measure_is_refused_before_it_does(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10**6), b=np.zeros(10**6))
    assert (tmp_path / "x.npz").stat().st_size < 10**5
    assert read_npz(tmp_path / "x.npz", "x", "", keys=["a"], most_bytes=10**7).keys() == {"a"}
    with pytest.raises(InputError, match=r"x holds 16 MB of arrays, and 10 at most are expected; mend it"):
        read_npz(tmp_path / "x.npz", "x", "mend it", most_bytes=10**7)


def test_objects_are_left_out_where_that_is_asked_for_and_refused_elsewhere(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", a=npy(np.array([{}], dtype=object)), b=npy(np.ones(1)))
    assert read_npz(path, "x", "", skip_objects=True).keys() == {"b"}
    assert npz_keys(path, "x", "") == ["a", "b"]
    with pytest.raises(InputError, match="a holds no plain numbers or strings, and is not unpickled"):
        read_npz(path, "x", "")


def test_an_array_whose_name_was_damaged_is_not_taken_for_one_that_nobody_asked_for(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", a=npy(np.ones(1)), b=npy(np.ones(1)))
    directory = path.read_bytes().rindex(b"b.npy")
    data = bytearray(path.read_bytes())
    data[directory] = ord("c")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"File name in directory .* differ"):
        read_npz(path, "x", "", keys=["a", "b"])
