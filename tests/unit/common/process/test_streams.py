"""Output that cannot be shown or written never ends a command: not on any terminal, pipe or device."""

import io
import json
import os
import select
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from pluralllm.common.process.streams import ESCAPES, Output, output_below, reader_is_gone

GROUP = "日本 é 😀"
# A command that prints, does its work, and prints again. The work is a file, as durable as any.
COMMAND = """
import sys
from pathlib import Path
from rich.table import Table
from pluralllm.common.process.console import print_json, say, terminal
from pluralllm.common.process.exits import run_command
from pluralllm.common.process.json_forms import CHECKS

def command():
    table = Table("group")
    table.add_row(sys.argv[2])
    terminal().print(table)
    say(sys.argv[2] * 10_000)
    say(sys.argv[2], err=True)
    Path(sys.argv[1]).write_text("done")
    print_json(CHECKS, {"checks": [{"name": sys.argv[2]}]})

run_command(command)
"""


def run(tmp_path: Path, stdout: int, **environment: str) -> tuple[int, str]:
    """Runs the command. Returns its exit code and what it wrote to stderr; its work must be done whatever becomes of stdout."""
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(work), GROUP],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    assert work.read_text() == "done"
    return done.returncode, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict"])
def test_a_terminal_that_lacks_characters_shows_escapes_and_json_stays_json(tmp_path: Path, encoding: str) -> None:
    with (tmp_path / "out").open("wb") as out:
        assert run(tmp_path, out.fileno(), PYTHONIOENCODING=encoding)[0] == 0
    text = (tmp_path / "out").read_text(encoding.partition(":")[0])
    assert r"\u65e5\u672c" in text
    assert json.loads(text[text.index("{\n") :])["checks"] == [{"name": GROUP}]


def test_a_pipe_whose_reader_is_gone_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, errors = run(tmp_path, writing)
    finally:
        os.close(writing)
    assert (code, errors.strip()) == (0, GROUP)


def test_a_full_device_is_reported_after_the_work(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        code, errors = run(tmp_path, full.fileno())
    assert code == 1
    assert "standard output could not be written (No space left on device)" in errors
    assert "Traceback" not in errors


def test_output_drops_bytes_after_its_first_failure() -> None:
    with io.FileIO("/dev/full", "wb") as full:
        output = Output(full)
        assert [output.write(b"abc"), output.write(memoryview(b"de"))] == [3, 2]
        assert output.is_broken
    reading, writing = os.pipe()
    os.close(reading)
    with io.FileIO(writing, "wb") as pipe:
        output = Output(pipe)
        assert output.write(b"abc") == 3
        assert output.failure is not None
        assert not output.is_broken, "the reader wants no more"


def test_output_waits_for_a_slow_reader() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with io.FileIO(writing, "wb") as pipe:
        while pipe.write(b"x" * 4096) is not None:
            pass
        slow_reader = threading.Thread(target=os.read, args=(reading, 65_536))
        slow_reader.start()
        assert Output(pipe).write(b"y" * 4096) == 4096
        slow_reader.join(10)
    os.close(reading)


def test_a_stream_of_a_test_stays_as_it_is() -> None:
    assert output_below(io.StringIO()) is None
    assert output_below(None) is None


def test_a_reader_of_a_pipe_gets_each_line_at_once() -> None:
    command = "import sys; from pluralllm.common.process.exits import run_command as run\n"
    command += "run(lambda: (print('address'), sys.stdin.read(1)))"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 30)
        process.communicate(b"\n", timeout=60)
    assert ready  # the line came before the command went on


def test_a_working_directory_that_was_deleted_is_named(tmp_path: Path) -> None:
    command = "import os; from pathlib import Path; from pluralllm.common.process.exits import run_command as run\n"
    command += "os.rmdir(os.getcwd()); run(lambda: Path('state').absolute())"
    folder = tmp_path / "gone"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"the working directory does not exist any more" in done.stderr) == (3, True)


def test_toml_stays_toml_on_a_terminal_that_lacks_characters() -> None:
    names = ["Zürich", "é", "日本", "😀"]
    text = f"names = {json.dumps(names, ensure_ascii=False)}"
    assert tomllib.loads(text.encode("ascii", ESCAPES).decode("ascii")) == {"names": names}


def test_a_pipe_whose_reader_has_ended_has_no_reader_and_every_other_stream_may_have_one(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe, (tmp_path / "file").open("w") as file:
        assert [reader_is_gone(stream) for stream in (pipe, file, io.StringIO())] == [False] * 3
        os.close(reading)
        assert reader_is_gone(pipe)
