"""Clients that are killed at any point of any step, and that are asked to mask twice (attack 14)."""

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from private.evil_coordinator import (
    CONFIRM,
    KEYS,
    REVEAL,
    SHARES,
    STEPS,
    UPDATE,
    Client,
    Message,
    assert_exact,
    new_round,
    without,
)
from support.kill_points import stopping_at

from pluralllm.client.private_rounds import notebook, steps
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.private_rounds.messages import Complaint, Confirmation, Keys, Reveal, Shares, UpdateStatement
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.weights.chunks import manifest_of


class Killed(BaseException):
    """The error by which a test ends the client at a point: no code of the client catches it."""


def killed() -> None:
    raise Killed


def answer_or_die(client: Client, step: int, view: RoundView, number: int) -> Message | None:
    """Takes a step, and kills the client at the so many-th write. Returns None if it was killed, and then it starts again."""
    with pytest.MonkeyPatch.context() as patched:
        for owner, name, replacement in stopping_at(number, killed, []):
            patched.setattr(owner, name, replacement)
        try:
            return client.answer(step, view)
        except Killed:
            pass
    client.restart()
    return None


def test_21_a_client_that_is_killed_at_every_write_of_every_step_ends_the_round_with_everybody(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    client = coordinator.clients["ann"]
    kills = {}
    for step in STEPS:
        for number in itertools.count(1):
            message = answer_or_die(client, step, coordinator.honest_view("ann"), number)
            if message is not None:
                break
        kills[step] = number - 1
        assert client.answer(step, coordinator.honest_view("ann")) == message, "the same message again"
        assert coordinator.ask(step) == {}
        assert coordinator.got[-5][1] == message
    assert min(kills.values()) > 8, kills
    reveals = coordinator.sent(Reveal)
    assert len({one.sum_sha256 for one in reveals}) == 1
    assert_exact(coordinator)


def test_8_a_client_killed_before_its_keys_are_noted_has_new_keys_and_later_the_same(tmp_path: Path) -> None:
    coordinator = new_round(tmp_path)
    client, view = coordinator.clients["ann"], coordinator.honest_view("ann")
    assert answer_or_die(client, KEYS, view, 1) is None
    assert client.notebook.steps == ()
    first = client.answer(KEYS, view)
    client.restart()
    assert client.answer(KEYS, view) == first


def test_8_a_client_killed_before_its_update_is_noted_masks_again_and_afterwards_sends_the_same_file(
    tmp_path: Path,
) -> None:
    coordinator = new_round(tmp_path)
    coordinator.run(SHARES)
    client, view = coordinator.clients["ann"], coordinator.honest_view("ann")
    steps.hold(client.notebook, client.me, view)
    files = []
    for number in itertools.count(1):
        client.seed = f"training {number}"  # of a device whose trainings differ a little
        if answer_or_die(client, UPDATE, view, number) is not None or "update" in client.notebook.steps:
            break
        if client.outbox.is_file():
            files.append(client.outbox.read_bytes())
    assert len(set(files)) > 1
    statement = client.answer(UPDATE, view)
    assert isinstance(statement, UpdateStatement)
    assert statement.digest.hex() == manifest_of(client.outbox).digest
    client.restart()
    client.seed = "another training"
    assert client.answer(UPDATE, view) == statement


# 14: whatever happens in whatever order, one masked file for one list of dealers, one sum, one set of shares

KINDS = (Keys, Shares, UpdateStatement, Complaint, Confirmation, Reveal)
Change = Callable[[RoundView], RoundView]


def narrow(view: RoundView) -> RoundView:
    """Returns a view with other dealers."""
    kept = view.dealers[:-1]
    return replace(view, dealers=kept, boxes=tuple(box for box in view.boxes if box.dealer in kept))


def fewer(view: RoundView) -> RoundView:
    return without(view, "fay")


CHANGES: tuple[Change, ...] = (lambda view: view, narrow, fewer, lambda view: replace(view, boxes=()))
ATTEMPTS = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.sampled_from(CHANGES),
        st.integers(1, 40),  # the write at which the client is killed, if the step has so many
        st.sampled_from(("one training", "another one", None)),  # None: the outbox loses the file
    ),
    min_size=4,
    max_size=14,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Client, dict[int, RoundView], Path]:
    """A client that has dealt, with the honest views of the steps after that, and a copy of its state."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        coordinator = new_round(folder, 6, hidden_among=2)
        coordinator.run(SHARES)
        shutil.copytree(folder / "ann", folder / "copy")
        views = {KEYS: coordinator.honest_view("ann"), SHARES: coordinator.honest_view("ann")}
        for step in (UPDATE, CONFIRM, REVEAL):
            views[step] = coordinator.honest_view("ann")
            coordinator.ask(step)
    return coordinator.clients["ann"], views, folder / "copy"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attempts=ATTEMPTS)
def test_14_no_order_of_kills_lists_of_dealers_and_deltas_makes_a_client_say_two_things(
    prepared: tuple[Client, dict[int, RoundView], Path],
    monkeypatch: pytest.MonkeyPatch,
    attempts: list[tuple[int, Change, int, str | None]],
) -> None:
    client, views, copy = prepared
    monkeypatch.setattr(notebook, "_identity", lambda path: "")  # or the copy is taken for one from a backup
    for name in ("private", "history"):
        shutil.rmtree(client.folder / name)
        shutil.copytree(copy / name, client.folder / name)
    text = (client.folder / "private" / "first.7" / "notebook").read_text()
    line, rest = text.split("\n", 1)
    (client.folder / "private" / "first.7" / "notebook").write_text(
        "\n".join([line[: line.index('"file":')] + '"file":""' + line[line.index(',"message"') :], rest])
    )
    client.restart()
    client.has_receipt = False
    client.outbox.unlink(missing_ok=True)
    left: list[Message] = []
    for step, change, number, seed in attempts:
        client.seed = seed or client.seed
        if seed is None:
            client.outbox.unlink(missing_ok=True)
        try:
            message = answer_or_die(client, step, change(views[step]), number)
        except PluralError:
            continue
        if message is not None:
            left.append(message)
    for kind in KINDS:
        assert len({message for message in left if isinstance(message, kind)}) <= 1
    sums = {message.sum_sha256 for message in left if isinstance(message, Confirmation | Reveal)}
    assert len(sums) <= 1
