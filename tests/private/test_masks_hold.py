"""Whatever a coordinator adds, subtracts and is told in a round, a single update stays noise to it; who lies is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from private.evil_client import deals_other_secrets, secrets_of
from private.evil_coordinator import (
    CONFIRM,
    REVEAL,
    SHARES,
    UPDATE,
    VALUES,
    Coordinator,
    assert_exact,
    new_round,
    plain_numbers,
)
from support.private_members import member_key

from pluralllm.common.errors.private_rounds import DealtWrongly
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.dealing import pair_key
from pluralllm.common.private_rounds.masks import add_masks, opposite, pair_key_with_sign, self_stream_key
from pluralllm.common.private_rounds.messages import Reveal, Share
from pluralllm.common.private_rounds.round_sum import open_round

VICTIM = "emil"


def late(folder: Path, size: int = 5) -> Coordinator:
    """Returns a round that has ended without the victim's update, which arrives afterwards."""
    coordinator = new_round(folder, size, hidden_among=2)
    coordinator.run(SHARES)
    coordinator.ask(UPDATE, [name for name in coordinator.clients if name != VICTIM])
    fixed = coordinator.updates
    coordinator.clients[VICTIM].answer(UPDATE, coordinator.honest_view(VICTIM))
    coordinator.masked[VICTIM] = coordinator.clients[VICTIM].outbox.read_bytes()
    coordinator.updates = fixed
    assert coordinator.ask(CONFIRM) == {}
    assert coordinator.ask(REVEAL) == {}
    return coordinator


def without_pairs(coordinator: Coordinator) -> NDArray[np.uint32]:
    """Returns the victim's numbers less every stream that the coordinator can compute from what was revealed."""
    fixed, client = coordinator.fixed, coordinator.clients[VICTIM]
    opened = open_round(fixed, coordinator.dealt, coordinator.latest(Reveal))
    numbers = coordinator.numbers(VICTIM).copy()
    streams = [
        pair_key_with_sign(
            pair_key(opened.masks[VICTIM], fixed.members_sha256, VICTIM, name),
            opened.halves[VICTIM, name],
            fixed.dealers_sha256,
            fixed.index(VICTIM),
            fixed.index(name),
        )
        for name in fixed.in_sum
    ]
    add_masks(numbers, 0, opposite(streams))
    assert secrets_of(client).mask == opened.masks[VICTIM], "m is known by now"
    return numbers


def test_13_an_update_that_comes_after_its_owners_mask_key_was_revealed_is_noise(tmp_path: Path) -> None:
    coordinator = late(tmp_path)
    rest = without_pairs(coordinator)
    plain = plain_numbers(coordinator, VICTIM)
    signed = rest[64:].view(np.int32).astype(np.float64)
    delta = plain[64:].view(np.int32).astype(np.float64)
    assert abs(np.corrcoef(signed, delta)[0, 1]) < 4 / np.sqrt(VALUES)
    counts = np.bincount(rest.view(np.uint8), minlength=256)
    expected = rest.nbytes / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    client = coordinator.clients[VICTIM]
    own = self_stream_key(secrets_of(client).own, coordinator.fixed.dealers_sha256, coordinator.fixed.index(VICTIM))
    add_masks(rest, 0, [(own, -1)])
    assert np.array_equal(rest, plain), "the control: with b, which nobody reveals, it is the update"


def test_12_an_acknowledged_update_that_is_left_out_stays_masked_by_a_secret_nobody_reveals(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, hidden_among=2)
    coordinator.run(UPDATE)
    coordinator.updates = tuple(update for update in coordinator.updates if update.name != VICTIM)
    coordinator.ask(CONFIRM)
    coordinator.ask(REVEAL)
    rest = without_pairs(coordinator)
    delta = plain_numbers(coordinator, VICTIM)[64:].view(np.int32).astype(np.float64)
    assert abs(np.corrcoef(rest[64:].view(np.int32).astype(np.float64), delta)[0, 1]) < 4 / np.sqrt(VALUES)


def test_a_masked_update_alone_and_a_sum_that_lacks_one_update_are_noise(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path, hidden_among=2)
    coordinator.run()
    total = coordinator.unmasked()
    numbers = {name: coordinator.numbers(name) for name in coordinator.fixed.in_sum}
    delta = plain_numbers(coordinator, VICTIM)[64:].view(np.int32).astype(np.float64)
    others: NDArray[np.uint32] = np.stack([one for name, one in numbers.items() if name != VICTIM]).sum(
        0, dtype=np.uint32
    )
    for attempt in (numbers[VICTIM], total - others):
        signed = attempt[64:].view(np.int32).astype(np.float64)
        assert abs(np.corrcoef(signed, delta)[0, 1]) < 4 / np.sqrt(VALUES)


# 15, 16: lies that are named


def lies(coordinator: Coordinator, holder: str) -> Reveal:
    """Returns a reveal of a holder whose first share is another one, signed by the holder."""
    true = coordinator.latest(Reveal)[holder]
    first = true.shares[0]
    changed = Share(first.index, first.value[:-1] + bytes([first.value[-1] ^ 1]))
    return replace(true, shares=(changed, *true.shares[1:])).signed(member_key(holder))


def test_15_a_holder_with_a_wrong_share_is_refused_by_name_and_the_others_suffice(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run()
    coordinator.got.append(("bob", lies(coordinator, "bob")))
    with pytest.raises(InvalidArgument, match="share of ann is not the one that was dealt"):
        coordinator.unmasked()
    coordinator.got = [
        (name, message) for name, message in coordinator.got if name != "bob" or not isinstance(message, Reveal)
    ]
    assert_exact(coordinator)


def test_15_with_more_liars_than_may_drop_out_no_secret_is_opened(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run()
    coordinator.got = [
        (name, one) for name, one in coordinator.got if name not in ("bob", "cleo") or not isinstance(one, Reveal)
    ]
    with pytest.raises(InvalidArgument, match="needed are 4"):
        coordinator.unmasked()


def test_16_a_dealer_with_shares_of_another_secret_is_named_and_the_round_gives_no_sum(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(SHARES)
    deals_other_secrets(coordinator, "emil")
    honest = ("ann", "bob", "cleo", "dora")
    for step in (UPDATE, CONFIRM, REVEAL):
        assert coordinator.ask(step, honest) == {}
    with pytest.raises(DealtWrongly, match="emil"):
        coordinator.unmasked()
