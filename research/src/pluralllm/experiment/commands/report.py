"""The command `pluralllm report RUN`, which writes a report about a live run as an HTML page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.output import now
from pluralllm.common.errors.membership import RoleForbids
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import say, showing_progress
from pluralllm.common.process.extras import need_report
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.names import ModelName, RunName

if TYPE_CHECKING:
    from pluralllm.operator.remote import Remote


def report(
    run: Annotated[str, typer.Argument(help="The run's name; - is the newest.")] = "-",
    out: Annotated[Path | None, typer.Option(help="Folder of the page and its figures; default: RUN-report.")] = None,
    coordinator: CoordinatorOption = None,
) -> None:
    """Writes one HTML page about a run: alignment of each group, fairness, bytes, spec.

    The page shows the run up to now, round by round. The command needs no torch.
    """
    need_report()
    from pluralllm.experiment.report.live import Answers  # noqa: PLC0415 - matplotlib, only here
    from pluralllm.experiment.report.live_page import live_page  # noqa: PLC0415
    from pluralllm.experiment.report.page import write_page  # noqa: PLC0415

    connection = remote(coordinator)
    run_facts = connection.get_run(run)
    name = RunName.parse(run_facts["name"]).run
    folder = out or Path(f"{name}-report")
    if folder.is_file():
        raise InvalidArgument(field="--out", problem=f"{folder} is a file, must be a folder")
    with showing_progress("reading rounds and scores") as report_progress:
        rounds, evaluations = connection.rounds(name, summary=True), connection.evaluations(name)
        facts = Answers(run_facts, rounds, evaluations, _members(connection), *_current_model(connection, name))
        report_progress("drawing", 0, 0)
        page = write_page(live_page(facts, f"{now():%Y-%m-%d %H:%M} UTC"), folder)
    say(str(page))


def _current_model(connection: "Remote", run: RunId) -> tuple[dict[str, Any] | None, int | None, dict[str, Any] | None]:
    """Returns the record, the size in bytes and the run spec of the run's current model version.

    Each of the three values is None if the caller's role may not read it.
    """
    try:
        record, size_bytes, spec_json = connection.model_record(ModelName(run, None))
    except RoleForbids:
        return None, None, None
    return record, size_bytes, json.loads(spec_json)


def _members(connection: "Remote") -> list[dict[str, Any]] | None:
    """Returns the members of the federation; None if the caller is no administrator."""
    try:
        return connection.members()
    except RoleForbids:
        return None
