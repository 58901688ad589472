"""An invite from standard input, as shells of every kind pipe it."""

import io
import os
import sys

import pytest

from pluralllm.client.joining.joining import read_invite
from pluralllm.common.errors.membership import InviteInvalid
from pluralllm.common.trust.invite import MAX_INVITE_BYTES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("pluralllm-invite:x".encode("utf-16"), "standard input: it is in UTF-16"),
        (b"pluralllm-invite:\xff", "standard input: line 1 has the byte 0xff"),
        (b"x" * (MAX_INVITE_BYTES + 1), "standard input: it is too large"),
        (b"\xef\xbb\xbfpluralllm-invite:x", "the line is damaged or incomplete"),
    ],
)
def test_what_is_no_invite_is_refused_with_the_reason(
    content: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    with pytest.raises(InviteInvalid, match=problem):
        read_invite("-")


def test_a_standard_input_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "wb") as written:  # noqa: PTH123 - as `0>FILE` of a shell
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.FileIO(written.fileno(), closefd=False)))
        )
        with pytest.raises(InviteInvalid, match="standard input cannot be read: Bad file descriptor"):
            read_invite("-")
