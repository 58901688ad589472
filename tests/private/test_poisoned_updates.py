"""Attack 17: numbers that no honest update has. The own code refuses or limits them; a sum with an evil member's is dropped."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from private.evil_coordinator import (
    CLIP_NORM,
    CONFIRM,
    KEYS,
    LAYOUT,
    MOST_WEIGHT,
    REVEAL,
    SHARES,
    UPDATE,
    VALUES,
    Client,
    Coordinator,
    new_round,
)
from private.test_service import SPEC, Member, SmallClient, members_of, play, stored
from structlog.testing import capture_logs
from support.coordinator_harness import Served, serving

from pluralllm.client.private_rounds.masking import MaskingSecrets
from pluralllm.client.work.masking import mask_update
from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.errors.tree import NotFinite
from pluralllm.common.private_rounds.messages import Reveal
from pluralllm.common.private_rounds.ring import UPDATES, WEIGHT, Ring
from pluralllm.common.private_rounds.round_sum import leftover_streams, open_round
from pluralllm.common.private_rounds.statements import RoundTerms
from pluralllm.common.private_rounds.sum_files import PrivateSum, write_from_sum
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import TAIL
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.server.runs.implausible_sums import ImplausibleSums

Numbers = NDArray[np.uint32]
Poison = Callable[[Numbers], None]
NO_SECRETS = MaskingSecrets((), bytes(32))
RING = Ring(5, CLIP_NORM, MOST_WEIGHT)


def masked(folder: Path, value: float) -> Path:
    """Masks, with no streams, an update that has this number in one place. Returns the path of the masked file."""
    client = new_round(folder).clients["ann"]
    delta = client.delta()
    delta[7] = value
    write_weights(client.folder / "delta.safetensors", LAYOUT, [delta])
    order = client.order(NO_SECRETS, 5)
    try:
        mask_update(order, lambda done, total: None)
    finally:
        assert order.out.is_file() == bool(np.isfinite(value))
    return order.out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_17_a_client_does_not_mask_an_update_that_is_not_finite_and_leaves_no_file(
    tmp_path: Path, value: float
) -> None:
    with pytest.raises(NotFinite):
        masked(tmp_path, value)


@pytest.mark.parametrize("value", [1e30, -1e30, float(np.finfo(np.float32).max)])
def test_17_a_client_shortens_an_update_of_any_length_to_the_clip(tmp_path: Path, value: float) -> None:
    numbers = np.fromfile(masked(tmp_path, value), "<u4")[-LAYOUT.values :].view(np.int32)
    assert 0 < np.abs(numbers).max() <= RING.limit
    assert np.count_nonzero(numbers) == 1, "beside such a number the others are nothing"


# An evil member adds its numbers to the masked file, and signs what it sends: a mask does not hinder it.


def extreme(numbers: Numbers) -> None:
    numbers[TAIL:] += np.uint32(2**31)


def far_too_long(numbers: Numbers) -> None:
    numbers[TAIL : TAIL + 1] += np.uint32(2**30)


def heavy(numbers: Numbers) -> None:
    numbers[WEIGHT : WEIGHT + 1] += np.uint32(2**31)


def two_at_once(numbers: Numbers) -> None:
    numbers[UPDATES : UPDATES + 1] += np.uint32(1)


def in_an_unused_place(numbers: Numbers) -> None:
    numbers[TAIL - 1 : TAIL] += np.uint32(1)


POISONS = (extreme, far_too_long, heavy, two_at_once, in_an_unused_place)


def poison(file: Path, change: Poison) -> None:
    """Adds an evil member's numbers to its masked file."""
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    numbers = np.frombuffer(content, "<u4", offset=header).copy()
    change(numbers)
    file.write_bytes(content[:header] + numbers.tobytes())


class Poisoner(Client):
    """A client whose masked file has other numbers than it should."""

    change: Poison

    def _mask(self, secrets: MaskingSecrets, members: int) -> None:
        super()._mask(secrets, members)
        poison(self.outbox, self.change)


def version_of(coordinator: Coordinator, folder: Path) -> Path:
    """Makes the next version of a round, as the coordinator's process does. Returns its path."""
    files = []
    for name in coordinator.fixed.in_sum:
        file = folder / f"{name}.masked"
        file.write_bytes(coordinator.masked[name])
        files.append(StoredWeights(file, manifest_of(file).digest))
    opened = open_round(coordinator.fixed, coordinator.dealt, coordinator.latest(Reveal))
    base = folder / "base"
    manifest = write_weights(base, LAYOUT, [np.zeros(VALUES, np.float32)])
    leftover = leftover_streams(coordinator.fixed, opened)
    summed = PrivateSum(coordinator.fixed.in_sum, files, leftover, RING, MOST_WEIGHT)
    optimizer = server_optimizer(Aggregation())
    write_from_sum(StoredWeights(base, manifest.digest), (), summed, LAYOUT, optimizer, [folder / "next"])
    return folder / "next"


@pytest.mark.parametrize("change", [None, *POISONS], ids=lambda change: getattr(change, "__name__", "honest"))
def test_17_a_sum_with_such_numbers_of_an_evil_member_is_implausible_and_makes_no_version(
    tmp_path: Path, change: Poison | None
) -> None:
    coordinator = new_round(tmp_path / "clients")
    if change is not None:
        evil = coordinator.clients["emil"]
        evil.__class__ = Poisoner
        evil.change = change  # type: ignore[attr-defined]
    assert coordinator.run() == {}, "nobody can see it in what is masked"
    if change is None:
        assert version_of(coordinator, tmp_path).is_file(), "the control"
        return
    with pytest.raises(SumImplausible):
        version_of(coordinator, tmp_path)
    assert not (tmp_path / "next").exists()


class SmallPoisoner(SmallClient):
    def _mask(self, secrets: MaskingSecrets, members: int) -> None:
        super()._mask(secrets, members)
        poison(self.outbox, heavy)


class EvilMember(Member):
    """A member of the real coordinator that poisons each of its updates."""

    def ready(self, terms: RoundTerms) -> SmallClient:
        client = super().ready(terms)
        client.__class__ = SmallPoisoner
        return client


async def until_round(served: Served, number: int) -> None:
    for _ in range(400):
        if (await served.run("r")).round >= number:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"no round {number}: {await served.run('r')}")


async def test_17_after_two_such_rounds_in_a_row_the_operator_hears_who_took_part_in_both(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        first = await stored(served, 0)
        members[0] = EvilMember(members[0].hand, members[0].folder)
        with capture_logs() as logs:
            for number in (1, 2):
                await until_round(served, number)
                await play(members, KEYS, SHARES, UPDATE, CONFIRM)
                await play(members[:3], REVEAL)
                await until_round(served, number + 1)
        failed = [line["problem"] for line in logs if line["event"] == "round.averaging_failed"]
        assert len(failed) == 2
        assert all("The sum of the private round is implausible: the sum of weights" in problem for problem in failed)
        assert "The sum before" not in failed[0]
        assert "ann, bob, cleo, dora took part in both" in failed[1]
        assert (await served.run("r")).version == 0
        assert np.array_equal(await stored(served, 0), first)


def test_17_a_good_sum_between_two_implausible_ones_ends_the_row() -> None:
    sums, run, other = ImplausibleSums(), RunId("r"), RunId("s")
    ann, bob, cleo = (ClientId(name) for name in ("ann", "bob", "cleo"))
    assert sums.note(run, (bob, ann)) == ()
    assert sums.note(other, (ann, bob)) == ()
    assert sums.note(run, (cleo, bob, ann)) == (ann, bob)
    sums.forget(run)
    assert sums.note(run, (ann,)) == ()
    assert sums.note(other, (cleo, bob)) == (bob,)
