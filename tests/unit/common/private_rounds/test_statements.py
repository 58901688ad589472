"""Bytes of a private round that every release must keep, and statements that nobody can take for another one."""

import hashlib
import hmac
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.private_members import TERMS, member_key

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds import statements
from pluralllm.common.private_rounds.field_checks import MAX_SIGNATURE_BYTES
from pluralllm.common.private_rounds.peer_keys import public_der
from pluralllm.common.private_rounds.statements import derived, enc, hashed, sign, verify

PARTS = st.lists(st.one_of(st.binary(max_size=8), st.text("aé", max_size=4), st.integers(0, 2**32 - 1)), max_size=4)


def plain(parts: list[bytes | str | int]) -> list[bytes]:
    return [
        part.to_bytes(4, "big") if isinstance(part, int) else part.encode() if isinstance(part, str) else part
        for part in parts
    ]


def test_each_part_stands_behind_its_length() -> None:
    assert enc("ab", b"\xff", 258) == b"\0\0\0\2ab\0\0\0\1\xff\0\0\0\4\0\0\1\2"
    assert hashed("x", 1) == hashlib.sha256(enc("pluralllm/private/1", "x", 1)).digest()
    for number in (-1, 2**32):
        with pytest.raises(ValueError, match="no number of 4 bytes"):
            enc(number)


@settings(max_examples=50, deadline=None)
@given(PARTS, PARTS)
def test_two_lists_of_parts_never_have_the_same_bytes(
    one: list[bytes | str | int], two: list[bytes | str | int]
) -> None:
    assert (enc(*one) == enc(*two)) == (plain(one) == plain(two))


def test_a_key_is_derived_by_hkdf_without_salt() -> None:
    secret, info = bytes(range(32)), enc("pluralllm/private/1", "label", "x", 7)
    extracted = hmac.digest(bytes(32), secret, "sha256")
    first = hmac.digest(extracted, info + b"\1", "sha256")
    second = hmac.digest(extracted, first + info + b"\2", "sha256")
    assert derived(secret, "label", "x", 7) == first
    assert derived(secret, "label", "x", 7, size=40) == (first + second)[:40]


def test_a_signature_is_that_of_rfc_6979() -> None:
    # Appendix A.2.5, P-256 with SHA-256, message "sample".
    number = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    r = 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
    s = 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8
    key = ec.derive_private_key(number, ec.SECP256R1())
    der = b"\x30\x46\x02\x21\x00" + r.to_bytes(32, "big") + b"\x02\x21\x00" + s.to_bytes(32, "big")
    assert key.sign(b"sample", statements.ALGORITHM) == der
    assert len(der) == MAX_SIGNATURE_BYTES
    assert sign(key, "keys", 1) == sign(key, "keys", 1)


def test_a_statement_holds_for_its_signer_its_kind_and_its_parts_only() -> None:
    key, other = member_key("a"), member_key("b")
    signature = sign(key, "confirm", b"R3")
    assert verify(public_der(key), signature, "confirm", b"R3")
    assert not verify(public_der(other), signature, "confirm", b"R3")
    assert not verify(public_der(key), signature, "reveal", b"R3")
    assert not verify(public_der(key), signature, "confirm", b"R4")
    assert not verify(public_der(key), signature, "confirm", b"R", b"3")
    assert not verify(public_der(key), b"", "confirm", b"R3")
    assert not verify(b"no key", signature, "confirm", b"R3")


@pytest.mark.parametrize("name", [field.name for field in fields(TERMS)])
def test_every_field_is_in_the_hash_of_the_terms_and_is_checked(name: str) -> None:
    value: Any = getattr(TERMS, name)
    others: dict[type, tuple[Any, ...]] = {
        int: (8, -1, 2**31),
        bytes: (bytes(32), bytes(31), b""),
        str: ("b", "A", "\ud800"),
    }
    other, *bad = others[type(value)]
    changed: dict[str, Any] = {name: value + 1 if isinstance(value, int) else other}
    assert replace(TERMS, **changed).sha256 != TERMS.sha256
    for wrong in bad:
        with pytest.raises(InvalidArgument, match=name):
            replace(TERMS, **{name: wrong})


def test_members_dealers_and_updates_are_hashed_in_the_order_of_names_under_their_predecessor() -> None:
    members = [("b", b"key b", b"keys b"), ("a", b"key a", b"keys a")]
    r1 = statements.members_digest(b"terms", members)
    inner = hashed("members", b"terms", "a", b"key a", b"keys a", "b", b"key b", b"keys b")
    assert r1 == hashed("cell", inner, 0)
    assert statements.dealers_digest(r1, ["b", "a"]) == hashed("dealers", r1, "a", "b")
    updates = [("b", b"2"), ("a", b"1")]
    assert statements.sum_digest(b"R2", updates) == hashed("sum", b"R2", "a", b"1", "b", b"2")


def test_known_answers() -> None:
    """The file was written once. A release with other bytes could not take part in a round with older ones."""
    from support.private_known_answers import known_answers  # noqa: PLC0415

    stored = json.loads(Path(__file__).with_name("known_answers.json").read_text())
    computed = known_answers()
    assert sorted(computed) == sorted(stored)
    assert [name for name in stored if computed[name] != stored[name]] == []


def test_a_signature_that_was_checked_once_holds_for_nothing_else() -> None:
    der, other_der = (public_der(member_key(name)) for name in ("ann", "bob"))
    signature = sign(member_key("ann"), "kind", "said")
    for _ in range(2):
        assert verify(der, signature, "kind", "said")
        assert not verify(der, signature, "kind", "not said")
        assert not verify(der, signature, "another kind", "said")
        assert not verify(other_der, signature, "kind", "said")
        assert not verify(der[:-1], signature, "kind", "said")
    statements.forget_signatures()
    assert verify(der, signature, "kind", "said")


def test_a_key_of_another_curve_signs_nothing() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    assert not verify(public_der(key), sign(key, "kind", "said"), "kind", "said")
