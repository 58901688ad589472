"""Who has the next turn at the database."""

import asyncio
from collections.abc import Sequence

import pytest

from pluralllm.server.storage import turns as module
from pluralllm.server.storage.turns import Turns


async def order(turns: Turns, asked: Sequence[str]) -> list[str]:
    """Takes the turn, lets others ask for it, and returns their names in the order in which they had it."""
    had: list[str] = []

    async def ask(name: str) -> None:
        async with turns.turn(reads=name.startswith("r")):
            had.append(name)
            await asyncio.sleep(0)

    async with turns.turn():
        waiting = []
        for name in asked:
            waiting.append(asyncio.create_task(ask(name)))
            await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    return had


async def test_reads_go_before_the_writes_that_wait() -> None:
    assert await order(Turns(), ["w1", "w2", "r1", "w3", "r2"]) == ["r1", "r2", "w1", "w2", "w3"]


async def test_a_write_has_its_turn_however_many_reads_come() -> None:
    asked = [f"r{number}" for number in range(3 * module.READS_IN_A_ROW)]
    had = await order(Turns(), ["w1", "w2", *asked])
    assert had.index("w1") == module.READS_IN_A_ROW
    assert had.index("w2") == 2 * module.READS_IN_A_ROW + 1
    assert [name for name in had if name in asked] == asked


async def test_a_caller_that_goes_away_leaves_the_turn_to_the_next() -> None:
    turns, had = Turns(), []

    async def ask(name: str) -> None:
        async with turns.turn(reads=name.startswith("r")):
            had.append(name)

    for yields in range(4):
        async with turns.turn():
            tasks = {name: asyncio.create_task(ask(name)) for name in ("r1", "r2", "w1", "w2")}
            await asyncio.sleep(0)
            tasks["w1"].cancel()
            tasks["r1"].cancel()
            if yields > 1:
                await asyncio.sleep(0)
        for _ in range(yields):
            await asyncio.sleep(0)
        tasks["r2"].cancel()  # the turn may have come in the same moment
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert had[-1] == "w2"
        async with asyncio.timeout(5), turns.turn():
            pass


async def test_a_turn_that_ends_with_an_error_is_over() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with turns.turn():
                print(1 / 0)
    async with asyncio.timeout(5), turns.turn(reads=True):
        pass
