"""A coordinator in memory that runs whole private rounds with the real steps of its clients, and lies as a test tells it.

Without a lie it is an honest one. It keeps everything that reaches it, so that a test can ask what has left a client.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from support.private_members import NAMES, TERMS, member_key

from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.holding import Holding
from pluralllm.client.private_rounds.lines import UpdateLine
from pluralllm.client.private_rounds.masking import MaskingSecrets, masking_secrets
from pluralllm.client.private_rounds.membership import Myself
from pluralllm.client.private_rounds.notebooks import Notebooks
from pluralllm.client.private_rounds.revealed_sums import RevealedSums
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import Mask
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.private_rounds.messages import (
    Complaint,
    Confirmation,
    Keys,
    Reveal,
    RoundMember,
    Shares,
    UpdateStatement,
)
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.round_sum import FixedRound, Unmasking, check_reveal, leftover_streams, open_round
from pluralllm.common.private_rounds.round_view import DealtBox, MemberComplaint, MemberConfirmation, RoundView
from pluralllm.common.private_rounds.statements import RoundTerms, derived
from pluralllm.common.private_rounds.thresholds import score_demand
from pluralllm.common.process.files import publish
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import layout_of, write_weights
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.words.ids import RoundNumber, RunId
from pluralllm.common.words.private_rounds import threshold

KEYS, SHARES, UPDATE, CONFIRM, REVEAL = STEPS = (1, 2, 3, 4, 5)
Message = Keys | Shares | UpdateStatement | Complaint | Confirmation | Reveal
VALUES, CLIP_NORM, MOST_WEIGHT = 4096, 40.0, 400
SCORE = 0.7  # of each client that adds one to the sum
LAYOUT = layout_of([("w", (VALUES,))])
MASKED = update_format(LAYOUT, "ring32")
MessageT = TypeVar("MessageT", Keys, Shares, UpdateStatement, Complaint, Confirmation, Reveal)
Lie = Callable[[str, int, RoundView], RoundView]  # what a client is shown in a step, in place of the honest view


def honest(name: str, step: int, view: RoundView) -> RoundView:
    return view


def pins_of(names: Iterable[str]) -> dict[str, str]:
    """Returns the true fingerprints of members."""
    return {name: fingerprint(public_der(member_key(name))) for name in names}


class Client:
    """One client: the real steps over a notebook on disk."""

    def __init__(self, name: str, folder: Path, me: Myself) -> None:
        self.name, self.folder, self.me = name, folder, me
        self.has_receipt = False
        self.seed = name  # its update follows from it
        self.score: float | None = None  # in its tail
        self.outbox = folder / "masked.safetensors"
        self.restart()

    def restart(self) -> None:
        """Forgets everything that is not on disk."""
        self.notebooks = Notebooks(self.folder / "private", History(self.folder / "history"))
        self.notebook = self.notebooks.open(RunId(self.me.terms.run), RoundNumber(self.me.terms.round))
        self.sums = RevealedSums(self.folder / "history")

    def answer(self, step: int, view: RoundView) -> Message:
        """Takes a step, and returns the message that leaves this client."""
        notebook, me = self.notebook, self.me
        if step == KEYS:
            return steps.send_keys(notebook, me, view)
        if step == SHARES:
            return steps.send_shares(notebook, me, view)
        if step == UPDATE:
            return self.update(view)
        if step == CONFIRM:
            return steps.confirm(notebook, me, view, self.sums, has_receipt=self.has_receipt)
        return steps.reveal(notebook, me, view, self.sums, has_receipt=self.has_receipt)

    def update(self, view: RoundView) -> UpdateStatement | Complaint:
        """Masks the update, or sends the file that is masked already; complains if a box is bad."""
        holding = steps.hold(self.notebook, self.me, view)
        if (complaint := steps.send_complaint(self.notebook, self.me, holding)) is not None:
            return complaint
        if self.notebook.line(UpdateLine) is None or not self.outbox.is_file():
            self.score = SCORE if self.name in holding.dealers.members.adding else None
            self._mask(masking_secrets(self.notebook, self.me, holding), len(view.members))
        return steps.send_update(self.notebook, self.me, holding, bytes.fromhex(manifest_of(self.outbox).digest))

    def delta(self) -> NDArray[np.float32]:
        """Returns the update that this client trains. Shape: (VALUES,)."""
        rng = np.random.default_rng(list(self.seed.encode()))
        return rng.normal(0, 0.1, VALUES).astype(np.float32)

    def order(self, secrets: MaskingSecrets, members: int) -> Mask:
        """Returns the worker's order to mask the update."""
        return Mask(
            delta=self.folder / "delta.safetensors",
            out=self.folder / "draft.safetensors",
            members=members,
            clip_norm=CLIP_NORM,
            most_weight=MOST_WEIGHT,
            weight=len(self.name),
            most_metric_weight=MOST_WEIGHT,
            metric_weight=len(self.name),
            distance_weight=len(self.name),
            loss=1.5,
            base_distance=None,
            score=self.score,
            streams=tuple((key.hex(), sign) for key, sign in secrets.streams),
            rounding=secrets.rounding.hex(),
        )

    def _mask(self, secrets: MaskingSecrets, members: int) -> None:
        """Masks the update as the worker does, and keeps the file as the outbox does."""
        write_weights(self.folder / "delta.safetensors", LAYOUT, [self.delta()])
        order = self.order(secrets, members)
        mask_update(order, lambda done, total: None)
        publish(order.out, self.outbox)


@dataclass
class Coordinator:
    """The coordinator's memory of one round. `lie` changes what it shows."""

    clients: dict[str, Client]
    terms: RoundTerms = TERMS
    lie: Lie = honest
    got: list[tuple[str, Message]] = field(default_factory=list)  # all that has reached it, with the sender
    members: tuple[RoundMember, ...] = ()
    dealers: tuple[str, ...] = ()
    dealt: dict[str, Shares] = field(default_factory=dict)
    complaints: tuple[MemberComplaint, ...] = ()
    arrived: dict[str, UpdateStatement] = field(default_factory=dict)
    updates: tuple[UpdateStatement, ...] = ()
    confirmations: tuple[MemberConfirmation, ...] = ()
    masked: dict[str, bytes] = field(default_factory=dict)  # the masked files that have arrived, by client

    @property
    def threshold(self) -> int:
        return threshold(len(self.members), self.terms.colluders)

    def honest_view(self, name: str) -> RoundView:
        """Returns what an honest coordinator shows to a client at the present step."""
        boxes: tuple[DealtBox, ...] = ()
        if self.dealers:
            index = [member.name for member in self.members].index(name) + 1
            others = [dealer for dealer in self.dealers if dealer != name]
            boxes = tuple(DealtBox(dealer, self.dealt[dealer].box_of(index)) for dealer in others)
        return RoundView(
            self.terms, self.members, self.dealers, boxes, self.complaints, self.updates, self.confirmations
        )

    def ask(self, step: int, names: Iterable[str] | None = None) -> dict[str, PluralError]:
        """Asks clients for one step; takes what they send. Returns the refusals, by client."""
        refusals = {}
        for name in sorted(self.clients) if names is None else names:
            try:
                message = self.clients[name].answer(step, self.lie(name, step, self.honest_view(name)))
            except PluralError as error:
                refusals[name] = error
            else:
                self.got.append((name, message))
                if isinstance(message, UpdateStatement):
                    self.masked[name] = self.clients[name].outbox.read_bytes()
        self._close(step)
        return refusals

    def run(self, last: int = REVEAL, gone: Mapping[int, Iterable[str]] | None = None) -> dict[str, PluralError]:
        """Runs the round up to a step. Returns the last refusal of each client. gone: clients that are away from a step on."""
        refusals: dict[str, PluralError] = {}
        away: set[str] = set()
        for step in range(KEYS, last + 1):
            away |= set((gone or {}).get(step, ()))
            refusals |= self.ask(step, [name for name in sorted(self.clients) if name not in away])
        return refusals

    def sent(self, kind: type[MessageT], name: str | None = None) -> list[MessageT]:
        """Returns all messages of a kind that have reached the coordinator; of one client only if it is named."""
        return [message for sender, message in self.got if isinstance(message, kind) and name in (None, sender)]

    @property
    def fixed(self) -> FixedRound:
        return FixedRound(self.terms, self.members, self.dealers, self.updates)

    def unmasked(self) -> NDArray[np.uint32]:
        """Returns the sum of the round, tail first, from what has reached the coordinator. Shape: (64 + VALUES,)."""
        fixed, reveals = self.fixed, self.latest(Reveal)
        complaints = {one.name: one.complaint.dealer for one in self.complaints}
        for holder, reveal in reveals.items():
            check_reveal(fixed, holder, reveal, self.dealt, complaints.get(holder, ""))
        opened = open_round(fixed, self.dealt, reveals)
        return Unmasking(leftover_streams(fixed, opened)).unmasked([self.numbers(name) for name in fixed.in_sum])

    def numbers(self, name: str) -> NDArray[np.uint32]:
        """Returns the numbers of a client's masked file, tail first. Shape: (64 + VALUES,)."""
        return np.frombuffer(self.masked[name], "<u4", offset=len(MASKED.header))

    def latest(self, kind: type[MessageT]) -> dict[str, MessageT]:
        """Returns the newest message of a kind from each client, sorted by client."""
        return {sender: message for sender, message in sorted(self.got, key=_sender) if isinstance(message, kind)}

    def _close(self, step: int) -> None:
        """Fixes what follows from the messages of a step, as an honest coordinator does."""
        if step == KEYS:
            keys = self.latest(Keys).items()
            self.members = tuple(RoundMember(name, public_der(member_key(name)), one) for name, one in keys)
        elif step == SHARES:
            self.dealt = self.latest(Shares)
            self.dealers = tuple(self.dealt)
        elif step == UPDATE:
            self.complaints = tuple(MemberComplaint(name, one) for name, one in self.latest(Complaint).items())
            out = {one.name for one in self.complaints} | {one.complaint.dealer for one in self.complaints}
            self.arrived = self.latest(UpdateStatement)
            self.updates = tuple(one for name, one in self.arrived.items() if name not in out)
            for name in self.arrived:
                self.clients[name].has_receipt = True
        elif step == CONFIRM:
            confirmed = self.latest(Confirmation).items()
            self.confirmations = tuple(MemberConfirmation(name, one.signature) for name, one in confirmed)


def assert_exact(coordinator: Coordinator) -> None:
    """Asserts that the coordinator's sum is that of the plain numbers of the clients in it, to the bit."""
    total = np.zeros(64 + VALUES, np.uint32)
    for name in coordinator.fixed.in_sum:
        total += plain_numbers(coordinator, name)
    assert np.array_equal(coordinator.unmasked(), total)
    assert total[1] == len(coordinator.updates)


def plain_numbers(coordinator: Coordinator, name: str) -> NDArray[np.uint32]:
    """Returns the numbers of a client's update without masks, tail first. Shape: (64 + VALUES,)."""
    client = coordinator.clients[name]
    holding = steps.hold(client.notebook, client.me, coordinator.honest_view(name))
    order = client.order(_no_masks(client, holding), len(coordinator.members))
    mask_update(replace(order, out=client.folder / "plain.safetensors"), lambda done, total: None)
    return np.fromfile(client.folder / "plain.safetensors", "<u4", offset=len(MASKED.header))


def _no_masks(client: Client, holding: Holding) -> MaskingSecrets:
    """Returns the client's seed for rounding, and no streams."""
    training = steps.secrets_of(client.notebook, client.me).training
    return MaskingSecrets((), derived(training, "rounding", holding.dealers.sha256))


def _sender(one: tuple[str, Message]) -> str:
    return one[0]


def new_round(
    folder: Path,
    size: int = 5,
    *,
    terms: RoundTerms = TERMS,
    pinned: Mapping[str, Iterable[str]] | None = None,
    colluders: int = 1,
    hidden_among: int = 3,
    unchecked: Iterable[str] = (),
    scoring: Iterable[str] = (),
) -> Coordinator:
    """Returns a coordinator with new clients, whose state is below `folder`.

    pinned: by client, the members that it has pinned; all for a client that is not named.
    unchecked: clients that have not computed the base version again. scoring: clients that would add their scores.
    """
    names = NAMES[:size]
    clients = {}
    for name in names:
        pinned_names = tuple((pinned or {}).get(name, names))
        demand = score_demand(unpinned=size - len(pinned_names), colluders=colluders, hidden_among=hidden_among)
        me = Myself(
            name=name,
            key=member_key(name),
            terms=terms,
            pins=pins_of(pinned_names),
            colluders=colluders,
            hidden_among=hidden_among,
            checked=name not in unchecked,
            score_among=(name in scoring) * demand,
        )
        clients[name] = Client(name, folder / name, me)
    return Coordinator(clients, terms)


def for_victims(victims: Iterable[str], step: int, change: Callable[[RoundView], RoundView]) -> Lie:
    """Returns a lie to some clients in one step; all others see the honest view."""
    chosen = frozenset(victims)

    def lie(name: str, at: int, view: RoundView) -> RoundView:
        return change(view) if name in chosen and at == step else view

    return lie


def without(view: RoundView, *names: str) -> RoundView:
    """Returns a view whose sum lacks the updates of some members."""
    return replace(view, updates=tuple(update for update in view.updates if update.name not in names))
