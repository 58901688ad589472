import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from pluralllm.common.errors.tree import InUse, InvalidConfig
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory


def test_the_directory_and_its_folders_are_made_for_the_owner_only(tmp_path: Path) -> None:
    with StateDirectory(tmp_path / "deep" / "state") as state:
        for folder in (state.path, state.blobs, state.uploads, state.scratch):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with (
        StateDirectory(tmp_path),
        pytest.raises(InUse, match=f"process {os.getpid()}"),
        StateDirectory(tmp_path),
    ):
        pass
    with StateDirectory(tmp_path):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from pluralllm.server.storage.state_directory import StateDirectory\n"
        "with StateDirectory(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {holder.pid}"), StateDirectory(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    with StateDirectory(tmp_path):
        pass


def test_half_written_models_of_a_killed_process_are_cleared_and_uploads_are_not(tmp_path: Path) -> None:
    with StateDirectory(tmp_path) as state:
        (state.scratch / "draft").write_bytes(b"half")
        (state.uploads / "u.part").write_bytes(b"half")
    with StateDirectory(tmp_path) as state:
        assert not list(state.scratch.iterdir())
        assert (state.uploads / "u.part").exists()


def test_a_path_that_cannot_be_a_directory_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidConfig, match="there is a file, or a link to nothing"),
        StateDirectory(tmp_path / "file" / "state"),
    ):
        pass


@pytest.mark.parametrize("name", ["with space", "a?mode=memory", "100%41", "a#b", "a:b@c"])
def test_the_database_is_inside_whatever_the_directory_is_called(tmp_path: Path, name: str) -> None:
    async def open_once(url: URL) -> None:
        await (await open_store(url)).close()

    with StateDirectory(tmp_path / name) as state:
        asyncio.run(open_once(state.database_url))
        assert (state.path / "coordinator.sqlite3").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
