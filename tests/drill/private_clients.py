"""The part of the drilled clients that private rounds need: masking, a copy of each message, and dealers that cheat.

A client's update follows from its name and the round, and is rounded by its own digest. So the sum of the same members has the
same bits in every run, although keys, masks and shares are fresh each time.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.membership import Myself
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import Mask, Masked
from pluralllm.common.private_rounds import dealing
from pluralllm.common.private_rounds.dealing import HeldShares, RoundSecrets
from pluralllm.common.private_rounds.messages import Shares

LOOK_EVERY_S = 0.02
SAID = "said"  # the folder in HOME with one file for each different message of a private round
# The folder in HOME with the numbers of each update, without masks; the digest of the masked file names the file.
UNMASKED = "unmasked"


async def file_there(path: Path) -> None:
    """Waits until another process has made the file."""
    while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)


def seed_of(name: str, number: int) -> int:
    """Returns the seed of a client's training in one private round."""
    return int.from_bytes(hashlib.sha256(f"{name} {number}".encode()).digest()[:8])


def mask(home: Path, order: Mask) -> Masked:
    """Masks an update as the real worker does, and keeps its numbers without masks in UNMASKED."""
    order = replace(order, rounding=hashlib.sha256(order.delta.read_bytes()).hexdigest())
    masked = mask_update(order, lambda done, total: None)
    folder = home / UNMASKED
    folder.mkdir(exist_ok=True)
    draft = folder / "draft"
    mask_update(replace(order, streams=(), out=draft), lambda done, total: None)
    draft.rename(folder / masked.digest)
    return masked


class Holding(StrEnum):
    """The message that a client holds back in one round until the file HOME/go-ROUND is there."""

    KEYS = "hold keys"
    SHARES = "hold shares"
    CONFIRMATION = "hold confirmation"
    REVEAL = "hold reveal"


class RecordingTransport(Transport):
    """A transport that copies each message of a private round to SAID before it sends it, and holds some back."""

    home = Path()
    holding: Mapping[int, str] = {}  # by round

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        if method == "PutRoundStep":
            await asyncio.to_thread(self._copy, request.SerializeToString(deterministic=True))
            number = int(request.task.split("/")[3])
            if self.holding.get(number) == f"hold {request.WhichOneof('body')}":
                await file_there(self.home / f"go-{number}")
        return await super().call(method, request, deadline_s)

    def _copy(self, message: bytes) -> None:
        folder = self.home / SAID
        folder.mkdir(exist_ok=True)
        path = folder / hashlib.sha256(message).hexdigest()[:24]
        path.with_suffix(".draft").write_bytes(message)  # a client may be killed here
        path.with_suffix(".draft").rename(path)


# Dealers that cheat


class Dealing(StrEnum):
    """The way in which a client cheats when it deals its shares in one round."""

    BAD_BOX = "bad box"  # the box for one other member does not open
    OTHER_SECRETS = "other secrets"  # all boxes open, and hold shares of other secrets than those of its keys


def cheat(plans: Mapping[str, Mapping[int, str]]) -> None:
    """Makes the clients of this process deal as their plans say. plans: by client and round."""
    honest_send, current = steps.send_shares, threading.local()

    def send(notebook: Notebook, me: Myself, *rest: Any) -> Shares:
        current.way = plans.get(me.name, {}).get(me.terms.round)
        return honest_send(notebook, me, *rest)

    def deal(secrets: RoundSecrets, *rest: Any, **named: Any) -> tuple[Shares, HeldShares]:
        if current.way == Dealing.OTHER_SECRETS:
            secrets = RoundSecrets.of(hashlib.sha256(b"another secret").digest(), b"other terms")
        shares, own = dealing.deal(secrets, *rest, **named)
        return (_with_bad_box(shares, *rest) if current.way == Dealing.BAD_BOX else shares), own

    replacements: Mapping[str, Callable[..., Any]] = {"send_shares": send, "deal": deal}
    for name, replacement in replacements.items():
        setattr(steps, name, replacement)


def _with_bad_box(shares: Shares, key: Any, members_sha256: bytes, dealer: str, members: Any) -> Shares:
    """Returns the same boxes, but for that of the first other member, which does not open. The dealer signs it, too."""
    boxes = list(shares.boxes)
    place = next(place for place, member in enumerate(members) if member.name != dealer)
    bad = replace(boxes[place], share_box=bytes(len(boxes[place].share_box)))
    boxes[place] = bad.signed(key, members_sha256, dealer, members[place].name)
    return Shares(tuple(boxes))
