"""Members that break the rules of a private round: bad boxes, false complaints, shares of other secrets. Their keys are true."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from private.evil_coordinator import Client, Coordinator
from support.private_members import digest, member_key, numbers

from pluralllm.client.private_rounds.lines import KeysLine
from pluralllm.common.private_rounds.dealing import RoundSecrets, deal, pair_commitment
from pluralllm.common.private_rounds.messages import Box, Complaint, Shares, digest_of_members
from pluralllm.common.private_rounds.statements import dealers_digest

Change = Callable[[Box], Box]


def secrets_of(client: Client) -> RoundSecrets:
    """Returns all secrets of a client in its round, as its own process has them."""
    terms = client.me.terms.sha256
    return RoundSecrets.of(bytes.fromhex(client.notebook.needed(KeysLine).secret), terms)


def r1_of(coordinator: Coordinator) -> bytes:
    """Returns R1 of a coordinator that shows one and the same view to all."""
    return digest_of_members(coordinator.terms.sha256, coordinator.members)


def r2_of(coordinator: Coordinator) -> bytes:
    """Returns R2 of a coordinator that shows one and the same view to all."""
    return dealers_digest(r1_of(coordinator), coordinator.dealers)


def deals_bad_boxes(coordinator: Coordinator, dealer: str, victims: Iterable[str], change: Change) -> None:
    """Replaces a dealer's boxes for some members by changed ones, which the dealer signs."""
    names, boxes = [member.name for member in coordinator.members], list(coordinator.dealt[dealer].boxes)
    for victim in victims:
        place = names.index(victim)
        boxes[place] = change(boxes[place]).signed(member_key(dealer), r1_of(coordinator), dealer, victim)
    coordinator.dealt[dealer] = Shares(tuple(boxes))


def deals_other_secrets(coordinator: Coordinator, dealer: str) -> None:
    """Replaces a dealer's boxes by boxes with shares, and keys of pairs, of other secrets than those of its keys."""
    false = RoundSecrets.of(digest("another rk"), coordinator.terms.sha256)
    shares, _ = deal(
        *(false, member_key(dealer), r1_of(coordinator), dealer, coordinator.members),
        threshold=coordinator.threshold,
        least=coordinator.dealt[dealer].least,
        random_below=numbers("evil"),
    )
    coordinator.dealt[dealer] = shares


def unreadable(box: Box) -> Box:
    return replace(box, share_box=bytes(len(box.share_box)))


def unreadable_pair(box: Box) -> Box:
    return replace(box, pair_box=bytes(len(box.pair_box)))


def other_self_share(box: Box) -> Box:
    return replace(box, self_commitment=digest("another share"))


def other_mask_share(box: Box) -> Box:
    return replace(box, mask_commitment=digest("another share"))


def other_pair_key(box: Box) -> Box:
    return replace(box, pair_commitment=pair_commitment(digest("R1"), "a", "b", digest("another key")))


BAD_BOXES: tuple[Change, ...] = (unreadable, unreadable_pair, other_self_share, other_mask_share, other_pair_key)


def false_complaint(coordinator: Coordinator, name: str, dealer: str) -> Complaint:
    """Returns a member's signed complaint about a box that is good."""
    index = [member.name for member in coordinator.members].index(name) + 1
    box = coordinator.dealt[dealer].box_of(index)
    return Complaint(dealer, box.sha256).signed(member_key(name), r2_of(coordinator), name)
