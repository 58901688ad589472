"""Strangers guess tokens from many addresses: holders of an invite join, and members ask about their certificates, as ever."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hostile.evil_strangers import from_address
from support.coordinator_harness import BOOTSTRAP, Served, serving

from pluralllm.client.joining.enrolment import ask_server, check_membership, join
from pluralllm.common.errors.membership import (
    CertificateRevoked,
    InviteForAnother,
    InviteUnknown,
    InviteUsed,
    TooManyAttempts,
)
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.certificates import make_request, new_key
from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.invite_order import InviteOrder

PER_MINUTE = 3
STRANGERS = tuple(f"127.0.1.{number}" for number in range(1, 12))


async def flooded(served: Served, attack: Callable[[str], Awaitable[object]]) -> Counter[str]:
    """Lets eleven strangers attack the enrolment port until nobody among them gets an answer. Returns their refusals."""
    refusals: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(from_address(s, served.enrolment_address)) for s in STRANGERS]
        for relay in relays:
            for _ in range(PER_MINUTE + 1):
                try:
                    await attack(relay)
                    refusals["none"] += 1
                except PluralError as error:
                    refusals[type(error).__name__] += 1
    return refusals


def joining(served: Served, name: str, token: str, at: str = "", key: Any = None) -> Awaitable[object]:
    request = make_request(key or new_key(), name)
    authority_pem = served.registry.authority.root_pem
    return asyncio.to_thread(join, at or served.enrolment_address, authority_pem, name, token, request)


async def invited(served: Served, name: str) -> str:
    _, token = await served.registry.invite(BOOTSTRAP, InviteOrder(name, MemberRole.CLIENT))
    return token


async def test_a_flood_of_guesses_keeps_no_holder_of_an_invite_from_joining(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=PER_MINUTE) as served:
        tokens = {name: await invited(served, name) for name in ("ann", "ben")}
        refusals = await flooded(served, lambda relay: joining(served, "ann", "A" * 43, relay))
        assert refusals == {
            "InviteUnknown": 10 * PER_MINUTE,
            "TooManyAttempts": 11 * (PER_MINUTE + 1) - 10 * PER_MINUTE,
        }
        with pytest.raises(TooManyAttempts):
            await joining(served, "ann", "B" * 43)
        key = new_key()
        await joining(served, "ann", tokens["ann"], key=key)
        await joining(served, "ann", tokens["ann"], key=key)  # its first answer was lost
        async with from_address(STRANGERS[0], served.enrolment_address) as relay:
            await joining(served, "ben", tokens["ben"], relay)


async def test_members_who_join_leave_the_limit_to_those_who_guess(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=PER_MINUTE) as served:
        for number in range(2 * PER_MINUTE):
            await joining(served, f"org-{number}", await invited(served, f"org-{number}"))
        for _ in range(PER_MINUTE):
            with pytest.raises(InviteUnknown):
                await joining(served, "ann", "A" * 43)
        with pytest.raises(TooManyAttempts):
            await joining(served, "ann", "A" * 43)


@pytest.mark.parametrize("case", ["used", "withdrawn", "for another"])
async def test_a_holder_of_a_spent_token_cannot_use_it_to_call_without_a_limit(tmp_path: Path, case: str) -> None:
    async with serving(tmp_path / "state", joins_per_minute=PER_MINUTE) as served:
        token = await invited(served, "ann")
        reason: type[PluralError] = InviteForAnother
        if case == "used":
            await served.registry.join("ann", token, make_request(new_key(), "ann"))
            reason = InviteUsed
        elif case == "withdrawn":
            await served.registry.revoke(BOOTSTRAP, "ann", "")
            reason = InviteUnknown
        for _ in range(PER_MINUTE):
            with pytest.raises(reason):
                await joining(served, "ben" if case == "for another" else "ann", token)
        with pytest.raises(TooManyAttempts):
            await joining(served, "ann", token)
        await joining(served, "cem", await invited(served, "cem"))


async def test_questions_of_strangers_keep_no_member_from_asking_about_its_certificate(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", joins_per_minute=PER_MINUTE) as served:
        ann = await served.member("ann", MemberRole.CLIENT)
        ben = await served.member("ben", MemberRole.CLIENT)
        refusals = await flooded(served, lambda relay: asyncio.to_thread(ask_server, relay, ann.authority_pem))
        assert refusals["none"] == 10 * PER_MINUTE
        with pytest.raises(TooManyAttempts):
            await asyncio.to_thread(ask_server, served.enrolment_address, ann.authority_pem)
        await asyncio.to_thread(check_membership, served.enrolment_address, ann.authority_pem, ann.chain_pem)
        await served.registry.revoke(BOOTSTRAP, "ben", "")
        with pytest.raises(CertificateRevoked):
            await asyncio.to_thread(check_membership, served.enrolment_address, ben.authority_pem, ben.chain_pem)
