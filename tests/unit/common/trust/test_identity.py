"""An identity on disk: only its owner can read the key, it is complete or absent, and an error names the damaged file."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pluralllm.common.errors.membership import AlreadyJoined, CertificateInvalid, NotJoined
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.common.text.reading import Unreadable
from pluralllm.common.trust.certificates import key_from_pem, key_to_pem, make_request, new_key, public_key_of, spoken
from pluralllm.common.trust.identity import (
    Identity,
    Membership,
    check_free,
    load_identity,
    next_key,
    previous_identity,
    save_addresses,
    save_identity,
    save_renewal,
    stored_addresses,
    stored_identity,
)
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.authority import Authority, create_authority

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
MEMBERSHIP = Membership(
    federation="fed",
    name=ClientId("ann"),
    role=MemberRole.OBSERVER,
    coordinator="127.0.0.1:7443",
    enrolment="127.0.0.1:7444",
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", "fed", ["127.0.0.1"], None, NOW_S)


def saved(folder: Path, authority: Authority, life_s: float = 30 * DAY_S) -> Identity:
    key = next_key(folder)
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.OBSERVER, life_s, NOW_S)
    return save_identity(folder, MEMBERSHIP, authority.root_pem, key, chain)


def test_what_is_saved_is_loaded(tmp_path: Path, authority: Authority) -> None:
    made = saved(tmp_path / "me", authority)
    assert load_identity(tmp_path / "me", "pluralllm") == made
    assert not (tmp_path / "me" / "next-key.pem").exists()


def test_the_key_is_not_in_what_an_identity_prints_of_itself(tmp_path: Path, authority: Authority) -> None:
    shown = repr(saved(tmp_path / "me", authority))
    assert "ann" in shown
    assert "PRIVATE KEY" not in shown


def test_keys_are_readable_by_their_owner_only(tmp_path: Path, authority: Authority) -> None:
    next_key(tmp_path / "me")
    assert (tmp_path / "me").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "me" / "next-key.pem").stat().st_mode & 0o777 == 0o600
    saved(tmp_path / "me", authority)
    assert (tmp_path / "me" / "credentials.pem").stat().st_mode & 0o777 == 0o600


def test_a_try_that_broke_off_is_repeated_with_the_same_key(tmp_path: Path) -> None:
    first = next_key(tmp_path / "me")
    assert next_key(tmp_path / "me").public_key() == first.public_key()


def test_a_half_written_next_key_is_replaced(tmp_path: Path) -> None:
    next_key(tmp_path / "me")
    (tmp_path / "me" / "next-key.pem").write_bytes(b"-----BEGIN PRIV")
    assert next_key(tmp_path / "me").public_key() == next_key(tmp_path / "me").public_key()


def test_a_renewal_replaces_key_and_certificate_together(tmp_path: Path, authority: Authority) -> None:
    old = saved(tmp_path / "me", authority)
    key = new_key()
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.OBSERVER, 30 * DAY_S, NOW_S + 20 * DAY_S)
    renewed = save_renewal(old.at("10.0.0.1:1"), key, chain)
    loaded = load_identity(tmp_path / "me", "pluralllm")
    assert loaded.facts.serial == renewed.facts.serial != old.facts.serial
    assert loaded.membership.coordinator == "127.0.0.1:7443", "an address for one command is not kept"


def test_an_answer_for_another_key_or_member_is_refused_and_changes_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    old = saved(tmp_path / "me", authority)
    key = new_key()
    wrong_key = authority.issue_member(new_key().public_key(), "ann", MemberRole.OBSERVER, DAY_S, NOW_S)
    wrong_name = authority.issue_member(key.public_key(), "ben", MemberRole.OBSERVER, DAY_S, NOW_S)
    wrong_role = authority.issue_member(key.public_key(), "ann", MemberRole.ADMIN, DAY_S, NOW_S)
    for chain in (wrong_key, wrong_name, wrong_role, b"nothing"):
        with pytest.raises(CertificateInvalid):
            save_renewal(old, key, chain)
    assert load_identity(tmp_path / "me", "pluralllm") == old


def test_renewal_is_due_at_two_thirds_of_the_life(tmp_path: Path, authority: Authority) -> None:
    made = saved(tmp_path / "me", authority)
    assert not made.is_renewal_due(NOW_S + 19.9 * DAY_S)
    assert made.is_renewal_due(NOW_S + 20.1 * DAY_S)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, authority: Authority) -> None:
    made = saved(tmp_path / "me", authority)
    (tmp_path / "file").write_text("in the way")
    key = new_key()
    chain = authority.issue_member(key.public_key(), "ann", MemberRole.OBSERVER, DAY_S, NOW_S)
    folder = tmp_path / "file" / "me"
    with pytest.raises(InvalidConfig, match="file/me"):
        next_key(folder)
    with pytest.raises(InvalidConfig, match="file/me"):
        save_identity(folder, MEMBERSHIP, authority.root_pem, key, chain)
    with pytest.raises(InvalidConfig, match="file/me"):
        save_renewal(replace(made, folder=folder), key, chain)


def test_an_empty_folder_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(NotJoined, match="pluralllm-client join INVITE"):
        load_identity(tmp_path, "pluralllm-client")


@pytest.mark.parametrize("file", ["identity.json", "authority.pem", "credentials.pem"])
def test_a_damaged_file_is_named(tmp_path: Path, authority: Authority, file: str) -> None:
    saved(tmp_path / "me", authority)
    (tmp_path / "me" / file).write_bytes(b"garbage")
    with pytest.raises(InvalidConfig, match=file):
        load_identity(tmp_path / "me", "pluralllm")


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"name"', '"nome"', "the key name is missing"),
        ('"name": "ann"', '"name": "ann", "pet": "cat"', "the key pet is unknown"),
        ('"ann"', "7", "the value of name is no text"),
        ('"observer"', '"king"', "role: 'king' is not a valid MemberRole"),
        ("127.0.0.1:7443", "127.0.0.1", "coordinator: must be host:port"),
        ("127.0.0.1:7444", "http://a:1", "enrolment: must be host:port without http://"),
        ('"name"', '"record_key": "AAAA", "name"', "record_key: it is no P-256 key"),
        ("{", "[{", "."),
    ],
)
def test_what_is_wrong_with_a_membership_is_told(
    tmp_path: Path, authority: Authority, before: str, after: str, problem: str
) -> None:
    file = saved(tmp_path / "me", authority).folder / "identity.json"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(InvalidConfig, match=re.escape(problem)):
        load_identity(file.parent, "pluralllm")


def test_a_membership_of_an_earlier_release_is_read(tmp_path: Path, authority: Authority) -> None:
    file = saved(tmp_path / "me", authority).folder / "identity.json"
    file.write_text(file.read_text().replace("{", '{"group_role": null, "record_key": null, ', 1))
    assert load_identity(file.parent, "pluralllm").membership == MEMBERSHIP


def test_a_folder_is_free_taken_by_this_member_or_by_another(tmp_path: Path, authority: Authority) -> None:
    assert not check_free(tmp_path / "me", "fed", "ann")
    saved(tmp_path / "me", authority)
    assert check_free(tmp_path / "me", "fed", "ann")
    for federation, name in (("fed", "ben"), ("other", "ann")):
        with pytest.raises(AlreadyJoined, match="ann in federation fed"):
            check_free(tmp_path / "me", federation, name)


def test_a_key_may_be_kept_under_a_passphrase() -> None:
    key = new_key()
    pem = key_to_pem(key, b"open sesame")
    assert key_from_pem(pem, b"open sesame").public_key() == key.public_key()
    for passphrase in (None, b"wrong"):
        with pytest.raises(CertificateInvalid, match="private key"):
            key_from_pem(pem, passphrase)


def test_a_request_proves_its_key_and_nothing_else_passes_for_one() -> None:
    key = new_key()
    request = make_request(key, "ann")
    assert public_key_of(request) == key.public_key()
    changed = bytearray(request)
    changed[-1] ^= 1
    for wrong in (b"", b"garbage", request[:-1], bytes(changed)):
        with pytest.raises(CertificateInvalid, match="certificate request"):
            public_key_of(wrong)


def test_a_fingerprint_is_read_out_in_groups_of_four() -> None:
    assert spoken("0123456789abcdef") == "0123 4567 89ab cdef"


def renewed(identity: Identity, authority: Authority, life_s: float = 30 * DAY_S) -> Identity:
    key = next_key(identity.folder)
    return save_renewal(
        identity, key, authority.issue_member(key.public_key(), "ann", MemberRole.OBSERVER, life_s, NOW_S)
    )


def test_a_renewal_keeps_the_credentials_before_it_for_their_owner_until_they_expire(
    tmp_path: Path, authority: Authority
) -> None:
    first = saved(tmp_path / "me", authority)
    assert previous_identity(first, NOW_S) is None
    second = renewed(first, authority, 40 * DAY_S)
    assert previous_identity(second, NOW_S) == first
    assert (tmp_path / "me" / "previous.pem").stat().st_mode & 0o777 == 0o600
    assert previous_identity(second, NOW_S + 30 * DAY_S - 1) == first
    assert previous_identity(second, NOW_S + 30 * DAY_S) is None
    third = renewed(second, authority)
    assert previous_identity(third, NOW_S) == second
    assert previous_identity(second, NOW_S) is None, "it is the same certificate"


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_previous_credentials_that_cannot_be_read_are_as_none(
    tmp_path: Path, authority: Authority, content: bytes | None
) -> None:
    second = renewed(saved(tmp_path / "me", authority), authority)
    path = tmp_path / "me" / "previous.pem"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert previous_identity(second, NOW_S) is None


def test_an_identity_that_another_process_has_renewed_is_read_again(tmp_path: Path, authority: Authority) -> None:
    first = saved(tmp_path / "me", authority).at("127.0.0.1:1")
    assert stored_identity(first) is first
    second = renewed(first, authority)
    found = stored_identity(first)
    assert (found.facts, found.key_pem) == (second.facts, second.key_pem)
    assert found.membership.coordinator == "127.0.0.1:1", "an address of the configuration stays"
    (tmp_path / "me" / "credentials.pem").write_bytes(b"garbage")
    assert stored_identity(first) is first


def test_new_addresses_are_stored_and_nothing_else_changes(tmp_path: Path, authority: Authority) -> None:
    made = saved(tmp_path / "me", authority)
    save_addresses(made.folder, Addresses("10.0.0.1:1", "10.0.0.1:2"))
    assert stored_addresses(made.folder) == Addresses("10.0.0.1:1", "10.0.0.1:2")
    assert load_identity(made.folder, "") == made.at("10.0.0.1:1", "10.0.0.1:2")


@pytest.mark.parametrize(("coordinator", "enrolment"), [(None, None), ("x:1", None), (None, "x:2"), ("x:1", "x:2")])
def test_configured_addresses_replace_those_of_the_identity(
    tmp_path: Path, authority: Authority, coordinator: str | None, enrolment: str | None
) -> None:
    member = saved(tmp_path / "me", authority).at(coordinator, enrolment).membership
    assert (member.coordinator, member.enrolment) == (coordinator or "127.0.0.1:7443", enrolment or "127.0.0.1:7444")


def test_a_file_that_this_user_may_not_read_is_no_reason_to_join_anew(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "me", authority).folder

    def forbidden(path: Path, *_: object) -> str:
        raise Unreadable(path, "it cannot be read: Permission denied") from PermissionError(13, "Permission denied")

    monkeypatch.setattr("pluralllm.common.trust.identity.read_text", forbidden)
    with pytest.raises(InvalidConfig, match="Permission denied") as caught:
        load_identity(folder, "pluralllm")
    assert "join with a new invite" not in str(caught.value)


@pytest.mark.parametrize("folder", ["me", "authority"])
def test_no_git_add_takes_keys_along(folder: str, tmp_path: Path, authority: Authority) -> None:
    saved(tmp_path / "me", authority)
    assert (tmp_path / folder / ".gitignore").read_text() == "*\n"


def test_a_state_folder_ignores_itself_and_keeps_what_its_owner_has_written(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "state"):
        assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"
    (tmp_path / "state" / ".gitignore").write_text("mine\n")
    with DirectoryLock(tmp_path / "state"):
        assert (tmp_path / "state" / ".gitignore").read_text() == "mine\n"
