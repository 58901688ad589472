"""A main loop that stands still shows in everything that reads the pulse of the process."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import typer
from structlog.testing import capture_logs

from pluralllm.common.process import supervisor as supervisor_module
from pluralllm.common.process.pulse import SILENT_FOR_S, Pulse
from pluralllm.common.process.supervisor import SIGN, Supervisor, check_alive


def test_a_pulse_is_alive_until_it_has_been_silent_for_too_long() -> None:
    now_s = 100.0
    pulse = Pulse(lambda: now_s)
    now_s += SILENT_FOR_S
    assert pulse.is_alive
    now_s += 0.1
    assert not pulse.is_alive
    assert pulse.age_s() == pytest.approx(SILENT_FOR_S + 0.1)
    pulse.beat()
    assert pulse.is_alive
    assert (pulse.age_s(), pulse.beats) == (0.0, 1)


class Signs(Supervisor):
    """A supervisor that keeps what it would send to systemd."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir, "@nowhere", 60_000_000)
        self.sent: list[str] = []

    def tell(self, *facts: str) -> None:
        self.sent += facts


@contextlib.asynccontextmanager
async def reassuring(signs: Signs, pulse: Pulse) -> AsyncIterator[Callable[[], object]]:
    """Runs `reassure`, and yields a function that lets one interval pass."""
    turns: asyncio.Queue[None] = asyncio.Queue()
    arrived = asyncio.Event()

    async def sleep(_: float) -> None:
        arrived.set()
        await turns.get()

    async def next_interval() -> None:
        arrived.clear()
        turns.put_nowait(None)
        await arrived.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor_module, "asyncio", type("Asyncio", (), {"sleep": staticmethod(sleep)}))
        task = asyncio.create_task(signs.reassure(pulse))
        await arrived.wait()
        yield next_interval
        task.cancel()
        await asyncio.wait([task])


async def test_the_watchdog_gets_a_sign_for_a_beat_and_none_without(tmp_path: Path) -> None:
    pulse, signs = Pulse(), Signs(tmp_path)
    async with reassuring(signs, pulse) as next_interval:
        assert signs.sent == ["WATCHDOG=1"]
        await next_interval()  # type: ignore[misc]
        assert signs.sent == ["WATCHDOG=1"], "nothing has beaten since"
        pulse.beat()
        await next_interval()  # type: ignore[misc]
        assert signs.sent == ["WATCHDOG=1"] * 2


@pytest.mark.parametrize(("age_s", "is_healthy"), [(SILENT_FOR_S - 5.0, True), (SILENT_FOR_S + 5.0, False)])
async def test_a_process_is_healthy_if_its_loop_has_beaten_lately(
    tmp_path: Path, age_s: float, is_healthy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    start_s = time.monotonic()
    pulse = Pulse(lambda: start_s)
    pulse._now_s = lambda: start_s + age_s
    async with reassuring(Signs(tmp_path), pulse):
        assert (tmp_path / SIGN).exists()
        with contextlib.nullcontext() if is_healthy else pytest.raises(typer.Exit):
            check_alive(tmp_path)
    shown = capsys.readouterr()
    assert ("alive" in shown.out) is is_healthy
    assert f"{age_s:.0f} s ago" in shown.out + shown.err


def test_a_supervisor_that_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        signs = Supervisor(tmp_path, str(tmp_path / "notify"), None)
        with capture_logs() as logs:
            while not logs:  # until the socket's buffer is full
                signs.tell("WATCHDOG=1")
        assert logs[0]["event"] == "supervisor.not_told"
        assert deaf.recv(100) == b"WATCHDOG=1"


async def test_a_folder_that_cannot_be_written_does_not_end_the_signs(tmp_path: Path) -> None:
    pulse, signs = Pulse(), Signs(tmp_path / "missing")
    async with reassuring(signs, pulse) as next_interval:
        pulse.beat()
        await next_interval()  # type: ignore[misc]
        assert signs.sent == ["WATCHDOG=1"] * 2


@pytest.mark.parametrize(("ahead_s", "is_healthy"), [(SILENT_FOR_S - 5.0, True), (SILENT_FOR_S + 5.0, False)])
def test_a_sign_from_before_the_clock_was_set_back_is_no_sign(
    tmp_path: Path, ahead_s: float, is_healthy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / SIGN).touch()
    os.utime(tmp_path / SIGN, (time.time() + ahead_s,) * 2)
    with contextlib.nullcontext() if is_healthy else pytest.raises(typer.Exit):
        check_alive(tmp_path)
    shown = capsys.readouterr()
    assert ("in the future" in shown.err) is not is_healthy


async def test_a_process_that_has_stopped_is_not_alive_until_it_serves_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with reassuring(Signs(tmp_path), Pulse()):
        check_alive(tmp_path)
    with pytest.raises(typer.Exit):
        check_alive(tmp_path)
    assert "or it has stopped" in capsys.readouterr().err
