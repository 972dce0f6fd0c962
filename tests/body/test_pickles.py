import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from clip3dreid.body.pickles import read_pickle
from clip3dreid.body.smpl import load_body
from clip3dreid.errors import InputError


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
        read_pickle(path)


def test_damaged_and_foreign_pickles_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "body.pkl"
    path.write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="no readable pickle"):
        read_pickle(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(InputError, match="no dictionary"):
        read_pickle(path)
