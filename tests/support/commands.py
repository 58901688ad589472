"""Runs commands as a person types them, each in a process of its own that starts at once.

One process loads Python and the libraries once and does nothing else. Each command is a fork of that process and loads our
own modules afresh. So a test of a command's text takes a tenth of the seconds that the imports take. All else is as in a
shell: arguments, environment, working directory, standard streams, exit code. Commands that run on (serve, run, watch),
and tests of signals or of the start itself, use `subprocess` instead.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

SERVER, CLIENT, CLI = "pluralllm.server", "pluralllm.client", "pluralllm.cli"
# None of these starts a thread or opens a channel when it is imported, so a fork of the process is as good as a new one.
LOADED = [
    *(f"{module}.__main__" for module in (SERVER, CLIENT, CLI)),
    *(f"{SERVER}.serve_commands", f"{CLIENT}.daemon_process", f"{CLI}.run_commands", "rich.live"),
    f"{SERVER}.composition",
    *("grpc", "sqlalchemy.ext.asyncio", "cryptography.x509", "pyarrow.parquet", "torch", "transformers"),
    *(
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
    ),
]
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
    words = [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as stream_folder:
        streams = [Path(stream_folder, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(standard_input, encoding="utf-8")
        for stream in streams[1:]:
            stream.touch()
        facts = (words, dict(os.environ if environment is None else environment), str(folder or Path.cwd()))
        process = _loaded().Process(target=_act, args=(*facts, [str(stream) for stream in streams]))
        process.start()
        process.join(limit_s)
        if process.exitcode is None:
            process.kill()
            process.join(10)
            raise subprocess.TimeoutExpired(words, limit_s, *(stream.read_bytes() for stream in streams[1:]))
        output, errors = (stream.read_text(encoding="utf-8") for stream in streams[1:])
        return Completed(words, process.exitcode, output, errors)


def _loaded() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)  # only the first call has an effect
    return context


def _act(words: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> None:
    """Runs in the forked process: connects its streams, sets its environment and calls the command's main()."""
    os.setsid()
    for number, (path, mode) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(path, mode | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115 - open to the process's end
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.startswith("pluralllm.") and not name.startswith("pluralllm.v1")]:
        del sys.modules[name]  # some of our constants are read from the environment when the module is imported
    module, *arguments = words
    sys.argv = [module, *arguments]
    importlib.import_module(f"{module}.__main__").main()
