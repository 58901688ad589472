"""Makes the coordinator's loop and the objects that the packages `rpc` and `observe` also use. Each object is made once."""

import secrets
from pathlib import Path

from pluralllm.common.process.clock import Clock
from pluralllm.common.process.pulse import Pulse
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.server.process.fail_stop import FailStop
from pluralllm.server.runs.bell import Bell, ClientBells
from pluralllm.server.runs.client_rows import ClientRows
from pluralllm.server.runs.coordinator import Coordinator, Timing
from pluralllm.server.runs.ended_evaluations import EndedEvaluations
from pluralllm.server.runs.expected import Expected, Possible
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.intake import Intake
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_runs import Runs
from pluralllm.server.runs.open_rounds import NoPeerKeys, OpenRounds, PeerKeys
from pluralllm.server.runs.presence import Presence
from pluralllm.server.runs.question_counts import QuestionCounts
from pluralllm.server.runs.refusals import Refusals
from pluralllm.server.runs.reward_queue import RewardQueue
from pluralllm.server.runs.round_steps import RoundSteps
from pluralllm.server.runs.round_sums import RoundSums
from pluralllm.server.runs.sessions import Sessions
from pluralllm.server.runs.status import Status
from pluralllm.server.runs.traffic import Traffic
from pluralllm.server.runs.troubles import Troubles
from pluralllm.server.runs.uploads import Uploads
from pluralllm.server.storage.blobs import Blobs
from pluralllm.server.storage.manifests import Manifests
from pluralllm.server.storage.model_reader import ModelReader
from pluralllm.server.storage.retention import Retention
from pluralllm.server.storage.round_files import RoundFiles
from pluralllm.server.storage.store import Store


class Assembly:
    """The objects of the package `runs`, for the composition root (composition.py).

    Each package gets from the composition root only the objects that the package uses. No other package may keep the
    assembly; a test checks this rule.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        clock: Clock,
        fail_stop: FailStop,
        timing: Timing,
        *,
        scratch: Path,
        uploads: Uploads,
        poll_hold_s: float,
        pulse: Pulse | None = None,
        federation: str = "",
        peer_keys: PeerKeys | None = None,
        possible: Possible | None = None,
    ) -> None:
        self.store, self.blobs, self.clock = store, blobs, clock
        self.tasks, self.pulse = WatchedTasks(clock, fail_stop.stop), pulse or Pulse()
        self.generation = secrets.token_hex(8)  # clients greet again when it changes
        self.runs, self.traffic, self.troubles, self.refusals = Runs(), Traffic(), Troubles(), Refusals()
        self.sessions, self.leases = Sessions(timing.silence_s), Leases(timing.lease_s)
        self.presence = Presence(self.sessions, self.leases)
        self.clients = ClientRows(store, clock)
        self.run_bell, self.client_bells = Bell(), ClientBells()
        self.manifests, self.retention = Manifests(store, blobs), Retention(store, blobs, timing.keep_updates)
        self.models = ModelReader(self.manifests, blobs)
        peer_keys = peer_keys or NoPeerKeys()
        self.open_rounds, self.round_files = OpenRounds(store, federation), RoundFiles(store, blobs)
        self.coordinator = Coordinator(
            inbox=Inbox(store),
            store=store,
            blobs=blobs,
            scratch=scratch,
            clock=clock,
            timing=timing,
            fail_stop=fail_stop,
            tasks=self.tasks,
            pulse=self.pulse,
            runs=self.runs,
            sessions=self.sessions,
            leases=self.leases,
            presence=self.presence,
            clients=self.clients,
            open_rounds=self.open_rounds,
            peer_keys=peer_keys,
            expected=Expected(possible),
            manifests=self.manifests,
            retention=self.retention,
            troubles=self.troubles,
            run_bell=self.run_bell,
            client_bells=self.client_bells,
        )
        self.round_steps = RoundSteps(
            coordinator=self.coordinator, rounds=self.open_rounds, clock=clock, peer_keys=peer_keys
        )
        self.intake = self._intake(uploads, fail_stop)
        self.rewards = self._reward_queue(scratch, poll_hold_s)
        self.questions = QuestionCounts()
        self.evaluations, self.sums = EndedEvaluations(store), RoundSums(store)
        self.status = Status(
            self.clients, self.sessions, self.leases, self.presence, clock, self.troubles, self.traffic, self.refusals
        )

    def _intake(self, uploads: Uploads, fail_stop: FailStop) -> Intake:
        return Intake(
            coordinator=self.coordinator,
            runs=self.runs,
            store=self.store,
            blobs=self.blobs,
            retention=self.retention,
            uploads=uploads,
            sessions=self.sessions,
            leases=self.leases,
            clients=self.clients,
            clock=self.clock,
            traffic=self.traffic,
            run_bell=self.run_bell,
            fail_stop=fail_stop,
            refusals=self.refusals,
            round_steps=self.round_steps,
        )

    def _reward_queue(self, scratch: Path, hold_s: float) -> RewardQueue:
        return RewardQueue(
            coordinator=self.coordinator,
            store=self.store,
            blobs=self.blobs,
            retention=self.retention,
            clock=self.clock,
            run_bell=self.run_bell,
            scratch=scratch,
            hold_s=hold_s,
        )
