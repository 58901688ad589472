"""The commands `pluralllm status | runs | rounds`, which show runs."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pluralllm.cli.arguments import RunArgument, status_view
from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.output import now, show
from pluralllm.common.process.console import Json, say, terminal
from pluralllm.common.process.exits import REFUSED
from pluralllm.common.process.json_forms import ROUNDS, RUN, RUNS
from pluralllm.common.process.streams import reader_is_gone


def status(
    run: RunArgument = "-",
    watch: Annotated[bool, typer.Option("--watch", help="Refresh the screen until the run ends.")] = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Shows a run on one screen: phase, late clients and their reasons, alignment score of each group, next step.

    A new screen follows each event if --watch writes into a pipe or a file. Watching ends with the run, and with exit code 3 if
    the run stands still because too few clients can take part before their owners act.
    """
    connection = remote(coordinator)
    if not watch:
        show(RUN, connection.get_run(run), as_json=as_json, screen=status_view)
        return
    if as_json:
        from pluralllm.common.errors.tree import InvalidArgument  # noqa: PLC0415

        raise InvalidArgument(field="--watch", problem="cannot be had with --json; poll `status --json` instead")
    from rich.live import Live  # noqa: PLC0415 - a single screen needs none

    from pluralllm.operator.watching import news_of, states_of  # noqa: PLC0415 - gRPC takes a moment

    console = terminal()
    newest: list[dict[str, Any]] = []

    def states() -> Iterator[dict[str, Any]]:
        for state in states_of(connection, run, is_unwatched=lambda: reader_is_gone(sys.stdout)):
            newest[:] = [state]
            yield state

    following = states()
    if console.is_terminal:
        with Live(status_view(next(following)), auto_refresh=False, console=console) as live:
            for state in following:
                live.update(status_view(state), refresh=True)
    else:
        for state in news_of(following):
            console.print(status_view(state))
    if newest[0]["phase"] != "ended" and newest[0].get("blocked"):
        say(f"The run stands still: {newest[0]['blocked']}. Watch it again when that is mended.", err=True)
        raise typer.Exit(REFUSED)


def runs(
    archived: Annotated[bool, typer.Option("--archived", help="List archived runs, too.")] = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Lists the runs, newest first. Archived runs are left out."""
    from pluralllm.cli.status_screen import runs_table  # noqa: PLC0415

    listed = {"runs": remote(coordinator).runs(summary=not as_json, archived=archived)}
    show(RUNS, listed, as_json=as_json, screen=lambda value: runs_table(value["runs"], now()))


def rounds(
    run: RunArgument = "-",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of rounds to list, newest first.")] = 30,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Lists the rounds of a run, newest first: outcome, cohort size, number of updates."""
    from pluralllm.cli.status_screen import rounds_table  # noqa: PLC0415

    listed = {"rounds": remote(coordinator).rounds(run, limit, summary=not as_json)}
    show(ROUNDS, listed, as_json=as_json, screen=lambda value: rounds_table(value["rounds"], now()))
