"""The log of an unexpected exception names the place, and never the values; a log that cannot be written breaks nothing."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
import structlog

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process import lifetime, logs
from pluralllm.common.process.configuration import LogFormat
from pluralllm.common.process.logs import LogFile, LogStream, configure_logs, log_form
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.rpc.boundary import Boundary
from pluralllm.v1 import enrolment_pb2 as pb

CANARY = "canary-" + "k" * 36
JOIN = "/pluralllm.v1.EnrolmentService/Join"


class OpenDoor:
    """A door that admits every caller."""

    @contextlib.asynccontextmanager
    async def enter(self, method: str, context: Any, request: object) -> AsyncIterator[Callable[[], None]]:
        yield lambda: None


class Call:
    """The few parts of a call's context that an abort uses."""

    answer = ""

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.answer = f"{code} {details} {trailing_metadata}"


class Details:
    method = JOIN


async def fails(request: pb.JoinRequest, context: Any) -> None:
    token = request.token
    raise KeyError(len(token))


@pytest.mark.parametrize("form", ["json", "console"])
async def test_an_incident_is_logged_with_its_place_and_without_what_the_caller_sent(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)

    async def continuation(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(fails)

    handler = await Boundary(OpenDoor(), FailStop()).intercept_service(continuation, Details())  # type: ignore[arg-type]
    call = Call()
    with pytest.raises(KeyError):
        await handler.unary_unary(pb.JoinRequest(name="org-a", token=CANARY), call)
    logged = capsys.readouterr().err
    assert "rpc.failed" in logged
    assert "KeyError" in logged
    assert "in fails" in logged or '"name": "fails"' in logged, "the place is what a maintainer needs"
    assert CANARY[:12] not in logged + call.answer
    if form == "json":
        assert json.loads(logged.splitlines()[-1])["incident"] in call.answer


@pytest.mark.parametrize(("refused", "is_coloured"), [(False, True), (True, False)])
def test_lines_for_people_are_coloured_unless_they_refuse_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: bool, is_coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    if refused:
        monkeypatch.setenv("NO_COLOR", "1")
    configure_logs(form="console")
    structlog.get_logger().info("something.happened")
    assert ("\x1b[" in capsys.readouterr().err) == is_coloured


@pytest.mark.parametrize("form", ["json", "console"])
def test_texts_of_an_exception_reach_a_log_as_escapes(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)
    structlog.get_logger().error("task.broken", exc_info=ValueError("\x1b[2J\u202e"))
    shown = capsys.readouterr().err
    assert "u202e" in shown
    assert "ValueError" in shown
    assert not set("\x1b\u202e") & set(shown)


@pytest.mark.parametrize("form", ["json", "console"])
def test_texts_of_another_party_reach_a_log_line_as_escapes(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(form=form)
    structlog.get_logger().info("client.waiting", reason="\x1b[2J\u202e", names=["a\x07"], facts={"b\x08": "c\x7f"})
    line = capsys.readouterr().err.removesuffix("\n")
    assert "u202e" in line
    assert not set("\x1b\u202e\x07\x08\x7f") & set(line)


# A log that cannot be written


class Pipe:
    """A stream in the way of sys.stderr whose writes can fail."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.buffer = self
        self.written = b""
        self.error: Exception | None = None
        self.takes_bytes = 1000  # of one write

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    def write(self, data: bytes) -> int | None:
        if self.error is not None:
            raise self.error
        if self.takes_bytes == 0:
            return None
        piece = bytes(data[: self.takes_bytes])
        self.written += piece
        return len(piece)

    @property
    def lines(self) -> list[str]:
        return self.written.decode().splitlines()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def logging_to(
    pipe: Pipe, form: Literal["json", "console"] = "json", on_loss: Callable[[], None] = lambda: None
) -> Any:
    """Configures logs that go to the pipe, and returns a logger."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        configure_logs(form=form, on_loss=on_loss)
    return structlog.get_logger()


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("I/O operation on closed file."),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_that_cannot_be_written_are_counted_and_reported_when_writing_works_again(
    pipe: Pipe, error: Exception, form: Literal["json", "console"]
) -> None:
    losses: list[None] = []
    log = logging_to(pipe, form, lambda: losses.append(None))
    log.info("first.line")
    pipe.error = error
    for _ in range(3):
        log.info("lost.line", number=1)
    pipe.error = None
    log.info("second.line")
    log.info("third.line")
    assert len(losses) == 3
    first, report, second, third = pipe.lines
    assert ("first.line" in first, "second.line" in second, "third.line" in third) == (True, True, True)
    if form == "json":
        facts = json.loads(report)
        assert (facts["event"], facts["lines"], facts["level"]) == ("log.lines_lost", 3, "warning")
    else:
        assert "log.lines_lost" in report
        assert "3" in report


def test_a_line_that_was_written_in_part_does_not_spoil_the_next_one(pipe: Pipe) -> None:
    log = logging_to(pipe)
    write = pipe.write

    def fill_up(data: bytes) -> int | None:
        if pipe.written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(data[:5])

    pipe.write = fill_up  # type: ignore[method-assign]
    log.info("lost.line")
    pipe.write = write  # type: ignore[method-assign]
    log.info("next.line")
    assert len(pipe.lines) == 3
    assert [json.loads(line)["event"] for line in pipe.lines[1:]] == ["log.lines_lost", "next.line"]


def test_a_short_write_is_continued(pipe: Pipe) -> None:
    pipe.takes_bytes = 3
    logging_to(pipe).info("some.line")
    assert [json.loads(line)["event"] for line in pipe.lines] == ["some.line"]


def test_a_line_that_cannot_be_made_is_lost_and_nothing_is_raised(pipe: Pipe) -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    log = logging_to(pipe)
    log.info("lost.line", value=Unspeakable())
    log.info("next.line")
    assert [json.loads(line)["event"] for line in pipe.lines] == ["log.lines_lost", "next.line"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_text_that_the_stream_cannot_encode_is_escaped(pipe: Pipe, form: Literal["json", "console"]) -> None:
    pipe.encoding = "ascii"
    logging_to(pipe, form).info("some.line", name="\udcff\u00fc")
    [line] = pipe.lines
    assert "some.line" in line


def test_a_process_without_stderr_loses_its_lines_and_goes_on() -> None:
    losses: list[None] = []
    stream = LogStream(None, str, lambda: losses.append(None))
    stream.write("a line\n")
    assert len(losses) == 1


def test_a_reader_that_has_stopped_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "READER_LIMIT_S", 0.01)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as source, open(writer, "w", encoding="utf-8") as sink:  # noqa: PTH123 - of a descriptor
        stream = LogStream(sink, lambda lost_lines: f"{lost_lines} lines lost")
        line = "x" * 4095 + "\n"
        while not stream.lost_lines:
            stream.write(line)
        start_s = time.monotonic()
        monkeypatch.setattr(logs, "READER_LIMIT_S", 1.0)
        for _ in range(10):
            stream.write(line)
        assert time.monotonic() - start_s < 9.0, "only the first line waits"
        assert stream.lost_lines == 11
        source.read(1 << 16)
        stream.write("back\n")
        assert stream.lost_lines == 0
        assert source.read(1 << 16).decode().splitlines()[-2:] == ["11 lines lost", "back"]


def test_a_log_file_is_opened_anew_after_a_hangup_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "_on_hangup", [])
    path, moved = tmp_path / "log", tmp_path / "log.1"
    stream = LogStream(LogFile(path), str)
    stream.write("one\n")
    path.rename(moved)
    stream.write("two\n")
    lifetime._hang_up(signal.SIGHUP, None)
    stream.write("three\n")
    assert (moved.read_text(), path.read_text()) == ("one\ntwo\n", "three\n")
    assert path.stat().st_mode & 0o777 == 0o640
    LogStream(LogFile(path), str).write("four\n")
    assert path.read_text() == "three\nfour\n", "a new process goes on with the file"


def test_a_log_file_that_cannot_be_opened_anew_stays_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifetime, "_on_hangup", [])
    (tmp_path / "folder").mkdir()
    stream = LogStream(LogFile(tmp_path / "folder" / "log"), str)
    (tmp_path / "folder").rename(tmp_path / "moved")
    lifetime._hang_up(signal.SIGHUP, None)
    stream.write("one\n")
    assert (tmp_path / "moved" / "log").read_text() == "one\n"
    assert "cannot be opened anew: No such file or directory" in capsys.readouterr().err
    stream.write("two\n")
    assert capsys.readouterr().err == "", "it is tried again after the next hangup only"
    (tmp_path / "folder").mkdir()
    lifetime._hang_up(signal.SIGHUP, None)
    stream.write("three\n")
    assert (tmp_path / "folder" / "log").read_text() == "three\n"


def test_a_log_file_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"log_file: \S+/none/log cannot be opened: No such file or directory"):
        configure_logs(form="json", file=tmp_path / "none" / "log")


def test_a_pipe_that_nobody_reads_is_no_log_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(InvalidConfig, match=r"log_file: .* cannot be opened"):
        LogFile(tmp_path / "log")


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_log_file_does_not_hold_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifetime, "_on_hangup", [])
    path, moved = tmp_path / "log", tmp_path / "log.1"
    stream = LogStream(LogFile(path), str)
    path.rename(moved)
    os.mkfifo(path)
    lifetime._hang_up(signal.SIGHUP, None)
    stream.write("one\n")
    assert moved.read_text() == "one\n"
    assert "cannot be opened anew" in capsys.readouterr().err
    with pytest.raises(InvalidConfig, match="cannot be opened"):
        LogFile(path)


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "file", "form"),
    [
        ("auto", True, None, "console"),
        ("auto", False, None, "json"),
        ("auto", True, Path("client.log"), "json"),
        ("json", True, None, "json"),
        ("console", False, Path("client.log"), "console"),
    ],
)
def test_a_person_at_a_terminal_reads_lines_and_a_program_reads_json(
    log_format: LogFormat, is_terminal: bool, file: Path | None, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert log_form(log_format, file) == form


def test_a_line_for_a_person_has_the_time_of_the_wall_clock(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(form="console")
    structlog.get_logger().info("client.connected", group="Northmark")
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[info +\] client\.connected +group=Northmark", capsys.readouterr().err
    )
