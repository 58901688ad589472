"""One private round of the service's own code in one process: the steps of real clients, and the coordinator's desk.

Each message is turned into the bytes that travel and back, checked on both sides, and kept as the service keeps it: notebooks
and masked files on disk, with fsync. Left out are the transport (gRPC, TLS), the database and what a client trains. The
coordinator's part ends with the files of the next version and the transcript.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from echo import WIDTHS
from numpy.typing import NDArray

from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.masking import masking_secrets
from pluralllm.client.private_rounds.membership import Myself
from pluralllm.client.private_rounds.notebooks import Notebooks
from pluralllm.client.private_rounds.revealed_sums import RevealedSums
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import Mask
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.private_rounds import statements
from pluralllm.common.private_rounds.messages import UpdateStatement
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.private_rounds.statements import PrivateKey, RoundTerms
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.files import publish
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import Layout, flat_values, read_layout, write_weights
from pluralllm.common.weights.server_optimizer import server_optimizer
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.weights.update_format import update_format
from pluralllm.common.wire.round_steps import step_body, step_request, view_message, view_of
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.private_rounds import threshold
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.private_version import write_private
from pluralllm.server.aggregation.update_files import average, check_update
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state, next_step
from pluralllm.server.runs.open_rounds import OpenRounds
from pluralllm.server.runs.round_steps import RoundSteps
from pluralllm.server.storage.blobs import LocalBlobs
from pluralllm.server.storage.store import RunRecord
from pluralllm.v1 import federation_pb2 as pb

KEYS, SHARES, UPDATE, CONFIRMATION, REVEAL = 1, 2, 3, 4, 5
RUN, ONE = RunId("costs"), RoundNumber(1)
MOST_WEIGHT, CLIP_NORM = 1024, 4.0
FEDERATION = "costs"


def colluders_of(clients: int) -> int:
    """Returns the number of colluders that a round of this size bears, as docs/private-rounds.md has it."""
    return max(1, clients // 5)


def spec_of(clients: int, megabytes: int, drops: int) -> RunSpec:
    """Returns the spec of a private round. megabytes: about the size of the model; WIDTHS has those that there are."""
    width, colluders = WIDTHS[megabytes], colluders_of(clients)
    quorum = max(threshold(clients, colluders), 3)
    assert drops <= clients - quorum
    values = {
        "rounds": 1,
        "round": {"min_clients": quorum, "target_clients": clients, "grace_after_quorum_s": 0.0},
        "predictor": {"d_model": width, "layers": 4, "heads": 4, "feedforward": width, "embedder_layers": 4},
        "embedding": {"model": "echo", "dimension": 32},
        "aggregation": {"max_examples": MOST_WEIGHT},
        "private_rounds": {"colluders": colluders, "clip_norm": CLIP_NORM},
    }
    return RunSpec.model_validate(values)


def delta(seed: int, number: int, values: int) -> NDArray[np.float32]:
    """Returns what a client trains; its norm is about 2. benchmarks/flower/secagg.py has the same function."""
    return np.random.default_rng([seed, number]).normal(0, 2 / math.sqrt(values), values).astype(np.float32)


def examples(number: int) -> int:
    """Returns the weight of a client's update. benchmarks/flower/secagg.py has the same function."""
    return 100 + number


@dataclass
class Spent:
    """CPU seconds of this process (all its threads), by whose work they were."""

    clients_s: float = 0.0
    coordinator_s: float = 0.0

    @contextlib.contextmanager
    def by_client(self) -> Iterator[None]:
        """Counts the work in the `with` block as a client's. What another party has computed is not reused."""
        statements.forget_signatures()
        began_s = time.process_time()
        yield
        self.clients_s += time.process_time() - began_s

    @contextlib.contextmanager
    def by_coordinator(self) -> Iterator[None]:
        """Counts the work in the `with` block as the coordinator's."""
        statements.forget_signatures()
        began_s = time.process_time()
        yield
        self.coordinator_s += time.process_time() - began_s

    @property
    def total_s(self) -> float:
        return self.clients_s + self.coordinator_s

    def beyond(self, plain: "Spent") -> "Spent":
        """Returns what was spent beyond a plain round."""
        return Spent(self.clients_s - plain.clients_s, self.coordinator_s - plain.coordinator_s)


class NoRows:
    """A store that has no messages of earlier processes."""

    async def round_messages(self, *_: object) -> tuple[()]:
        return ()


class Machine:
    """The coordinator's loop, as far as the desk uses it: events go through the round machine; nothing is written."""

    def __init__(self) -> None:
        self.average: ev.Average | None = None

    async def dispatch(self, run: LiveRun, event: ev.Event, body: bytes = b"") -> None:
        made = next_step(run.record, run.progress, event, body)
        if made is not None:
            run.take(made[0])
            self.average = next((one for one in made[0].effects if isinstance(one, ev.Average)), self.average)


@dataclass(frozen=True)
class PeerKeys:
    """The roster of the round's members."""

    keys: dict[ClientId, bytes]
    head: bytes

    def peer_key(self, name: ClientId) -> bytes | None:
        return self.keys.get(name)


class Client:
    """One member, with the notebook and the steps of a real client."""

    def __init__(self, number: int, name: ClientId, key: PrivateKey, folder: Path, spec: RunSpec) -> None:
        self.number, self.name, self.key, self.folder, self._spec = number, name, key, folder, spec
        folder.mkdir(parents=True)
        self._notebooks = Notebooks(folder / "private", History(folder / "history"))
        self._notebook = self._notebooks.open(RUN, ONE)
        self._sums = RevealedSums(folder / "history")
        self.has_receipt = False
        self.me: Myself | None = None

    def answer(self, phase: int, shown: bytes, terms: RoundTerms, pins: dict[str, str]) -> bytes | UpdateStatement:
        """Takes one step. shown: the coordinator's answer as it travels. Returns the request that travels back."""
        view = view_of(pb.GetRoundStepResponse.FromString(shown))
        me = self.me = self.me or Myself(self.name, self.key, terms, pins, 1, 3, checked=True)
        if phase == UPDATE:
            return self._update(me, view)
        if phase == KEYS:
            body: Any = steps.send_keys(self._notebook, me, view)
        elif phase == SHARES:
            body = steps.send_shares(self._notebook, me, view)
        elif phase == CONFIRMATION:
            body = steps.confirm(self._notebook, me, view, self._sums, has_receipt=self.has_receipt)
        else:
            body = steps.reveal(self._notebook, me, view, self._sums, has_receipt=self.has_receipt)
        task = TaskName(RUN, ONE, TaskKind.TRAIN, self.name)
        return step_request(str(task), terms.sha256, body).SerializeToString()

    def _update(self, me: Myself, view: RoundView) -> UpdateStatement:
        """Masks the update, which is in a file already, as the worker does, and makes the masked file durable."""
        holding = steps.hold(self._notebook, me, view)
        assert steps.send_complaint(self._notebook, me, holding) is None
        masking, weight = masking_secrets(self._notebook, me, holding), examples(self.number)
        order = Mask(
            delta=self.folder / "delta",
            out=self.folder / "draft",
            members=len(view.members),
            clip_norm=CLIP_NORM,
            most_weight=MOST_WEIGHT,
            weight=weight,
            most_metric_weight=MOST_WEIGHT,
            metric_weight=weight,
            distance_weight=weight,
            loss=1.5,
            base_distance=0.3,
            score=None,
            streams=tuple((key.hex(), sign) for key, sign in masking.streams),
            rounding=masking.rounding.hex(),
        )
        masked = mask_update(order, lambda _done, _total: None)
        publish(order.out, self.folder / "masked")
        manifest_of(self.folder / "masked")  # the outbox reads what it sends
        return steps.send_update(self._notebook, me, holding, bytes.fromhex(masked.digest))


class PrivateRound:
    """A private round of clients and a coordinator, and what each of them has spent."""

    def __init__(self, folder: Path, clients: int, megabytes: int, drops: int, seed: int) -> None:
        """Makes the parties. What happens here is no part of the round."""
        self.spec, self._drops, self._seed = spec_of(clients, megabytes, drops), drops, seed
        self.layout: Layout = layout_for(self.spec)
        self.spent = Spent()
        (folder / "blobs").mkdir(parents=True)
        self._plain_form = update_format(self.layout, "fp32")
        self._draft, self._blobs = folder / "draft", LocalBlobs(folder / "blobs")
        digest = write_first_version(folder / "first", self.spec).digest
        asyncio.run(self._blobs.put(digest, folder / "first"))
        names = [ClientId(f"member-{number:03}") for number in range(1, clients + 1)]
        keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in names}
        self._pins = {str(name): fingerprint(public_der(key)) for name, key in keys.items()}
        self.members = [Client(n, name, keys[name], folder / name, self.spec) for n, name in enumerate(names, 1)]
        for client in self.members:
            values = delta(seed, client.number, self.layout.values)
            write_weights(client.folder / "delta", self.layout, [values])
        spec_json = self.spec.canonical_json()
        record = RunRecord(RUN, spec_json, Digest(self.spec.sha256()), 0.0)
        version = VersionRecord(RUN, ModelVersion(0), RoundNumber(0), digest, record.spec_sha256, "", (), 0.0)
        state = replace(first_state(record, self.spec, version), evaluated=ModelVersion(0))  # no evaluation comes first
        self._run = LiveRun(record, self.spec, self.layout, version, Progress(state, version))
        roster = PeerKeys({name: public_der(key) for name, key in keys.items()}, secrets.token_bytes(32))
        self._machine, self._rounds = Machine(), OpenRounds(cast(Any, NoRows()), FEDERATION)
        self._desk = RoundSteps(
            coordinator=cast(Any, self._machine), rounds=self._rounds, clock=SystemClock(), peer_keys=roster
        )
        self._names, self._head = tuple(names), roster.head.hex()

    async def play(self) -> None:
        """Plays the round to its end. The last `drops` clients deal, and then never answer again."""
        await self._open()
        present = self.members[: len(self.members) - self._drops]
        for phase in (KEYS, SHARES):
            await self._exchange(phase, self.members)
        await self._exchange(UPDATE, present)
        if self._drops:
            await self._machine.dispatch(self._run, ev.ClockTicked(1e9))
        enough = present[: threshold(len(self.members), colluders_of(len(self.members)))]
        await self._exchange(CONFIRMATION, enough)
        await self._exchange(REVEAL, enough)
        assert self._machine.average is not None
        with self.spent.by_coordinator():
            material = await self._rounds.material(self._run)
            await write_private(self._blobs, self.spec, self._run.newest, material, self._draft)

    async def play_plain(self) -> Spent:
        """Returns what the parties spend in a plain round with the same updates: the files, their hashes, and the mean."""
        spent, updates, weights = Spent(), [], []
        for client in self.members[: len(self.members) - self._drops]:
            values = np.array(flat_values(client.folder / "delta", self.layout))
            with spent.by_client():
                write_weights(client.folder / "draft", self.layout, [values])
                publish(client.folder / "draft", client.folder / "update")
                manifest_of(client.folder / "update")  # the outbox reads what it sends
            with spent.by_coordinator():
                manifest = manifest_of(client.folder / "update")  # hashed as it arrives
                check_update(client.folder / "update", self._plain_form, self.spec.aggregation.max_delta_norm)
                await self._blobs.put(manifest.digest, client.folder / "update")
            updates.append(StoredWeights(await self._blobs.path(manifest.digest), manifest.digest))
            weights.append(examples(client.number))
        with spent.by_coordinator():
            first = self._run.first.digest
            base = StoredWeights(await self._blobs.path(first), first)
            optimizer, outs = server_optimizer(self.spec.aggregation), [self._draft.with_name("plain")]
            average(base, (), updates, np.array(weights, np.float64), self.layout, optimizer, outs)
        return spent

    def error(self) -> float:
        """Returns the largest difference between the round's step and the weighted mean of the deltas, in float64."""
        present = self.members[: len(self.members) - self._drops]
        total, weights = np.zeros(self.layout.values), 0
        for client in present:
            total += examples(client.number) * delta(self._seed, client.number, self.layout.values).astype(np.float64)
            weights += examples(client.number)
        first = np.asarray(flat_values(asyncio.run(self._blobs.path(self._run.first.digest)), self.layout), np.float64)
        made = np.asarray(flat_values(self._draft, read_layout(self._draft)), np.float64)
        return float(np.abs(made - first - total / weights).max())

    async def _open(self) -> None:
        everybody = tuple(sorted(self._names))
        await self._machine.dispatch(self._run, ev.RunStarted(0.0))
        await self._machine.dispatch(self._run, ev.ClientsSeen(0.0, everybody, (), self._head))
        assert self._run.state.phase is Phase.KEYING

    async def _exchange(self, phase: int, clients: list[Client]) -> None:
        """Lets clients take a step, one after the other. All see the round as it is when the step begins."""
        terms = self._rounds.terms(self._run)
        shown = {client.name: await self._view(client.name) for client in clients}
        for client in clients:
            task = TaskName(RUN, ONE, TaskKind.TRAIN, client.name)
            with self.spent.by_client():
                answer = client.answer(phase, shown[client.name], terms, self._pins)
            with self.spent.by_coordinator():
                if isinstance(answer, UpdateStatement):
                    await self._take_update(client, task, answer)
                else:
                    request = pb.PutRoundStepRequest.FromString(answer)
                    await self._desk.put(self._run, task, request.terms_sha256, step_body(request))

    async def _view(self, name: ClientId) -> bytes:
        with self.spent.by_coordinator():
            step, view = await self._desk.view(self._run, TaskName(RUN, ONE, TaskKind.TRAIN, name))
            return view_message(step, view).SerializeToString()

    async def _take_update(self, client: Client, task: TaskName, statement: UpdateStatement) -> None:
        manifest = manifest_of(client.folder / "masked")  # hashed as it arrives
        await self._blobs.put(manifest.digest, client.folder / "masked")
        stated = await self._desk.statement(self._run, task, manifest.digest, statement.signature)
        receipt = ev.Receipt(client.name, manifest.digest, 1)
        arrived = ev.UpdateArrived(0.0, ONE, self._run.state.version, receipt)
        await self._desk.record_update(self._run, arrived, stated)
        client.has_receipt = True
