"""Pickles are looked through before anything reads them."""

import io
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip3dreid.errors import InputError
from clip3dreid.io.pickle_scan import MOST_NESTED, scan_pickle
from tests.io.test_formats import JSON


@given(JSON | st.tuples(JSON, st.frozensets(st.integers())), st.integers(0, 5))
def test_pickles_of_plain_values_are_looked_through_to_their_end(value: Any, protocol: int) -> None:
    stream = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    scan_pickle(stream)
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", range(6))
def test_values_may_be_many_and_not_deep(protocol: int) -> None:
    scan_pickle(io.BytesIO(pickle.dumps([list(range(3000)), {i: (i,) for i in range(3000)}], protocol)))
    for make in (lambda value: [value], lambda value: (value,), lambda value: {0: value}):
        value: Any = 1
        for _ in range(MOST_NESTED + 5):
            value = make(value)
        sys.setrecursionlimit(max(10_000, sys.getrecursionlimit()))
        with pytest.raises(InputError, match=f"nested more than {MOST_NESTED} deep"):
            scan_pickle(io.BytesIO(pickle.dumps(value, protocol)))
