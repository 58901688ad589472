"""The transcript: whoever reads it checks the whole round and gets the same sum; no lie in it passes."""

import base64
import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.private_members import dealt_round, digest, member_key, played_round

from pluralllm.common.errors.private_rounds import BadView, DealtWrongly
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.messages import Confirmation
from pluralllm.common.private_rounds.round_sum import Unmasking, leftover_streams, open_round
from pluralllm.common.private_rounds.transcript import Transcript

DEALT = dealt_round(5, 4, least=4)
NAMES = DEALT.names
RNG = np.random.default_rng(3)
PLAIN = {name: RNG.integers(0, 2**32, 80, dtype=np.uint32) for name in NAMES[:4]}
PLAYED = played_round(DEALT, NAMES, PLAIN, NAMES[:4])
OPENED = open_round(PLAYED.fixed, DEALT.shares, PLAYED.reveals)
TOTAL = np.stack(list(PLAIN.values())).sum(axis=0, dtype=np.uint32)
TAIL = tuple(TOTAL[:64].tolist())
GOOD = Transcript.of(PLAYED.fixed, OPENED, DEALT.shares, PLAYED.confirmations, TAIL)
OUTSIDER = GOOD.outsiders[0]


def test_a_reader_of_the_transcript_computes_the_sum() -> None:
    read = Transcript.from_json(GOOD.to_json())
    assert read == GOOD
    assert read.sha256 == GOOD.sha256
    streams = leftover_streams(read.fixed, read.opened())
    assert sorted(streams) == sorted(leftover_streams(PLAYED.fixed, OPENED))
    total = Unmasking(streams).unmasked(list(PLAYED.masked.values()))
    assert np.array_equal(total, TOTAL)
    assert tuple(total[:64].tolist()) == read.tail


def test_no_secret_is_there_in_both_kinds() -> None:
    assert [one.name for one in GOOD.own_masks] == list(NAMES[:4])
    assert [one.name for one in GOOD.outsiders] == [NAMES[4]]
    body = GOOD.to_json().decode()
    for one in DEALT.people:
        hidden = [one.secrets.box, one.secrets.own if one.name == "emil" else one.secrets.mask]
        assert not any(base64.b64encode(secret).decode() in body for secret in hidden)


def halves(**changes: Any) -> tuple[Any, ...]:
    first = replace(OUTSIDER.halves[0], **changes)
    return (replace(OUTSIDER, halves=(first, *OUTSIDER.halves[1:])),)


CONFIRMATION = GOOD.confirmations[0]
LINE = OUTSIDER.halves[0].line
OTHER_SUM = Confirmation(digest("R3")).signed(member_key("ann")).signature
LIES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "other terms": ({"terms": replace(GOOD.terms, base_digest=digest("other"))}, BadView),
    "a member less": ({"members": GOOD.members[:4]}, InvalidArgument),
    "a dealer less": ({"dealers": NAMES[:4], "outsiders": ()}, BadView),
    "an update less": ({"updates": GOOD.updates[:3]}, InvalidArgument),
    "another file": ({"updates": (replace(GOOD.updates[0], digest=digest("f")), *GOOD.updates[1:])}, BadView),
    "too few confirmations": ({"confirmations": GOOD.confirmations[:3]}, InvalidArgument),
    "a confirmation twice": (
        {"confirmations": (*GOOD.confirmations[:3], GOOD.confirmations[2])},
        InvalidArgument,
    ),
    "a confirmation of another sum": (
        {"confirmations": (replace(CONFIRMATION, signature=OTHER_SUM), *GOOD.confirmations[1:])},
        BadView,
    ),
    "another b": ({"own_masks": (replace(GOOD.own_masks[0], secret=digest("b")), *GOOD.own_masks[1:])}, DealtWrongly),
    "a b less": ({"own_masks": GOOD.own_masks[:3]}, InvalidArgument),
    "the b of an outsider": (
        {"own_masks": (*GOOD.own_masks, replace(GOOD.own_masks[0], name="emil"))},
        InvalidArgument,
    ),
    "another m": ({"outsiders": (replace(OUTSIDER, secret=digest("m")),)}, DealtWrongly),
    "an outsider less": ({"outsiders": ()}, InvalidArgument),
    "a half less": ({"outsiders": (replace(OUTSIDER, halves=OUTSIDER.halves[1:]),)}, InvalidArgument),
    "another half": ({"outsiders": halves(half=digest("half"))}, DealtWrongly),
    "a line of another": ({"outsiders": halves(line=OUTSIDER.halves[1].line)}, BadView),
    "an unsigned line": ({"outsiders": halves(line=replace(LINE, least=1))}, BadView),
    "a short tail": ({"tail": TAIL[:63]}, InvalidArgument),
    "a large tail": ({"tail": (2**32, *TAIL[1:])}, InvalidArgument),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_transcript_is_found(lie: str) -> None:
    changes, expected = LIES[lie]
    with pytest.raises(expected):
        replace(GOOD, **changes).opened()


def test_a_sum_smaller_than_a_member_takes_part_in_is_found() -> None:
    dealt = dealt_round(5, 4, least=5)
    played = played_round(dealt, NAMES, PLAIN, NAMES)
    opened = open_round(played.fixed, dealt.shares, played.reveals)
    small = Transcript.of(played.fixed, opened, dealt.shares, played.confirmations, TAIL)
    with pytest.raises(InvalidArgument, match="ann takes part in sums of at least 5"):
        small.opened()


def test_only_one_text_is_a_transcript() -> None:
    body = GOOD.to_json()
    for other in (body + b" ", b"{}", b"", body.replace(b'"places":8', b'"places":"8"')):
        with pytest.raises(InvalidArgument):
            Transcript.from_json(other)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of each text and number in JSON."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, one in entries for leaf in leaves(one, (*path, key))]
    return [path]


OTHERS: dict[type, tuple[Any, ...]] = {str: ("", "zz", "\ud800"), int: (-1, 2**40), bool: (0,)}


def test_no_text_makes_the_check_of_a_transcript_fail_otherwise_than_by_a_refusal() -> None:
    body = GOOD.to_json()
    paths = leaves(json.loads(body))
    first = [path for path in paths if not any(isinstance(step, int) and step > 0 for step in path)]
    assert len(first) > 35
    for path in first:
        data = json.loads(body)
        holder = functools.reduce(lambda value, step: value[step], path[:-1], data)
        for other in OTHERS[type(holder[path[-1]])]:
            holder[path[-1]] = other
            changed = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
            with pytest.raises((InvalidArgument, BadView, DealtWrongly)):
                Transcript.from_json(changed).opened()
