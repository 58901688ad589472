"""The shell and the terminal of a person: completion, and colours that can be switched off."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

BINARIES = Path(sys.executable).parent
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pluralllm ", {"status", "run", "explain", "experiment"}),
        ("pluralllm run c", {"create", "cancel"}),
        ("pluralllm-server s", {"serve", "support-bundle"}),
        ("pluralllm-client data i", {"import"}),
        ("pluralllm-client run --dev", {"--device"}),
    ],
)
def test_a_shell_is_told_what_can_follow(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    asked = {
        f"_{words[0].upper().replace('-', '_')}_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [str(BINARIES / words[0])],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert offered <= set(done.stdout.split())


def on_a_terminal(folder: Path, **environment: str) -> bytes:
    """Returns the output of a doctor that finds a problem, which is red unless colours are off."""
    ours, its = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI", "TERM")}
    output = b""
    with subprocess.Popen(
        [sys.executable, "-m", "pluralllm.server", "doctor", "--state-dir", str(folder / "nowhere")],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        env={**kept, "TERM": "xterm-256color", "PLURALLLM_SERVER_LISTEN": "127.0.0.1:0", **environment},
    ) as process:
        os.close(its)
        try:
            while piece := os.read(ours, 65_536):
                output += piece
        except OSError:  # Linux reports the end of the last writer as an error
            pass
        finally:
            os.close(ours)
        assert process.wait(60) == 3
    return output


def test_colours_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    assert COLOUR.search(on_a_terminal(tmp_path))
    assert not COLOUR.search(on_a_terminal(tmp_path, NO_COLOR="1"))
