"""The command line `pluralllm`, which administrators and observers of a federation use.

Each command is imported when it is typed; the table says where its code is.
"""

from pluralllm.common.process.lifetime import begin

begin(__name__, "pluralllm", "serve")  # before all imports that take a moment

from typer.core import TyperGroup
from typer.main import get_command

from pluralllm.cli.connection import choose_access
from pluralllm.common import __version__
from pluralllm.common.process.exits import EXIT_CODES, run_command
from pluralllm.common.process.later_commands import CommandTable, Later, application

COMMANDS = (
    Later(
        "invite",
        "Invites a new member: writes an invite file, and prints the same invite as one line.",
        "pluralllm.cli.member_commands:invite",
    ),
    Later(
        "join",
        "Makes you an observer or administrator: makes a key, uses the invite, and stores the certificate.",
        "pluralllm.cli.member_commands:join",
    ),
    Later(
        "approve",
        "Approves a member who joined with an invite that was made with --approve.",
        "pluralllm.cli.member_commands:approve",
    ),
    Later("revoke", "Ends a membership at once.", "pluralllm.cli.member_commands:revoke"),
    Later(
        "page",
        "Prints a link to the coordinator's web page for you. It works once, within a minute, and opens a session of an hour.",
        "pluralllm.cli.member_commands:page",
    ),
    Later(
        "audit",
        "Shows the audit log: the actions, and the members who took them.",
        "pluralllm.cli.member_commands:audit",
    ),
    Later(
        "doctor",
        "Checks the connection to the coordinator: certificate, host name, TLS, clock, membership, protocol version.",
        "pluralllm.cli.member_commands:doctor",
    ),
    Later(
        "explain",
        "Explains an error code and its fix; docs/reference/errors.md lists all codes.",
        "pluralllm.cli.explain_command:explain",
    ),
    Later(
        "quickstart",
        "Makes a folder with a coordinator, five partners, a run spec, a compose file, and a README.md of what to type.",
        "pluralllm.cli.quickstart_command:quickstart",
    ),
    Later(
        "status",
        "Shows a run on one screen: phase, late clients and their reasons, alignment score of each group, next step.",
        "pluralllm.cli.view_commands:status",
    ),
    Later("runs", "Lists the runs, newest first. Archived runs are left out.", "pluralllm.cli.view_commands:runs"),
    Later(
        "rounds",
        "Lists the rounds of a run, newest first: outcome, cohort size, number of updates.",
        "pluralllm.cli.view_commands:rounds",
    ),
    Later(
        "members",
        "Lists the members: role, group, state, days until the certificate ends, key, and the time of the last call.",
        "pluralllm.cli.member_commands:members_app",
        is_group=True,
    ),
    Later("run", "Creates and steers runs.", "pluralllm.cli.run_commands:run_app", is_group=True),
    Later("model", "Published model versions.", "pluralllm.cli.model_commands:app", is_group=True),
    Later("spec", "Makes and checks run specs.", "pluralllm.cli.spec_commands:spec_app", is_group=True),
)


def _add_others(commands: TyperGroup) -> None:
    from importlib.metadata import entry_points  # noqa: PLC0415 - the search takes a moment

    from pluralllm.cli.package_commands import ENTRY_POINTS, add_package_commands  # noqa: PLC0415

    add_package_commands(commands, entry_points(group=ENTRY_POINTS))


app = application(
    "pluralllm",
    __version__,
    "Operates and watches a PluralLLM federation.\n\n" + EXIT_CODES,
    COMMANDS,
    choose_access,
    _add_others,
)


def command_line() -> TyperGroup:
    """Returns the whole command line: the commands of this package and of other installed packages."""
    commands = get_command(app)
    assert isinstance(commands, CommandTable)
    commands.complete()
    return commands


def run() -> None:
    """Runs the command that was typed, and ends the process with the command's exit code."""
    get_command(app)()


def main() -> None:
    """The entry point of the command `pluralllm`: runs the typed command, and prints an error as one clear line."""
    run_command(run)


if __name__ == "__main__":
    main()
