"""The code reads the files of deploy/examples, and each file names every key."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from pluralllm.client.disclosure.policy import (
    DEFAULT_POLICY,
    Policy,
    RespondentPrivacy,
    RoundPrivacy,
    load_policy,
    new_policy,
)
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.process.configuration import load_config
from pluralllm.common.words.usual_embedding import load_spec
from pluralllm.server.process.config import ServerConfig

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
KEY = re.compile(r"^(?:# )?(\w+) = ", re.MULTILINE)


@pytest.fixture(autouse=True)
def _no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (ServerConfig, ClientConfig):
        for key in kind.model_fields:
            monkeypatch.delenv(f"{kind.env_prefix}{key.upper()}", raising=False)


def test_coordinator_sample_is_the_default_configuration() -> None:
    assert load_config(ServerConfig, EXAMPLES / "coordinator.toml", {}) == load_config(ServerConfig, None, {})


def test_policy_sample_is_the_default_policy_and_what_joining_writes() -> None:
    assert (EXAMPLES / "policy.toml").read_text() == DEFAULT_POLICY
    usual = RespondentPrivacy(respondents_epsilon=4.0, delta=1e-6, allow_true_shares=True)
    rounds = RoundPrivacy(rounds="required")
    assert load_policy(EXAMPLES / "policy.toml") == Policy(private_rounds=rounds, privacy=usual, compare_questions=True)


def test_a_partner_can_join_without_noise(tmp_path: Path) -> None:
    for noise, table in ((True, RespondentPrivacy(allow_true_shares=True)), (False, None)):
        (tmp_path / "policy.toml").write_text(new_policy(noise=noise))
        policy = load_policy(tmp_path / "policy.toml")
        rounds = RoundPrivacy(rounds="required")
        assert policy == Policy(private_rounds=rounds, privacy=table, compare_questions=True)
        assert policy.missing_keys == ()


def test_client_sample_is_read_and_names_the_sample_policy() -> None:
    config = load_config(ClientConfig, EXAMPLES / "client.toml", {})
    assert config.policy == Path("policy.toml")
    assert (EXAMPLES / config.policy).is_file()


def test_client_sample_is_read_with_every_optional_key_set(tmp_path: Path) -> None:
    text = (EXAMPLES / "client.toml").read_text()
    full = tmp_path / "client.toml"
    full.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    config = load_config(ClientConfig, full, {})
    assert None not in config.model_dump().values()


def test_run_sample_holds_out_two_groups_and_names_the_sample_clients_group() -> None:
    spec = load_spec(EXAMPLES / "run.toml")
    group = re.search(r'^# group = "(\w+)"', (EXAMPLES / "client.toml").read_text(), re.MULTILINE)
    assert group is not None
    assert group[1] in spec.groups.train
    assert len(spec.groups.held_out) == 2


@pytest.mark.parametrize(
    ("file", "kind"),
    [("coordinator.toml", ServerConfig), ("client.toml", ClientConfig), ("policy.toml", Policy)],
)
def test_sample_shows_every_key(file: str, kind: type[BaseModel]) -> None:
    keys = set(kind.model_fields)
    if kind is Policy:  # the sample has the keys of the tables in place of the tables' names
        keys = keys - {"privacy", "private_rounds"} | {*RespondentPrivacy.model_fields, *RoundPrivacy.model_fields}
    assert set(KEY.findall((EXAMPLES / file).read_text())) == keys


def test_the_table_of_the_policy_sample_is_the_default_table(tmp_path: Path) -> None:
    text = (EXAMPLES / "policy.toml").read_text()
    table = text[text.index("[privacy]\n") :]
    (tmp_path / "policy.toml").write_text(re.sub(r"^# (?=\w+ = )", "", table, flags=re.MULTILINE))
    privacy = load_policy(tmp_path / "policy.toml").privacy
    assert privacy is not None
    assert privacy == RespondentPrivacy(ledger=privacy.ledger, max_weight=1.0, allow_true_shares=True)
