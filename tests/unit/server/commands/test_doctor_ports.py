"""The checks of `pluralllm-server doctor` find a port at each kind of address."""

import socket
from pathlib import Path

import pytest

from pluralllm.common.process.console import Check
from pluralllm.server.commands.doctor import checks_of
from pluralllm.server.process.config import ServerConfig


def main_port(state_dir: Path, listen: str) -> Check:
    checks = checks_of(ServerConfig(state_dir=state_dir, plain_text=True, listen=listen))
    return next(check for check in checks if check.name == "main port")


@pytest.mark.parametrize(
    ("bound", "configured"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("::1", "[::]"), ("127.0.0.1", "0.0.0.0")]
)
def test_a_port_is_found_at_the_address_that_it_was_opened_at(tmp_path: Path, bound: str, configured: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as opened:
        listen = f"{configured}:{opened.getsockname()[1]}"
        check = main_port(tmp_path, listen)
        assert (check.ok, check.result) == (True, f"{listen} answers (plain text)")
    check = main_port(tmp_path, listen)
    assert (check.ok, check.result) == (False, f"nothing listens on {listen}")
