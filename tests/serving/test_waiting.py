import asyncio
import threading
from typing import Any

import pytest

from clip3dreid.errors import InputError
from clip3dreid.serving.waiting import WaitingLine
from tests.processes import PATIENCE_S


def test_one_at_a_time_is_answered_in_order_and_who_finds_the_line_full_is_told() -> None:
    line, go = WaitingLine(2), threading.Event()
    done: list[int] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        go.wait(PATIENCE_S)
        threads.add(threading.get_ident())
        done.append(number)
        return number

    async def all_of_them() -> list[Any]:
        asked = [asyncio.ensure_future(line.turn(lambda n=n: work(n))) for n in range(5)]
        await asyncio.sleep(0)
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        # There is room again.
        return [*found, await line.turn(lambda: work(9))]

    *told, last = asyncio.run(all_of_them())
    assert told[:3] == [0, 1, 2]
    assert [str(error) for error in told[3:]] == [
        "2 questions are waiting already; ask again in a moment"
    ] * 2
    assert last == 9
    assert done == [0, 1, 2, 9]
    assert len(threads) == 1


def test_what_fails_is_raised_where_it_was_asked_and_leaves_its_place() -> None:
    async def fails() -> None:
        line = WaitingLine(1)
        for _ in range(5):
            with pytest.raises(InputError, match="bad"):
                await line.turn(raising)

    def raising() -> None:
        raise InputError("bad")

    asyncio.run(fails())
