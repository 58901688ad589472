"""Certificates that end while everything runs: they are renewed without a restart, or the reason is reported."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import BOOTSTRAP, Served, keep_identity, serving, small_spec
from support.process_harness import federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.daemon import renewal
from pluralllm.client.daemon.renewal import Renewal, renew
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.joining.diagnosis import diagnose
from pluralllm.client.joining.enrolment import ask_server, check_membership, join
from pluralllm.client.joining.present_addresses import keep_addresses
from pluralllm.client.link.tasks import Introduction
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.membership import (
    AwaitingApproval,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    ClockWrong,
    ForeignAuthority,
    InviteUnknown,
    ServerCertificateOutOfDate,
    TooManyAttempts,
    WrongHost,
)
from pluralllm.common.errors.tree import Internal, PluralError, StorageFull, Unreachable
from pluralllm.common.process import files
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.proxies import DIRECT
from pluralllm.common.trust.certificates import make_request, new_key
from pluralllm.common.trust.handshake import handshake
from pluralllm.common.trust.identity import Identity, load_identity, next_key, stored_addresses
from pluralllm.common.words.addresses import Addresses, split_address
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.operator.remote import Remote
from pluralllm.server.members import tls
from pluralllm.server.members.access import ALL_RUNS, Principal
from pluralllm.server.members.authority import DAY_S, create_authority, renew_issuer
from pluralllm.server.members.invite_order import InviteOrder

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("forked_workers")]
LIFE_S = 6.0
SPEC = process_spec(rounds=16, round={"evaluate_every": 16})


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("model"))


def play(folder: Path, embedding_model: Path, **settings: str) -> tuple[str, list[str], list[dict[str, object]]]:
    """Plays a run of two daemons; returns the final model's digest, their log events and the coordinator's events."""
    with federation(folder, embedding_model, free_port(), **settings) as running:
        remote = running.start_coordinator()
        for name, questions in zip(("ann", "ben"), sample_groups(2, 60, 0).values(), strict=True):
            running.start_client(name, questions)
        remote.create_run("r", SPEC.canonical_json())
        remote.start_run("r")
        until(lambda: remote.get_run("r")["phase"] == "ended", "the run ends", running, 280)
        run = remote.get_run("r")
        assert run["outcome"] == "completed", run["outcome_reason"]
        for client in running.clients.values():
            until(lambda client=client: not client.running, "the client hears of it", running)  # type: ignore[misc]
        remote.close()
        running.coordinator.stop()
        verified = running.verify()
        assert verified.returncode == 0, verified.stdout
        lines = [
            json.loads(line)
            for log in running.folder.glob("*.log")
            for line in log.read_text().splitlines()
            if line.startswith("{")
        ]
        log_events = [line["event"] for line in lines]
        return run["version_digest"], log_events, [line for line in lines if line["event"] == "run.event"]


@pytest.mark.slow
def test_renewals_in_mid_round_lose_nothing(tmp_path: Path, embedding_model: Path) -> None:
    """Certificates last six seconds and connections two; the model has the bits of a run without renewals."""
    calm, log_events, _ = play(tmp_path / "calm", embedding_model)
    assert log_events.count("certificate.renewed") == 0
    days = str(LIFE_S / DAY_S)
    hurried, log_events, events = play(
        tmp_path / "hurried",
        embedding_model,
        PLURALLLM_SERVER_CERTIFICATE_LIFE_DAYS=days,
        PLURALLLM_SERVER_CONNECTION_AGE_S="2",
    )
    assert hurried == calm
    assert log_events.count("certificate.renewed") >= 4, "each daemon once, said by it and by the coordinator"
    assert not [event for event in events if event["kind"] in ("PlaceLost", "UpdateRefused")]
    assert not {"task.interrupted", "task.failed", "certificate.not_renewed"} & set(log_events)


@contextlib.asynccontextmanager
async def transport_of(identity: Identity) -> AsyncIterator[Transport]:
    transport = Transport.of_member(identity)
    try:
        yield transport
    finally:
        await transport.close()


async def polls_open(served: Served, count: int) -> None:
    while served.parts.sessions.of(ClientId("ann")).polls_open < count:
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.02)


async def test_after_a_renewal_new_calls_go_with_the_new_certificate_and_old_ones_end(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        identity = await served.member("ann", MemberRole.CLIENT, "G")
        async with transport_of(identity) as transport:
            await transport.hello(Introduction("G", GroupRole.TRAIN, 5))
            held = asyncio.create_task(transport.poll(None, ()))
            await polls_open(served, 1)
            renewed = await renew(identity, transport)
            assert renewed.facts.serial != identity.facts.serial
            assert load_identity(identity.folder, "").facts.serial == renewed.facts.serial
            old = served.registry._certificates[identity.facts.serial]
            served.registry._certificates[old.serial] = replace(
                old, revoked_s=1.0
            )  # a user of the old certificate would be refused
            again = asyncio.create_task(transport.poll(None, ()))
            await polls_open(served, 2)
            served.coordinator.drain()
            await asyncio.wait_for(asyncio.gather(held, again), 10)


async def test_hello_and_renew_tell_the_present_addresses_and_the_member_keeps_them(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        identity = await served.member("ann", MemberRole.CLIENT, "G")  # its enrolment address is that of the main port
        host = served.registry.authority.hosts[0]
        names = [f"{host}:{split_address(address)[1]}" for address in (served.address, served.enrolment_address)]
        async with transport_of(identity) as transport:
            greeting = await transport.hello(Introduction("G", GroupRole.TRAIN, 5))
            assert greeting.addresses == Addresses(*names)
            renewal = Renewal(identity, transport)
            await renewal.note_addresses(greeting.addresses)
            assert stored_addresses(identity.folder) == Addresses(*names)
            assert renewal._identity is not None
            assert renewal._identity.membership.enrolment == names[1], "the next diagnosis asks there"
            renewed = await renew(renewal._identity, transport)
            assert renewed.membership.enrolment == names[1], "a renewal keeps it"
            assert stored_addresses(identity.folder) == Addresses(*names)


async def test_addresses_with_the_two_ports_exchanged_are_not_kept(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", SystemClock()) as served:
        identity = await served.member("ann", MemberRole.CLIENT, "G")
        before = stored_addresses(identity.folder)
        exchanged = Addresses(served.enrolment_address, served.address)
        with capture_logs() as logs:
            await asyncio.to_thread(keep_addresses, identity, exchanged)
        assert stored_addresses(identity.folder) == before
        refused = {line["address"]: line["problem"] for line in logs if line["event"] == "addresses.not_taken"}
        assert served.enrolment_address in refused
        assert "enrolment port" in refused[served.enrolment_address]


async def test_a_renewal_whose_answer_was_lost_is_repeated_with_the_same_key(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        identity = await served.member("ann", MemberRole.CLIENT)
        async with transport_of(identity) as transport:
            lost = await transport.renew(make_request(next_key(identity.folder), "ann"))
            renewed = await renew(identity, transport)
            assert renewed.chain_pem == lost.chain_pem


async def test_a_command_renews_its_own_certificate_when_that_is_due(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", certificate_life_days=60 / DAY_S) as served:
        identity = (await served.member("eve", MemberRole.OBSERVER)).at(served.address)
        remote = await asyncio.to_thread(Remote.of_member, identity)
        renewed = await asyncio.to_thread(remote.renewed)
        assert await asyncio.to_thread(renewed.runs) == []
        assert load_identity(identity.folder, "").facts.serial != identity.facts.serial
        for each in (remote, renewed):
            await asyncio.to_thread(each.close)


# The server's certificate


async def test_a_new_server_certificate_is_used_without_a_restart_and_open_connections_stay(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        ann = await served.client("ann")
        authority = served.registry.authority
        before = await asyncio.to_thread(handshake, served.address, authority.root_pem, DIRECT)
        await asyncio.to_thread(authority.renew_server, time.time())
        after = await asyncio.to_thread(handshake, served.address, authority.root_pem, DIRECT)
        assert after.certificate.serial_number != before.certificate.serial_number
        enrolment = await asyncio.to_thread(handshake, served.enrolment_address, authority.root_pem, DIRECT)
        assert enrolment.certificate.serial_number == after.certificate.serial_number
        await ann.poll()


async def test_a_damaged_server_certificate_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        authority = served.registry.authority
        before = await asyncio.to_thread(handshake, served.address, authority.root_pem, DIRECT)
        authority.server_file.write_bytes(b"garbage")
        after = await asyncio.to_thread(handshake, served.address, authority.root_pem, DIRECT)
        assert after.certificate == before.certificate


async def test_members_and_new_ones_go_on_under_a_new_intermediate(tmp_path: Path) -> None:
    """`renew-issuer` runs while the coordinator serves; it takes the new issuer when it looks again, here after a restart."""
    async with serving(tmp_path / "state") as served:
        await served.client("ann")
    folder = tmp_path / "state" / "authority"
    renew_issuer(folder, (), folder / "root-key.pem", None, time.time())
    async with serving(tmp_path / "state") as served:
        await served.client("ann")
        await served.client("ben")


# The next certificate cannot be written


def in_the_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a folder at a draft's path, so that not even root can write the file; returns its path."""
    monkeypatch.setattr(files, "_writer", lambda: "somebody")
    blocked = file.with_name(f".{file.name}.somebody.tmp")
    blocked.mkdir()
    return blocked


async def until_logged(served: Served, logs: list[Any], event: str) -> None:
    while not [line for line in logs if line["event"] == event]:
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.02)


async def test_the_server_renews_its_certificate_once_its_disk_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "TEND_S", 0.05)
    later_s = [0.0]
    async with serving(tmp_path / "state", wall_s=lambda: time.time() + later_s[0]) as served:
        blocked = in_the_way(served.registry.authority.server_file, monkeypatch)
        with capture_logs() as logs:
            later_s[0] = 61 * DAY_S
            await asyncio.wait_for(until_logged(served, logs, "tls.authority_unusable"), 20)
            blocked.rmdir()
            await asyncio.wait_for(until_logged(served, logs, "tls.server_certificate_renewed"), 20)


async def test_a_daemon_renews_its_certificate_once_its_disk_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "SHORTEST_PAUSE_S", 0.1)
    async with serving(tmp_path / "state", certificate_life_days=6 / DAY_S) as served:
        identity = await served.member("ann", MemberRole.CLIENT)
        blocked = in_the_way(identity.credentials, monkeypatch)
        async with transport_of(identity) as transport:
            with capture_logs() as logs:
                keeping = asyncio.create_task(Renewal(identity, transport).keep())
                await asyncio.wait_for(until_logged(served, logs, "certificate.not_renewed"), 20)
                blocked.rmdir()
                await asyncio.wait_for(until_logged(served, logs, "certificate.renewed"), 20)
            keeping.cancel()


# The reason that a daemon gives when nobody answers


async def cause_given_by_daemon(identity: Identity, refusal: PluralError | None = None) -> Exception | None:
    """Returns the daemon's reason for a refusal, or for a call that its coordinator did not answer."""
    error = refusal or Unreachable(address=identity.membership.coordinator, problem="Socket closed")
    async with transport_of(identity) as transport:
        try:
            return await Renewal(identity, transport).true_cause(error)
        except Exception as final:  # noqa: BLE001 - what it raises is the result
            return final


async def test_a_revoked_daemon_learns_it_though_its_connection_is_only_closed(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        assert isinstance(await cause_given_by_daemon(identity), Unreachable)
        await served.registry.revoke(Principal(identity.membership.name, MemberRole.ADMIN), "ann", "")
        assert isinstance(await cause_given_by_daemon(identity), CertificateRevoked)


async def test_a_daemon_goes_on_trying_where_what_keeps_it_out_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon awaits its approval; then the coordinator's disk is full; then the coordinator has a fault."""
    async with serving(tmp_path / "state") as served:
        order = InviteOrder("ann", MemberRole.OBSERVER, needs_approval=True, runs=(ALL_RUNS,))
        _, token = await served.registry.invite(BOOTSTRAP, order)
        key = new_key()
        member, chain = await served.registry.join("ann", token, make_request(key, "ann"))
        kept = keep_identity(tmp_path / "ann", served.registry, member, key, chain, served.address)
        identity = kept.at(enrolment=served.enrolment_address)
        assert isinstance(await cause_given_by_daemon(identity), AwaitingApproval)
        cause = await asyncio.to_thread(diagnose, identity)
        assert cause is not None
        assert not cause.final

        for error, leaf in ((StorageFull(what="x"), StorageFull), (KeyError("x"), Internal)):

            def fails(_: bytes, error: Exception = error) -> Principal:
                raise error

            monkeypatch.setattr(served.registry, "principal", fails)
            cause = await asyncio.to_thread(diagnose, identity)
            assert cause is not None
            assert isinstance(cause.error, leaf)
            assert not cause.final


async def test_an_expired_daemon_learns_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", certificate_life_days=1 / DAY_S) as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        await asyncio.sleep(max(0.0, identity.facts.not_after_s - time.time()) + 0.1)
        assert isinstance(await cause_given_by_daemon(identity), CertificateExpired)


async def test_a_machine_whose_clock_is_wrong_learns_that_and_not_that_it_expired(
    tmp_path: Path,
) -> None:
    """The coordinator's clock is behind this machine's clock by more than a certificate's life."""
    async with serving(tmp_path / "state", wall_s=lambda: time.time() - 40 * DAY_S) as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        cause = await asyncio.to_thread(diagnose, identity)
        assert cause is not None
        assert isinstance(cause.error, CertificateExpired)
        later_s = [0.0]
    async with serving(tmp_path / "state", wall_s=lambda: time.time() + later_s[0]) as served:
        identity = (await served.member("ben", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        later_s[0] = 40 * DAY_S
        cause = await asyncio.to_thread(diagnose, identity)
        assert cause is not None
        assert isinstance(cause.error, ClockWrong)
        assert not cause.final


async def test_a_coordinator_whose_clock_is_wrong_for_a_while_ends_no_daemon(tmp_path: Path) -> None:
    """The coordinator refuses a certificate by its dates, which this machine's clock and later its own clock accept."""
    ahead_s = [0.0]
    async with serving(tmp_path / "state", wall_s=lambda: time.time() + ahead_s[0]) as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        for refusal in (
            CertificateExpired(name="ann", expired="x"),
            CertificateNotYetValid(name="ann", valid_from="x"),
        ):
            ahead_s[0] = 40 * DAY_S
            assert isinstance(await cause_given_by_daemon(identity, refusal), ClockWrong)
            ahead_s[0] = 0.0
            assert await cause_given_by_daemon(identity, refusal) is refusal


async def test_a_member_that_has_asked_too_often_learns_nothing_false(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=1) as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        ask = (served.enrolment_address, identity.authority_pem, identity.chain_pem)
        await asyncio.to_thread(check_membership, *ask)
        with pytest.raises(TooManyAttempts):
            await asyncio.to_thread(check_membership, *ask)
        assert await asyncio.to_thread(diagnose, identity) is None


async def test_a_command_that_tries_again_and_again_asks_for_the_cause_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main port has no listener; the coordinator answers two questions a minute, and one of them is left."""
    monkeypatch.setattr("pluralllm.operator.remote.DIAGNOSE_EVERY_S", 600.0)
    async with serving(tmp_path / "state", joins_per_minute=2) as served:
        member = await served.member("eve", MemberRole.OBSERVER)
        identity = member.at(f"127.0.0.1:{free_port()}", served.enrolment_address)
        remote = await asyncio.to_thread(Remote.of_member, identity)
        for _ in range(4):
            with pytest.raises(Unreachable):
                await asyncio.to_thread(remote.runs)
        await asyncio.to_thread(remote.close)
        ask = (served.enrolment_address, identity.authority_pem, identity.chain_pem)
        await asyncio.to_thread(check_membership, *ask)
        with pytest.raises(TooManyAttempts):
            await asyncio.to_thread(check_membership, *ask)


async def test_questions_about_membership_keep_nobody_from_joining(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=1) as served:
        authority_pem = served.registry.authority.root_pem
        await asyncio.to_thread(ask_server, served.enrolment_address, authority_pem)
        request = make_request(new_key(), "ann")
        with pytest.raises(InviteUnknown):
            await asyncio.to_thread(join, served.enrolment_address, authority_pem, "ann", "A" * 43, request)


async def test_another_authority_and_another_name_are_told_apart_from_a_dead_coordinator(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        identity = (await served.member("ann", MemberRole.CLIENT)).at(enrolment=served.enrolment_address)
        other = create_authority(tmp_path / "other", "fed", ["x"], None, time.time())
        with pytest.raises(ForeignAuthority):
            await asyncio.to_thread(handshake, served.address, other.root_pem, DIRECT)
        with pytest.raises(Unreachable, match="refused"):
            await asyncio.to_thread(handshake, f"127.0.0.1:{free_port()}", identity.authority_pem, DIRECT)


async def test_a_coordinator_reached_by_a_name_that_is_not_its_own_says_which_are(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", listen="127.0.0.2:0") as served:
        with pytest.raises(WrongHost, match=r"not for 127\.0\.0\.2 but for localhost, 127\.0\.0\.1"):
            await asyncio.to_thread(handshake, served.address, served.registry.authority.root_pem, DIRECT)


async def test_a_coordinator_whose_invites_name_a_host_that_is_not_its_own_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path / "state", advertise="127.0.0.1:1", advertise_enrolment="other.example:7444"):
            pass
    [line] = [line for line in logs if line["event"] == "tls.advertised_name_not_covered"]
    assert line["hosts"] == ("other.example",)
    assert line["fix"] == "pluralllm-server renew-issuer --host 127.0.0.1 --host other.example"


async def test_a_server_certificate_out_of_date_is_told_with_its_dates_and_this_machines_clock(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        authority = served.registry.authority
        await asyncio.to_thread(authority.renew_server, time.time() - 100 * DAY_S)
        with pytest.raises(ServerCertificateOutOfDate, match="this machine's clock says"):
            await asyncio.to_thread(handshake, served.address, authority.root_pem, DIRECT)


async def test_an_upload_outlives_the_connections_age(tmp_path: Path) -> None:
    """Connections last one second; calls in progress get their grace period, and new calls a new connection."""
    async with serving(tmp_path / "state", SystemClock(), connection_age_s=1, poll_hold_s=3) as served:
        await served.create("r", small_spec(), start=False)
        ann = await served.client("ann")
        started_s = time.monotonic()
        while time.monotonic() - started_s < 4:
            await ann.poll(hold_s=2)
