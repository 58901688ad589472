"""Invites as text: they are read as they were written, damaged ones are refused, and the token is never shown."""

import base64
import datetime
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pluralllm.common.errors.membership import InviteInvalid
from pluralllm.common.trust.certificates import new_key
from pluralllm.common.trust.invite import Invite, load_invite, parse_invite, token_hash
from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

TOKEN = "T0ken-" * 7 + "x"


def invite(**changes: object) -> Invite:
    values = {
        "federation": "fl.example.org",
        "name": "org-a",
        "role": MemberRole.CLIENT,
        "group": 'Köln, "old" town',
        "group_role": GroupRole.TRAIN,
        "coordinator": "fl.example.org:7443",
        "enrolment": "fl.example.org:7444",
        "authority": "MIIB",
        "token": TOKEN,
        "expires": datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC),
    }
    return Invite.model_validate({**values, **changes})


@pytest.mark.parametrize("role", MemberRole)
def test_both_forms_come_back_as_they_went(role: MemberRole) -> None:
    made = invite(role=role)
    assert parse_invite(made.to_json()) == made
    assert parse_invite(made.to_line()) == made
    assert "\n" not in made.to_line()


def test_the_record_key_is_in_both_forms_and_an_invite_without_it_is_read() -> None:
    signer = RecordSigner("fed", new_key())
    made = invite(record_key=base64.b64encode(signer.public_der).decode())
    assert parse_invite(made.to_json()) == parse_invite(made.to_line()) == made
    assert invite().record_key is None
    assert "record_key" not in invite().to_json(), "clients of older releases read an invite without the key"


@pytest.mark.parametrize("wrong", ["", "MIIB", "not base64!", base64.b64encode(b"rubbish").decode()])
def test_a_record_key_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        invite(record_key=wrong)


def test_a_line_that_a_mail_has_wrapped_is_read() -> None:
    made = invite()
    assert parse_invite("\n".join(textwrap.wrap(made.to_line(), 60))) == made


def test_a_file_and_a_line_are_told_apart(tmp_path: Path) -> None:
    made = invite()
    (tmp_path / "org-a.invite").write_text(made.to_json())
    assert load_invite(str(tmp_path / "org-a.invite")) == load_invite(made.to_line()) == made


@given(st.data())
def test_a_damaged_invite_is_refused_without_showing_its_token(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([invite().to_json(), invite().to_line()]))
    at = data.draw(st.integers(0, len(text) - 2))
    damaged = text[:at] + data.draw(st.sampled_from(["", "#", "é", text[: at // 2]])) + text[at + 1 :]
    refusal = ""
    try:
        parse_invite(damaged)
    except InviteInvalid as error:
        refusal = str(error)
    assert TOKEN not in refusal


@pytest.mark.parametrize(
    ("given_text", "said"),
    [
        ("", "text"),
        ("{}", "federation: Field required"),
        ("pluralllm-invite:AAAA", "damaged or incomplete"),
        ("x" * 9000, "longer than 8192"),
        (invite().to_json().replace(TOKEN, "short"), "token"),
        (invite().to_json().replace("org-a", "Org A"), "name"),
        (invite().to_json().replace('"pluralllm_invite": 1', '"pluralllm_invite": 2'), "pluralllm_invite"),
    ],
)
def test_what_is_wrong_is_named(given_text: str, said: str) -> None:
    with pytest.raises(InviteInvalid, match=said):
        parse_invite(given_text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InviteInvalid, match=r"none.invite: there is no such file"):
        load_invite(str(tmp_path / "none.invite"))


def test_a_token_is_not_shown_by_repr_and_only_its_hash_is_kept() -> None:
    assert TOKEN not in repr(invite())
    assert TOKEN not in token_hash(TOKEN)
    assert len(token_hash(TOKEN)) == 64
