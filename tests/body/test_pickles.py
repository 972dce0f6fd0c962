import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from clip3dreid.body.pickles import read_pickle
from clip3dreid.body.smpl import load_body, read_arrays
from clip3dreid.errors import InputError
from tests.processes import PATIENCE_S


class Malicious:
    def __init__(self, call: object, *arguments: object) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> object:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, nested: bool, protocol: int) -> None:
    mark = tmp_path / "ran"
    attack: object = Malicious(os.system, f"touch {mark}")
    if nested:
        attack = {"v_template": np.array([attack], dtype=object)}
    path = tmp_path / "body.pkl"
    path.write_bytes(pickle.dumps(attack, protocol=protocol))
    with pytest.raises(InputError, match=r"(posix|nt|os)\.system") as caught:
        load_body(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    [
        (eval, "1"),
        (getattr, "a", "upper"),
        (np.load, "x.npy"),
        (np.fromfile, "x"),
        (open, "x"),
        (pickle.loads, b""),
    ],
    ids=lambda call: call[0].__name__,
)
def test_other_callables_are_out_of_reach(tmp_path: Path, call: tuple[object, ...]) -> None:
    path = tmp_path / "body.pkl"
    path.write_bytes(pickle.dumps({"x": Malicious(*call)}))
    with pytest.raises(InputError, match="no plain array"):
        read_pickle(path, ["v_template", "x"])


def test_damaged_and_foreign_pickles_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "body.pkl"
    path.write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="cannot be read as a pickle"):
        read_pickle(path, ["v_template", "x"])
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="no dictionary"):
        read_pickle(path, ["v_template", "x"])


# Instructions, put together by hand as no pickler would.
def pushed(value: object) -> bytes:
    """A plain value, in protocol 3, so that bytes are bytes."""
    return pickle.dumps(value, 3)[2:-1].replace(b"q\x00", b"")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def dtype(name: str, *state: object) -> bytes:
    made = named("numpy", "dtype") + pushed((name, False, True)) + b"R"
    return made + pushed(state) + b"b" if state else made


def ndarray(shape: object, kind: bytes, data: object) -> bytes:
    made = named("numpy.core.multiarray", "_reconstruct") + b"(" + named("numpy", "ndarray") + pushed((0,))
    state = b"(" + pushed(1) + pushed(shape) + kind + b"\x89" + pushed(data) + b"t"
    return made + pushed(b"b") + b"tR" + state + b"b"


def sparse(change: Callable[[scipy.sparse.csc_matrix], None], layout: str = "csc") -> bytes:
    matrix = scipy.sparse.csc_matrix(np.arange(72.0).reshape(24, 3)).asformat(layout)
    change(matrix)
    return pickle.dumps(matrix, 2)[2:-1]


def set_to(name: str, value: object) -> Callable[[object], None]:
    return lambda matrix: setattr(matrix, name, value)


OBJECTS = (3, "|", None, None, None, 8, 8, 0)  # flags 0: numpy would not know that it holds references
FIELD = b"(" + dtype("O8", *OBJECTS) + pushed(0) + b"t"
FIELDS = (named("numpy", "dtype") + pushed(("V8", False, True)) + b"R(" + pushed(3) + pushed("|") + b"N") + (
    pushed(("f",)) + b"}" + pushed("f") + FIELD + b"s" + pushed(8) + pushed(1) + pushed(0) + b"tb"
)
ADDRESSES = struct.pack("<QQ", 0x4141414141414141, 0x4242424242424242)
LITTLE = dtype("f8", 3, "<", None, None, None, -1, -1, 0)

ATTACKS = {
    "bytes as references": ndarray((2,), dtype("O8", *OBJECTS), ADDRESSES),
    "bytes as references in a field": ndarray((2,), FIELDS, ADDRESSES),
    "references of a number": named("numpy.core.multiarray", "scalar")
    + b"("
    + FIELDS
    + pushed(b"A" * 8)
    + b"tR",
    "a type larger than its bytes": ndarray(
        (1,), dtype("V8", 3, "|", None, None, None, 1 << 40, 1, 0), b"x" * 8
    ),
    "a type of 100 GB": ndarray((1,), dtype(f"S{10**11}"), b"x"),
    "a shape larger than its bytes": ndarray((1 << 40,), LITTLE, b"x" * 8),
    "a shape that wraps around": ndarray((1 << 32, 1 << 32), LITTLE, b""),
    "a negative shape": ndarray((-1, -1), LITTLE, b"x" * 8),
    "an array without bytes": named("numpy", "ndarray") + pushed(((1 << 40,),)) + b"R",
    "indices beyond the matrix": sparse(set_to("indices", np.full(71, 1 << 40))),
    "negative indices": sparse(set_to("indices", np.full(71, -1))),
    "lines that go back": sparse(set_to("indptr", np.array([0, 71, 30, 71]))),
    "lines beyond the values": sparse(set_to("indptr", np.array([0, 1 << 40, 1 << 40, 1 << 40]))),
    "indices of two dimensions": sparse(set_to("indices", np.zeros((71, 1), int))),
    "a matrix of 10^12 columns": sparse(set_to("_shape", (24, 10**12)), "coo"),
    "lists in lists": b"]" * 300_000 + b"a" * 299_999,
    "tuples in tuples as a key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "a chumpy array of itself": named("chumpy.ch", "Ch") + b")\x81q\x00}" + pushed("x") + b"h\x00sb",
    "a function with a state": named("_codecs", "encode") + b"}" + pushed("a") + pushed("b") + b"sb",
    "a class with a state": named("chumpy.ch", "Ch") + b"}" + pushed("a") + pushed("b") + b"sb",
    "the four billionth memo": b"r\xff\xff\xff\xff",
    "an object from elsewhere": b"Ppersistent\n",
}
TRY = """
import resource, sys
from pathlib import Path
from clip3dreid.body.smpl import read_arrays
from clip3dreid.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
for path in map(Path, sys.argv[1:]):
    try:
        read_arrays(path)
        print(path.stem, "was read")
    except InputError as error:
        assert str(path) in str(error) and "\\n" not in str(error) and len(str(error)) < 700, error
        print(path.stem, "refused")
"""


def test_no_pickle_reaches_memory_that_is_not_its_own(tmp_path: Path) -> None:
    for number, attack in enumerate(ATTACKS.values()):
        (tmp_path / f"{number}.pkl").write_bytes(b"\x80\x03}" + pushed("v_template") + attack + b"s.")
    paths = [str(tmp_path / f"{number}.pkl") for number in range(len(ATTACKS))]
    # In a process of its own, which such a file may end.
    tried = subprocess.run(
        [sys.executable, "-c", TRY, *paths], capture_output=True, text=True, timeout=PATIENCE_S
    )
    said = dict(line.split(" ", 1) for line in tried.stdout.splitlines())
    for number, name in enumerate(ATTACKS):
        assert said.get(str(number)) == "refused", (name, tried.returncode, tried.stderr[-500:])


@pytest.mark.parametrize("layout", ["csc", "csr", "coo"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_sparse_matrices_are_written_out_as_scipy_does(tmp_path: Path, layout: str, kind: str) -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(24, 50)) * (rng.random((24, 50)) < 0.1)
    matrix = getattr(scipy.sparse, f"{layout}_{kind}")(dense)
    path = tmp_path / "body.pkl"
    path.write_bytes(pickle.dumps({"x": matrix}, protocol=2))
    np.testing.assert_array_equal(read_pickle(path, ["x"])["x"], dense)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(4, dtype=">u4"),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.float64(3),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_numbers_are_read_as_they_are(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    path = tmp_path / "body.pkl"
    path.write_bytes(pickle.dumps({"x": array}, protocol=protocol))
    found = read_pickle(path, ["x"])["x"]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape, found.flags.writeable) == (array.dtype, np.shape(array), True)


def test_what_is_not_wanted_may_be_anything_harmless(tmp_path: Path) -> None:
    path = tmp_path / "body.pkl"
    names = np.array([{"a": 1}], dtype=object)
    path.write_bytes(pickle.dumps({"x": np.ones(2), "names": names, "notes": {"a": ["b", None]}}))
    assert list(read_pickle(path, ["x", "y"])) == ["x"]
    with pytest.raises(InputError, match=r"names|Python objects|type O8"):
        read_pickle(path, ["names"])


def test_one_pickle_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x03}" + pushed("x") + ATTACKS["a class with a state"] + b"s.")
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"x": np.ones(2)}))
    with pytest.raises(InputError):
        read_pickle(tmp_path / "evil.pkl", ["x"])
    assert read_pickle(tmp_path / "good.pkl", ["x"])["x"].tolist() == [1, 1]


def test_an_array_of_an_npz_is_compared_with_its_checksum_though_its_shape_was_made_smaller(
    tmp_path: Path,
) -> None:
    path = tmp_path / "body.npz"
    np.savez(path, **read_arrays("anny_light"))
    data = path.read_bytes()
    assert data.count(b"(1200, 24)") == 1
    path.write_bytes(data.replace(b"(1200, 24)", b"(1200, 23)"))
    with pytest.raises(InputError, match=r"weights cannot be read"):
        read_arrays(path)
