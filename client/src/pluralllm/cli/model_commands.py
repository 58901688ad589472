"""The command `pluralllm model pull`: downloads a published model version as files.

The package pluralllm-research adds the commands `export` and `serve` to the command group `model`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.output import show
from pluralllm.common.process.console import Json, terminal
from pluralllm.common.process.json_forms import MODEL
from pluralllm.common.words.names import ModelName

app = typer.Typer(no_args_is_help=True, help="Published model versions.")
Model = Annotated[str, typer.Argument(help="RUN or RUN@VERSION; without a version the current one.")]
Folder = Annotated[Path, typer.Argument(help="Folder for the files; it is made if it does not exist.")]


@app.command()
def pull(model: Model, folder: Folder, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Downloads a model version: model.safetensors, run_spec.json, provenance.json. Resumes a download that broke off."""
    from pluralllm.operator.saved_model import save_model  # noqa: PLC0415 - gRPC takes a moment

    name = ModelName.parse_short(model)
    with download_progress(quiet=as_json) as report_bytes:
        record = save_model(remote(coordinator), name, folder, report_bytes)
    value = {**record, "folder": str(folder)}
    show(MODEL, value, as_json=as_json, screen=lambda shown: f"{shown['name']} in {folder}")


@contextmanager
def download_progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar for the download of a model version on stderr, if stderr is a terminal.

    Yields a callback (done, total) that moves the bar; done and total are in bytes. quiet: shows no bar.
    """
    from rich.progress import DownloadColumn, Progress  # noqa: PLC0415

    console = terminal(stderr=True)
    disable = quiet or not console.is_terminal
    with Progress(*Progress.get_default_columns(), DownloadColumn(), disable=disable, console=console) as bar:
        task = bar.add_task("model.safetensors", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
