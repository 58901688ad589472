from pathlib import Path

import pytest

from pluralllm.server.commands.backup_commands import next_command, next_step


@pytest.mark.parametrize(
    ("config", "state_dir", "shown"),
    [
        (None, None, "pluralllm-server serve"),
        (None, Path("re stored"), "pluralllm-server serve --state-dir 're stored'"),
        (Path("c.toml"), Path("there"), "pluralllm-server serve --config c.toml --state-dir there"),
    ],
)
def test_what_was_restored_is_served_with_the_options_of_restore(
    config: Path | None, state_dir: Path | None, shown: str
) -> None:
    assert next_command(config, state_dir) == shown
    assert next_step(config, state_dir).splitlines()[-1].strip() == shown, "nothing is copied with the command"
