"""The addresses that a coordinator tells: stored if the coordinator answers there, never instead of what is configured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from pluralllm.client.joining import present_addresses
from pluralllm.client.joining.present_addresses import keep_addresses
from pluralllm.common.errors.membership import ForeignAuthority
from pluralllm.common.errors.tree import InvalidConfig, StorageFull, Unreachable, WrongPort
from pluralllm.common.process.proxies import Proxies
from pluralllm.common.trust.identity import Identity, Membership, next_key, save_identity, stored_addresses
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.authority import create_authority

NOW_S = 1_800_000_000.0
OLD, NEW = Addresses("old:1", "old:2"), Addresses("new:1", "new:2")


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    authority = create_authority(tmp_path / "authority", "fed", ["old"], None, NOW_S)
    key = next_key(tmp_path / "ann")
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.CLIENT, 86_400.0, NOW_S)
    member = Membership(
        federation="fed",
        name=ClientId("ann"),
        role=MemberRole.CLIENT,
        coordinator=OLD.coordinator,
        enrolment=OLD.enrolment,
    )
    return save_identity(tmp_path / "ann", member, authority.root_pem, key, chain)


class Network:
    """The addresses at which a coordinator answers, and those whose main port refuses the member; notes each handshake."""

    def __init__(
        self,
        *answering: str,
        refusing: tuple[str, ...] = (),
        foreign: tuple[str, ...] = (),
        enrolment: tuple[str, ...] = (),
    ) -> None:
        self.answering, self.refusing, self.foreign, self.enrolment = answering, refusing, foreign, enrolment
        self.tried: list[tuple[str, bool]] = []

    def handshake(
        self, address: str, _authority_pem: bytes, _proxies: Proxies, credentials: Path | None = None
    ) -> SimpleNamespace:
        self.tried.append((address, credentials is not None))
        if address in self.foreign:
            raise ForeignAuthority(address=address, problem="another root")
        if address not in self.answering:
            raise Unreachable(address=address, problem="nobody listens")
        return SimpleNamespace(kept=address not in self.refusing)

    def ask(self, identity: Identity) -> None:
        address = identity.membership.coordinator
        if address in self.enrolment:
            raise WrongPort(address=address, wanted="main port", problem="it is the enrolment port")


def keep(
    monkeypatch: pytest.MonkeyPatch,
    network: Network,
    identity: Identity,
    present: Addresses,
    standby: str | None = None,
) -> Identity:
    monkeypatch.setattr(present_addresses, "handshake", network.handshake)
    monkeypatch.setattr(present_addresses, "check_enrolment_port", network.handshake)
    monkeypatch.setattr(present_addresses, "check_main_port", network.ask)
    return keep_addresses(identity, present, standby)


def test_the_addresses_of_a_coordinator_that_has_moved_are_stored(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network("new:1", "new:2")
    used = keep(monkeypatch, network, identity, NEW).membership
    assert stored_addresses(identity.folder) == NEW
    assert network.tried == [("new:1", True), ("new:2", False)]
    assert (used.coordinator, used.enrolment) == ("old:1", "new:2"), "the main address changes at the next start"


def test_addresses_that_are_known_cost_no_connection(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    assert keep(monkeypatch, network, identity, OLD) is identity
    assert network.tried == []


@pytest.mark.parametrize(
    ("network", "stored"),
    [
        (Network(), OLD),
        (Network("new:1"), Addresses("new:1", "old:2")),
        (Network("new:2"), Addresses("old:1", "new:2")),
        (Network("new:1", "new:2", refusing=("new:1",)), Addresses("old:1", "new:2")),
        (Network("new:1", "new:2", foreign=("new:1", "new:2")), OLD),
        (Network("new:1", "new:2", enrolment=("new:1",)), Addresses("old:1", "new:2")),
    ],
)
def test_an_address_at_which_the_coordinator_does_not_answer_is_not_taken_and_the_log_says_why(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, network: Network, stored: Addresses
) -> None:
    with capture_logs() as logs:
        keep(monkeypatch, network, identity, NEW)
    assert stored_addresses(identity.folder) == stored
    complaints = [line["address"] for line in logs if line["event"] == "addresses.not_taken"]
    assert complaints == sorted({"new:1", "new:2"} - {stored.coordinator, stored.enrolment})


def test_configured_addresses_stay_in_use_and_are_not_stored(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = identity.at("tunnel:1", "tunnel:2")
    used = keep(monkeypatch, Network("new:1", "new:2"), configured, NEW).membership
    assert (used.coordinator, used.enrolment) == ("tunnel:1", "tunnel:2")
    assert stored_addresses(identity.folder) == NEW


def test_a_standby_that_serves_does_not_take_the_place_of_the_first_coordinator(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, Network("new:1", "new:2"), identity, NEW, standby="new:1")
    assert stored_addresses(identity.folder) == Addresses("old:1", "new:2")


@pytest.mark.parametrize(
    "error", [StorageFull(what="x"), InvalidConfig(file="x", problems="y"), PermissionError(13, "no")]
)
def test_addresses_that_cannot_be_stored_change_nothing(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def save(_folder: Path, _addresses: Addresses) -> None:
        raise error

    monkeypatch.setattr(present_addresses, "save_addresses", save)
    with capture_logs() as logs:
        assert keep(monkeypatch, Network("new:1", "new:2"), identity, NEW) is identity
    assert [line["event"] for line in logs] == ["addresses.not_kept"]
