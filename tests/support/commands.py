"""Runs commands as a person types them, each in a process of its own that starts at once (support/fork_server.py).

A test of a command's text so takes a tenth of the seconds that the imports take. All is as in a shell: arguments, environment,
working directory, standard streams, exit code. Tests of signals or of the start itself use `subprocess` instead.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support import fork_server
from support.session_folder import session_folder

SERVER, CLIENT, CLI = "pluralllm.server", "pluralllm.client", "pluralllm.cli"
LIMIT_S = 60.0

Completed = subprocess.CompletedProcess


def typed(
    module: str,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    standard_input: str = "",
    limit_s: float = LIMIT_S,
) -> "Completed[str]":
    """Runs `python -m module arguments` to its end.

    environment: the whole environment; by default the test's own. folder: the working directory; by default the test's own.
    standard_input: the text that the command can read. Raises TimeoutExpired after `limit_s`, and kills the process then.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        input=standard_input,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=fork_server.forking(session_folder(), module, os.environ if environment is None else environment),
        timeout=limit_s,
        check=False,
    )
