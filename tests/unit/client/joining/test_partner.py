"""Every command of a client finds the client's identity by the same rule, and calls the coordinator as the configuration says."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pluralllm.client.joining.partner import identity_of
from pluralllm.client.process.config import ClientConfig, JoinConfig
from pluralllm.common.errors.membership import NotJoined
from pluralllm.common.trust.identity import Membership, next_key, save_identity
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.authority import Authority, create_authority

NOW_S = 1_800_000_000.0
CONFIGS: dict[str, Callable[..., JoinConfig | ClientConfig]] = {
    "reading": JoinConfig,
    "daemon": partial(ClientConfig, data=Path("answers.jsonl")),
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", "fed", ["127.0.0.1"], None, NOW_S)


def saved(folder: Path, authority: Authority) -> None:
    key = next_key(folder)
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.CLIENT, 86_400.0, NOW_S)
    member = Membership(
        federation="fed", name=ClientId("ann"), role=MemberRole.CLIENT, coordinator="x:1", enrolment="x:2"
    )
    save_identity(folder, member, authority.root_pem, key, chain)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("place", ["state/identity", "elsewhere"])
def test_the_identity_is_in_the_configured_folder_or_in_the_state_folder(
    kind: str, place: str, tmp_path: Path, authority: Authority
) -> None:
    keys = {"state_dir": tmp_path / "state", "identity": tmp_path / place if place == "elsewhere" else None}
    with pytest.raises(NotJoined, match="pluralllm-client join"):
        identity_of(CONFIGS[kind](**keys))
    saved(tmp_path / place, authority)
    member = identity_of(CONFIGS[kind](**keys)).membership
    assert (member.name, member.coordinator, member.enrolment) == ("ann", "x:1", "x:2")
    called = identity_of(CONFIGS[kind](coordinator="y:1", enrolment="y:2", proxy="http://p:3", **keys))
    assert (called.membership.coordinator, called.membership.enrolment) == ("y:1", "y:2")
    assert called.proxies.url == "http://p:3"
