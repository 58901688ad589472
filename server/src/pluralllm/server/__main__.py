"""The command line `pluralllm-server`. Each command is imported when it is typed; the table says where its code is."""

from pluralllm.common.process.lifetime import begin

begin(__name__, "pluralllm-server", "serve")  # before all imports that take a moment

from pluralllm.common import __version__
from pluralllm.common.process.exits import EXIT_CODES, run_command
from pluralllm.common.process.later_commands import Later, application

# The name that `verify` had until release 0.2: whatever options follow, the answer is the new name.
OLD_NAME = {"ignore_unknown_options": True, "allow_extra_args": True}
COMMANDS = (
    Later(
        "init",
        "Make the federation's certificate authority, this server's certificate and the first administrator.",
        "pluralllm.server.commands.authority_commands:init",
    ),
    Later(
        "admin",
        "Make an administrator on this machine, if no administrator can send an invite. The server must be stopped.",
        "pluralllm.server.commands.authority_commands:admin",
    ),
    Later(
        "renew-issuer",
        "Make a new intermediate and server certificate. --host replaces the host names. A running server loads the new files.",
        "pluralllm.server.commands.authority_commands:renew_issuer",
    ),
    Later(
        "doctor",
        "Check state directory, secrets, certificates, names, ports and disk. Exit code 3 if something is wrong.",
        "pluralllm.server.commands.check_commands:doctor",
    ),
    Later(
        "backup",
        "Copy a coordinator's database rows, blobs and authority into a new directory, and verify the copy.",
        "pluralllm.server.commands.backup_commands:backup",
    ),
    Later(
        "restore",
        "Verify a backup and copy it into the configured database, blob store and state directory, which must be empty.",
        "pluralllm.server.commands.backup_commands:restore",
    ),
    Later(
        "support-bundle",
        "Gather versions, configuration, checks, metrics, runs and events in one zip file, without keys, tokens or passwords.",
        "pluralllm.server.commands.check_commands:support_bundle",
    ),
    Later(
        "verify",
        "Check all stored data: no update is lost or counted twice, and every hash is right. The server must be stopped.",
        "pluralllm.server.commands.check_commands:verify",
    ),
    Later(
        "audit",
        "Report that this command is now named `verify`. Another command, `pluralllm audit`, shows who did what.",
        "pluralllm.server.commands.check_commands:audit",
        hidden=True,
        settings=OLD_NAME,
    ),
    Later("serve", "Run the coordinator until SIGTERM or Ctrl-C.", "pluralllm.server.serve_commands:serve"),
    Later(
        "healthy",
        "Check whether the configured coordinator serves or waits as a standby. A container can use it as health check.",
        "pluralllm.server.serve_commands:healthy",
    ),
    Later("config", "Show the coordinator's effective configuration.", "pluralllm.server.serve_commands:show_config"),
)
app = application(
    "pluralllm-server", __version__, "The coordinator of a PluralLLM federation.\n\n" + EXIT_CODES, COMMANDS
)


def main() -> None:
    """Runs the command line. An error becomes a message on stderr and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
