"""The dealers of a round, the boxes that they have dealt to this client, and what the boxes hold.

The boxes are kept as they came, still sealed, so that a client that was restarted still confirms and reveals.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from pluralllm.client.private_rounds.lines import BoxesLine, SharesLine
from pluralllm.client.private_rounds.membership import COORDINATOR, Members, Myself
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.common.errors.private_rounds import BadBox, BadView
from pluralllm.common.private_rounds.dealing import BoxOpener, HeldShares, RoundSecrets
from pluralllm.common.private_rounds.messages import Box
from pluralllm.common.private_rounds.round_view import DealtBoxes, RoundView
from pluralllm.common.private_rounds.statements import dealers_digest


@dataclass(frozen=True, slots=True)
class Dealers:
    """The members that have dealt, and their boxes for this client, whose signatures are checked."""

    members: Members
    names: tuple[str, ...]  # sorted, this client's own included
    sha256: bytes  # R2
    boxes: Mapping[str, Box]  # by dealer, for this client; none of its own

    def least_of(self, name: str) -> int:
        """Returns the fewest updates of a sum that a dealer's update may be part of."""
        return self.boxes[name].least if name in self.boxes else self.members.least


@dataclass(frozen=True, slots=True)
class Holding:
    """The shares and halves of pair keys that this client holds for the dealers of a round."""

    dealers: Dealers
    held: Mapping[str, HeldShares] = field(repr=False)  # by dealer, its own included; a bad box gives nothing
    pair_keys: Mapping[str, bytes] = field(repr=False)  # the other's half, by dealer; a bad box gives nothing
    bad: tuple[BadBox, ...]  # sorted by dealer


def take_boxes(notebook: Notebook, me: Myself, members: Members, view: RoundView) -> Dealers:
    """Checks the dealers and the boxes for this client, keeps the boxes, and returns them.

    The first call fixes the dealers for the rest of the round; later calls read the boxes that were kept.
    members: as `check_round` returned them. Raises RoundSecretsLost if this client has not dealt in this round; BadView if the
    dealers differ from those before or cannot be, or if a box is not signed by its dealer for this client.
    """
    notebook.needed(SharesLine)
    names = _checked_names(me, members, view.dealers)
    digest = dealers_digest(members.sha256, names)
    kept = notebook.line(BoxesLine)
    if kept is not None and kept.dealers != digest.hex():
        raise BadView(member=COORDINATOR, problem="the dealers are not those that it has shown to this client before")
    if kept is not None:
        boxes = notebook.parsed(kept, DealtBoxes)
    else:
        boxes = DealtBoxes(view.boxes)
        _check_boxes(me, members, names, boxes)
        body = boxes.to_json()
        notebook.write(BoxesLine(dealers=digest.hex(), message=sha256(body).hexdigest()), body)
    return Dealers(members, names, digest, {one.dealer: one.box for one in boxes.boxes})


def _checked_names(me: Myself, members: Members, dealers: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the dealers. Raises BadView if they are no possible list for this client, which has dealt."""
    if list(dealers) != sorted(set(dealers)) or not set(dealers) <= set(members.names):
        raise BadView(member=COORDINATOR, problem="the list of dealers is not sorted, or names others than members")
    if me.name not in dealers:
        raise BadView(member=me.name, problem="it has dealt, and the list of dealers does not have it")
    if len(dealers) < members.threshold:
        problem = f"{len(dealers)} dealers are fewer than the {members.threshold} that must reveal a sum"
        raise BadView(member=COORDINATOR, problem=problem)
    return dealers


def _check_boxes(me: Myself, members: Members, names: tuple[str, ...], boxes: DealtBoxes) -> None:
    """Checks that there is one box from each other dealer, signed for this client. Raises BadView."""
    if [box.dealer for box in boxes.boxes] != [name for name in names if name != me.name]:
        raise BadView(member=COORDINATOR, problem="the boxes are not one from each other dealer")
    for one in boxes.boxes:
        key, box = members.key_of(one.dealer), one.box
        if box.index != members.index or box.is_own or not box.is_signed(key, members.sha256, one.dealer, me.name):
            raise BadView(member=one.dealer, problem="its box is not signed for this member in this round")


def open_boxes(notebook: Notebook, me: Myself, dealers: Dealers, secrets: RoundSecrets) -> Holding:
    """Opens the boxes that this client has kept. A box that is bad is listed, and gives nothing."""
    dealt, members = notebook.needed(SharesLine), dealers.members
    held = {me.name: HeldShares(bytes.fromhex(dealt.own_self), bytes.fromhex(dealt.own_mask))}
    opener, pair_keys, bad = BoxOpener(secrets, members.sha256, me.name), {}, []
    for dealer, box in dealers.boxes.items():
        try:
            opened = opener.opened(dealer, members.key_of(dealer), box, members.index)
        except BadBox as error:
            bad.append(error)
        else:
            held[dealer], pair_keys[dealer] = opened.held, opened.pair_key
    return Holding(dealers, held, pair_keys, tuple(bad))
