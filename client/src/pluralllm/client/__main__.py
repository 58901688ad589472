"""The command line `pluralllm-client`. Each command is imported when it is typed; the table says where its code is."""

from pluralllm.common.process.lifetime import begin

begin(__name__, "pluralllm-client", "run")  # before all imports that take a moment

from pluralllm.common import __version__
from pluralllm.common.process.exits import EXIT_CODES, run_command
from pluralllm.common.process.later_commands import Later, application

COMMANDS = (
    Later(
        "consent",
        "Consent to a run that departs from what policy.toml allows. The command shows every difference, then asks.",
        "pluralllm.client.consent_command:consent",
    ),
    Later(
        "privacy",
        "Show what all releases together tell about one respondent, and what is left.",
        "pluralllm.client.privacy_commands:privacy",
    ),
    Later(
        "history",
        "Show the head of each run's history, to compare by phone with other partners or with an administrator.",
        "pluralllm.client.history_commands:history",
    ),
    Later(
        "audit",
        "Show the entries of the coordinator's audit log that concern this client: its membership, its calls and its runs.",
        "pluralllm.client.history_commands:audit",
    ),
    Later(
        "status",
        "Show how well the models predict this group's own answers. The numbers are exact: keep them as secret as the answers.",
        "pluralllm.client.status_command:status",
    ),
    Later(
        "verify",
        "Compute the model version of a private round again, from its transcript and its masked updates, and compare all bytes.",
        "pluralllm.client.verify_command:verify",
    ),
    Later(
        "doctor",
        "Check configuration, data, policy, disk, device, model folder and coordinator. The exit code is 3 if a check fails.",
        "pluralllm.client.doctor:doctor",
    ),
    Later(
        "support-bundle",
        "Gather versions, configuration, checks, metrics and the state's file names in one zip file, without keys or answers.",
        "pluralllm.client.support_command:support_bundle",
    ),
    Later(
        "join",
        "Join a federation: make a key, use the invite, store the certificate, release the answers of --data with noise.",
        "pluralllm.client.daemon_commands:join_federation",
    ),
    Later("run", "Take part in a federation until SIGTERM or Ctrl-C.", "pluralllm.client.daemon_commands:run"),
    Later(
        "healthy",
        "Check that the daemon of this state directory is alive; a container can use the command as its health check.",
        "pluralllm.client.daemon_commands:healthy",
    ),
    Later(
        "config",
        "Show the configuration that results from flags, environment, file and defaults.",
        "pluralllm.client.daemon_commands:show_config",
    ),
    Later("data", "Import, check or embed the private file.", "pluralllm.client.data_commands:app", is_group=True),
    Later(
        "peers",
        "Show the roster of peer keys, which of them this partner has pinned, and the roster's digest.",
        "pluralllm.client.peers_commands:app",
        is_group=True,
    ),
)
app = application(
    "pluralllm-client",
    __version__,
    "Run a partner's daemon: it trains on a private file and sends only weight deltas.\n\n" + EXIT_CODES,
    COMMANDS,
)


def main() -> None:
    """Runs the command line `pluralllm-client`, and ends the process with the command's exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
