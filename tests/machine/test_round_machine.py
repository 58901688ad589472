"""Random histories of the round machine; its invariants hold after every step."""

import statistics
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pluralllm.common.errors.tree import Refused
from pluralllm.common.predictor.metrics import MAX_JS_DISTANCE
from pluralllm.common.words.aggregation import Aggregation
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import GroupRole, RoundPolicy
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.clipping import MAX_LENGTH
from pluralllm.server.rounds.looking import needs_look, sightings
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase, Run
from pluralllm.server.rounds.weighting import MAX_LEANING, shares_of
from pluralllm.server.runs.checkpoints import Content, Remembered, checkpoint_of, content_of

CLIENTS = [ClientId(name) for name in ("ann", "ben", "cat", "dan", "eve")]
clients = st.sampled_from(CLIENTS)
rounds = st.integers(0, 4).map(RoundNumber)
distances = st.none() | st.floats(0, MAX_JS_DISTANCE)
versions = st.integers(0, 4).map(ModelVersion)
examples = st.sampled_from([10, 10, 10, 1, 100_000])
norms = st.sampled_from([None, 0.0, 1.0, 1.0, 2.0, 1000.0])


class RoundMachine(RuleBasedStateMachine):
    """Feeds `step` the events that clients, clock, operator and storage can cause, sensible or not."""

    @initialize(
        minimum=st.integers(1, 3),
        extra=st.integers(0, 2),
        missed=st.sampled_from(["extend", "skip", "abort"]),
        every=st.integers(1, 3),
        grace_s=st.sampled_from([0.0, 5.0, 50.0]),
        weighting=st.sampled_from(["examples", "uniform", "q_fair", "agnostic", "adaptive"]),
        limits=st.booleans(),
    )
    def create(
        self, minimum: int, extra: int, missed: str, every: int, grace_s: float, weighting: str, limits: bool
    ) -> None:
        policy = RoundPolicy(
            min_clients=minimum,
            target_clients=minimum + extra,
            gather_s=5,
            deadline_s=20,
            grace_after_quorum_s=grace_s,
            on_missed_quorum=missed,
            max_extensions=2,
            evaluate_every=every,
            evaluation_deadline_s=10,
        )
        aggregation = Aggregation.model_validate({"weighting": weighting, "fairness": 3.0})
        self.first = Run(RunId("r"), 3, 4, policy, 0, Digest("d0"), aggregation=aggregation, limits_members=limits)
        self.run = self.first
        self.now_s = 0.0
        self.log: list[ev.Event] = []
        self.effects: list[ev.Effect] = []
        self.feed(ev.RunStarted(self.now_s))

    def feed(self, event: ev.Event) -> None:
        before = replace(self.run)
        try:
            after, effects = step(self.run, event)
        except Refused:
            assert self.run == before, "a refused event changed the state"
            return
        assert after != self.run or not effects, event
        if any(isinstance(effect, ev.Publish | ev.Abandon | ev.EndRun) for effect in effects):
            assert after.phase is not Phase.AGGREGATING, "a checkpoint does not know the average that a run waits for"
        if after != self.run or effects:
            stored = ev.event_from_facts(ev.event_kind(event), ev.event_to_facts(event))
            assert stored == event, "an event does not survive being written down"
            self.log.append(stored)
        self.run = after
        self.effects += effects

    @rule(seconds=st.floats(0.1, 12))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.feed(ev.ClockTicked(self.now_s))

    @rule()
    def everyone_free_is_idle(self) -> None:
        idle = tuple(client for client in CLIENTS if client not in self.run.active)
        everyone, _ = step(self.run, ev.ClientsSeen(self.now_s, idle[:4], idle[4:]))
        before = self.run
        for event in sightings(self.run, self.now_s, idle[:4], idle[4:]):
            self.feed(event)
        if before.phase is Phase.WAITING:
            assert self.run == everyone, "a report of everybody says no more"
        elif needs_look(before):
            assert replace(self.run, roster=()) == replace(everyone, roster=()), "the others do not matter"
        else:
            assert self.run is before
            assert replace(everyone, roster=()) == replace(before, roster=()), "nobody is waited for"

    @precondition(lambda self: self.run.active)
    @rule(which=st.integers(0, 4), distance=distances, count=examples, norm=norms)
    def whoever_has_a_place_delivers(self, which: int, distance: float | None, count: int, norm: float | None) -> None:
        client = self.run.active[which % len(self.run.active)]
        if self.run.phase is Phase.EVALUATING:
            self.client_evaluates(client, 0.5 if distance is None else None)
        else:
            self.client_commits(client, "x", distance, count, norm)

    @rule(trainers=st.sets(clients), held_out=st.sets(clients, max_size=2))
    def some_clients_are_idle(self, trainers: set[ClientId], held_out: set[ClientId]) -> None:
        busy = set(self.run.active)
        trainers, held_out = trainers - busy, held_out - trainers - busy
        self.feed(ev.ClientsSeen(self.now_s, tuple(sorted(trainers)), tuple(sorted(held_out))))

    @rule(client=clients, digest=st.sampled_from(["x", "y"]), distance=distances, count=examples, norm=norms)
    def client_commits(
        self, client: ClientId, digest: str, distance: float | None, count: int, norm: float | None
    ) -> None:
        receipt = ev.Receipt(client, Digest(f"{digest}-{client}"), count, distance, norm)
        event = ev.UpdateArrived(self.now_s, self.run.round, self.run.version, receipt)
        self.feed(event)
        if receipt in self.run.receipts and self.run.phase is Phase.COLLECTING:  # a revoked member's is withdrawn
            assert step(self.run, event) == (self.run, ()), "a retry was not free"

    def client_evaluates(self, client: ClientId, alignment: float | None) -> None:
        """The client reports this alignment score, or, if it is None, why it keeps the score."""
        reason = NotReported.BUDGET_SPENT if alignment is None else None
        version = self.run.version
        score = ev.Score(client, GroupName(client), GroupRole.TRAIN, version, alignment, alignment, None, 3, reason)
        self.feed(ev.EvaluationArrived(self.now_s, score))

    @precondition(lambda self: self.run.phase is Phase.AGGREGATING)
    @rule(chance=st.integers(0, 9))
    def averaging_ends(self, chance: int) -> None:
        if chance < 8:
            moments = (Digest(f"moment-{self.run.round}"),)
            self.feed(ev.ModelAveraged(self.now_s, self.run.round, Digest(f"model-{self.run.round}"), moments))
        else:
            self.feed(ev.AveragingFailed(self.now_s, self.run.round, "corrupt", base_lost=chance == 9))

    @rule(odd=st.integers(0, 31), client=clients, number=rounds, base=versions)
    def something_odd_happens(self, odd: int, client: ClientId, number: RoundNumber, base: ModelVersion) -> None:
        stale = ev.Receipt(client, Digest("stale"), 10)
        now_s = self.now_s
        match odd:
            case 24:
                self.feed(ev.RunCancelled(now_s, "enough"))
            case 25 | 26 | 27:
                self.feed(ev.MemberRevoked(now_s, client))
                assert (
                    client not in {receipt.client for receipt in self.run.receipts}
                    or self.run.phase is not Phase.COLLECTING
                )
                assert client not in self.run.active
            case 28 | 29:
                self.feed(ev.RunArchived(now_s))
            case 30 | 31:
                self.feed(ev.RunUnarchived(now_s))
            case 1 | 2:
                self.feed(ev.RunPaused(now_s))
            case 3 | 4 | 5 | 6:
                self.feed(ev.RunResumed(now_s))
            case 7 | 8:
                self.feed(ev.PlaceLost(now_s, client, "cannot", permanent=True))
            case 9 | 10 | 11:
                self.feed(ev.PlaceLost(now_s, client, "lease expired", permanent=False))
            case 12 | 13 | 14:
                self.feed(ev.ClientReturned(now_s, client))
            case 15 | 16:
                self.feed(ev.CoordinatorStarted(now_s))
            case 17 | 18:
                self.feed(ev.UpdateRefused(now_s, self.run.round, client, "NOT_FINITE", "NaN"))
            case 19:
                self.feed(ev.RunStarted(now_s))
            case 20 | 21 if number != self.run.round:
                self.feed(ev.ModelAveraged(now_s, number, Digest("stray")))
            case _:
                self.feed(ev.UpdateArrived(now_s, number, base, stale))

    @invariant()
    def only_an_ended_run_is_archived(self) -> None:
        assert self.run.phase is Phase.ENDED or not self.run.archived

    @invariant()
    def each_round_has_at_most_one_average_and_one_end(self) -> None:
        for kind in (ev.Average, ev.OpenRound):
            numbers = [effect.round for effect in self.effects if isinstance(effect, kind)]
            assert len(numbers) == len(set(numbers))
        ends = [effect.round for effect in self.effects if isinstance(effect, ev.Publish | ev.Abandon)]
        assert len(ends) == len(set(ends))

    @invariant()
    def receipts_come_from_the_cohort_once_each_and_on_record(self) -> None:
        holders = [receipt.client for receipt in self.run.receipts]
        assert holders == sorted(set(holders))
        assert set(holders) <= set(self.run.cohort)
        recorded = {(e.round, e.receipt) for e in self.effects if isinstance(e, ev.RecordReceipt)}
        assert {(self.run.round, receipt) for receipt in self.run.receipts} <= recorded

    @invariant()
    def whoever_has_a_slot_is_counted(self) -> None:
        run = self.run
        assert run.active_count == len(run.active)
        assert [client for client in CLIENTS if run.is_active(client)] == sorted(run.active)

    @invariant()
    def an_average_is_of_the_recorded_receipts_of_its_round_and_has_a_quorum(self) -> None:
        counts: dict[RoundNumber, dict[ClientId, ev.Receipt]] = {}
        for effect in self.effects:
            match effect:
                case ev.RecordReceipt(number, receipt):
                    counts.setdefault(number, {})[receipt.client] = receipt
                case ev.WithdrawReceipt(number, client):
                    del counts[number][client]
                case ev.Average(number, _, receipts):
                    assert receipts == tuple(receipt for _, receipt in sorted(counts[number].items()))
                    assert len(receipts) >= self.run.policy.min_clients
                case _:
                    pass

    @invariant()
    def weights_are_of_the_receipts_and_the_same_when_the_model_is_published(self) -> None:
        fair = self.run.aggregation.weighting not in ("examples", "uniform")
        averages = {effect.round: effect for effect in self.effects if isinstance(effect, ev.Average)}
        for average in averages.values():
            if fair or average.weights:
                assert len(average.weights) == len(average.receipts)
                assert max(average.weights) <= MAX_LEANING / len(average.receipts) + 1e-9
        for effect in self.effects:
            if isinstance(effect, ev.Publish):
                asked = averages[effect.round]
                assert (effect.receipts, effect.weights) == (asked.receipts, asked.weights)
                assert effect.scales == asked.scales
                assert effect.moments == (f"moment-{effect.round}",)

    @invariant()
    def only_limited_runs_record_weights_by_examples_or_shorten_updates(self) -> None:
        for effect in self.effects:
            if not isinstance(effect, ev.Average):
                continue
            counts = [receipt.examples for receipt in effect.receipts]
            even = sum(counts) / len(counts)
            uneven = max(counts) > MAX_LEANING * even or min(counts) < even / MAX_LEANING
            if self.run.aggregation.weighting == "examples":
                assert bool(effect.weights) == (self.run.limits_members and uneven)
            assert len(effect.scales) in (0, len(effect.receipts))
            if effect.scales:
                assert self.run.limits_members
                even_shares = [
                    max(1, share * len(counts))
                    for share in shares_of(effect.receipts, self.run.aggregation, effect.weights)
                ]
                steps = [
                    more * scale * (receipt.norm or 0)
                    for more, scale, receipt in zip(even_shares, effect.scales, effect.receipts, strict=True)
                ]
                middle = statistics.median_low([receipt.norm for receipt in effect.receipts if receipt.norm])
                assert max(steps) <= MAX_LENGTH * middle * (1 + 1e-8)

    @invariant()
    def the_standing_is_of_clients_whose_updates_were_published(self) -> None:
        published = [effect for effect in self.effects if isinstance(effect, ev.Publish)]
        known = {receipt.client for effect in published for receipt in effect.receipts}
        assert {client for client, _ in self.run.fairness_history} <= known
        if self.run.aggregation.weighting in ("examples", "uniform", "q_fair"):
            assert self.run.fairness_history == ()

    @invariant()
    def versions_are_published_without_gaps(self) -> None:
        published = [effect.version for effect in self.effects if isinstance(effect, ev.Publish)]
        assert published == list(range(1, len(published) + 1))
        assert self.run.version == len(published)

    @invariant()
    def a_place_is_never_wasted_on_the_excluded(self) -> None:
        assert len(self.run.cohort) == len(set(self.run.cohort))
        assert self.run.round <= self.run.rounds
        if self.run.phase is Phase.ENDED:
            assert self.run.outcome is not None
            assert not self.run.active

    def teardown(self) -> None:
        """The replay of the recorded events gives the live state: recovery is the same code."""
        replayed = self.first
        effects: list[ev.Effect] = []
        for event in self.log:
            replayed, now = step(replayed, event)
            effects += now
        assert replayed == self.run
        assert effects == self.effects
        content = Content(self.run, 1.5, Remembered())
        assert content_of(checkpoint_of(self.run.id, 1, content)) == content


class MoreHistories(RoundMachine):
    """The same, for more time."""


RoundMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=100, deadline=None)
MoreHistories.TestCase.settings = settings(max_examples=200, stateful_step_count=100, deadline=None)
TestRoundMachine = RoundMachine.TestCase
TestRoundMachineInMoreHistories = pytest.mark.seconds(MoreHistories.TestCase)
