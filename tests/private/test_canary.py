"""The secrets of a private round are in no log, no error, no repr, no message in plain, and in no support bundle."""

import base64
import json
import zipfile
from pathlib import Path

import pytest
from private.evil_client import BAD_BOXES, deals_bad_boxes, secrets_of
from private.evil_coordinator import CONFIRM, REVEAL, SHARES, UPDATE, Coordinator, new_round, without
from structlog.testing import capture_logs

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import write_group
from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.lines import KeysLine, SharesLine, UpdateLine
from pluralllm.client.private_rounds.masking import masking_secrets
from pluralllm.client.support_command import support_bundle
from pluralllm.client.work.worker_process import WORKER_COMMAND
from pluralllm.common.private_rounds.messages import Reveal


def forms(secret: bytes) -> set[str]:
    """Returns the texts by which a secret could be written."""
    return {secret.hex(), base64.b64encode(secret).decode(), str(secret)[2:-1], str(int.from_bytes(secret, "big"))}


def secrets_in_round(coordinator: Coordinator) -> set[str]:
    """Returns every form of every secret of all clients: rk, m, b, e, the seed, shares, keys of pairs and of streams."""
    secrets: set[bytes] = set()
    for name, client in coordinator.clients.items():
        own = secrets_of(client)
        secrets |= {own.mask, own.own, own.box, own.training, bytes.fromhex(client.notebook.needed(KeysLine).secret)}
        shares = client.notebook.needed(SharesLine)
        secrets |= {bytes.fromhex(shares.own_self), bytes.fromhex(shares.own_mask)}
        holding = steps.hold(client.notebook, client.me, coordinator.honest_view(name))
        for held in holding.held.values():
            secrets |= {held.own, held.mask}
        secrets |= set(holding.pair_keys.values())
        if client.notebook.line(UpdateLine) is None and not holding.bad:
            masking = masking_secrets(client.notebook, client.me, holding)
            secrets |= {key for key, _ in masking.streams} | {masking.rounding}
    return {form for secret in secrets for form in forms(secret)}


def leaks(secrets: set[str], text: str) -> list[str]:
    return [secret for secret in secrets if secret in text]


Told = tuple[Coordinator, set[str], list[str]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A round with lies of the coordinator and of a member, all secrets of it, and every text that it has made."""
    coordinator = new_round(tmp_path_factory.mktemp("clients"), 8, hidden_among=2)
    texts: list[str] = []
    with capture_logs() as logs:
        coordinator.run(SHARES)
        deals_bad_boxes(coordinator, "gus", ("bob",), BAD_BOXES[2])
        secrets = secrets_in_round(coordinator)
        coordinator.ask(UPDATE)
        coordinator.ask(CONFIRM)
        coordinator.ask(REVEAL)
        coordinator.updates = without(coordinator.honest_view("ann"), "fay").updates
        for client in coordinator.clients.values():
            client.has_receipt = False
            client.restart()
        for step in (CONFIRM, REVEAL):
            texts += [f"{error} {error!r} {error.facts}" for error in coordinator.ask(step).values()]
    for name, client in coordinator.clients.items():
        holding = steps.hold(client.notebook, client.me, coordinator.honest_view(name))
        lines = [client.notebook.line(kind) for kind in (KeysLine, SharesLine, UpdateLine)]
        texts.append(f"{client.me} {client.notebook} {holding} {secrets_of(client)} {lines}")
    texts += [json.dumps(line, default=str) for line in logs]
    return coordinator, secrets, texts


def test_no_log_no_error_and_no_repr_shows_a_secret_of_the_round(told: Told) -> None:
    _, secrets, texts = told
    assert len(secrets) > 4 * 7 * 20
    assert any("private.another_sum" in text for text in texts)
    assert any("private.bad_box" in text for text in texts)
    assert leaks(secrets, "\n".join(texts)) == []


def test_no_message_shows_a_secret_before_the_reveal_and_a_reveal_shows_shares_only(told: Told) -> None:
    coordinator, secrets, _ = told
    before = [message.to_json().decode() for _, message in coordinator.got if not isinstance(message, Reveal)]
    assert leaks(secrets, "\n".join(before)) == []
    revealed = coordinator.sent(Reveal, "ann")[0].to_json().decode()
    assert len(leaks(secrets, revealed)) == 8, "the control: one share of each dealer is found"


def test_the_support_bundle_of_a_client_within_a_round_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = new_round(tmp_path / "clients")
    coordinator.run(SHARES)
    secrets = secrets_in_round(coordinator)
    state = coordinator.clients["ann"].folder
    data = tmp_path / "town.jsonl"
    write_group(
        data, [CountedQuestion("Do you like the sea?", ("Yes", "No"), (0.7, 0.3), counts=(7, 3), respondents=10)]
    )
    (state / "client.toml").write_text(f'data = "{data}"\nstate_dir = "{state}"\nplain_text = true\n')
    monkeypatch.chdir(state)
    monkeypatch.setattr("pluralllm.client.support_command.checks_of", lambda of: [])
    support_bundle(tmp_path / "bundle.zip", [], state / "client.toml")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        text = "\n".join(archive.read(name).decode() for name in archive.namelist())
    assert "private/first.7/notebook" in text
    assert leaks(secrets, text) == []
    assert len(leaks(secrets, (state / "private" / "first.7" / "notebook").read_text())) == 3, "the control"


def test_the_command_line_of_the_worker_has_no_place_for_a_key() -> None:
    assert WORKER_COMMAND[1:] == ("-m", "pluralllm.client.work.worker")
