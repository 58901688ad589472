"""`pluralllm report RUN`: a live run as a page to look at."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.output import now
from pluralllm.common.errors.membership import RoleForbids
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import showing_progress
from pluralllm.common.process.extras import need_report
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.names import ModelName, RunName

if TYPE_CHECKING:
    from pluralllm.operator.remote import Remote

MOST_ROUNDS = 100_000


def report(
    run: Annotated[str, typer.Argument(help="The run's name; - is the newest.")] = "-",
    out: Annotated[Path | None, typer.Option(help="Folder of the page and its figures; default: RUN-report.")] = None,
    coordinator: CoordinatorOption = None,
) -> None:
    """One HTML page about a run so far: alignment of each group over rounds, fairness, bytes, spec. Needs no torch."""
    need_report()
    from pluralllm.experiment.report.live import Told  # noqa: PLC0415 - matplotlib, only here
    from pluralllm.experiment.report.live_page import live_page  # noqa: PLC0415
    from pluralllm.experiment.report.page import write_page  # noqa: PLC0415

    there = remote(coordinator)
    found = there.get_run(run)
    name = RunName.parse(found["name"]).run
    folder = out or Path(f"{name}-report")
    if folder.is_file():
        raise InvalidArgument(field="--out", problem=f"{folder} is a file, must be a folder")
    with showing_progress("reading rounds and scores") as tell:
        model, size, spec = _model(there, name)
        told = Told(found, there.rounds(name, MOST_ROUNDS), there.evaluations(name), _members(there), model, size, spec)
        tell("drawing", 0, 0)
        page = write_page(live_page(told, f"{now():%Y-%m-%d %H:%M} UTC"), folder)
    typer.echo(str(page))


def _model(there: "Remote", run: RunId) -> tuple[dict[str, Any] | None, int | None, dict[str, Any] | None]:
    """Record, size and run spec of the current version; an observer is not told."""
    try:
        record, size, spec_json = there.model_record(ModelName(run, None))
    except RoleForbids:
        return None, None, None
    return record, size, json.loads(spec_json)


def _members(there: "Remote") -> list[dict[str, Any]] | None:
    """Only administrators are told."""
    try:
        return there.members()
    except RoleForbids:
        return None
