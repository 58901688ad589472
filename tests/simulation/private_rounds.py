"""Private rounds by seed: messages are lost, repeated and reordered, members die, lie and come back, the coordinator restarts."""

import argparse
import hashlib
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from simulation.private_coordinator import SimulatedCoordinator
from simulation.private_members import Lie, Member, Message

from pluralllm.common.errors.private_rounds import WrongStep
from pluralllm.common.errors.tree import AlreadyCommitted, LeaseLost, PluralError, RoundClosed
from pluralllm.common.words.ids import ClientId
from pluralllm.common.words.private_rounds import threshold
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.looking import needs_look, sightings
from pluralllm.server.rounds.state import Outcome, Phase

ROUNDS = 12  # of one run
MAX_TURNS = 4000  # of one round, on average: a run that needs more goes no further


@dataclass(frozen=True, slots=True)
class Weather:
    """The amount of faults: probabilities of one thing in one turn, or of one message on its way."""

    lost: float
    repeated: float
    delayed: float
    dies: float
    restart: float
    revoked: float
    lies: float
    operator: float


CALM = Weather(0, 0, 0, 0, 0, 0, 0, 0)


class World:
    """One run of private rounds, from its creation to its end."""

    def __init__(self, seed: int, rounds: int = ROUNDS) -> None:
        self._draw = draw = random.Random(seed)
        count, colluders = draw.randint(3, 7), draw.choice((0, 1, 1, 1, 2))
        colluders = min(colluders, (count - 1) // 2)
        least = max(3, threshold(count, colluders))
        self.closes = random.Random(f"{seed}/closes").random() < 0.5  # a draw of its own: it changes no other
        spec = private_spec(rounds, draw.randint(least, count), count, colluders, closes=self.closes, **_policy(draw))
        self.weather = CALM if draw.random() < 0.1 else _weather(draw)
        self.coordinator = SimulatedCoordinator(spec)
        spares = draw.randint(0, 2)
        names = [ClientId(f"m{number}") for number in range(count + spares)]
        self.held_out = (ClientId("m90"), ClientId("m91")) if self.closes else ()
        self.members = {name: Member(name, random.Random(f"{seed}/{name}")) for name in (*names, *self.held_out)}
        self._liars = draw.sample(names, colluders)
        self._away_until: dict[ClientId, float] = {}
        self._bag: list[Message] = []
        self._now_s = 0.0
        self.lies: Counter[Lie] = Counter()

    def run(self) -> None:
        """Plays the run to its end. Raises AssertionError if something does not hold."""
        self._feed(ev.RunStarted(self._now_s))
        for _ in range(MAX_TURNS * ROUNDS):
            if self.coordinator.state.phase is Phase.ENDED:
                return
            self._turn()
        raise AssertionError(f"the run goes no further: {self.coordinator.state}")

    def check_end(self, rounds: int) -> None:
        """Checks that a run whose closing round has begun is complete, however that round ended, unless it was cancelled."""
        state = self.coordinator.state
        assert state.round <= rounds + self.closes
        if state.round > rounds:
            assert state.outcome in (Outcome.COMPLETED, Outcome.CANCELLED), state.reason
            assert (state.outcome is Outcome.CANCELLED) or (
                ("without closing scores" in state.reason) != (self.coordinator.rounds[state.round].end == "published")
            )

    def _turn(self) -> None:
        draw, weather = self._draw, self.weather
        self._now_s += draw.expovariate(0.2)
        if draw.random() < weather.restart:
            self.coordinator.restart(self._now_s)
        if draw.random() < weather.operator:
            self._operate()
        self._look()
        for name in draw.sample(sorted(self.members), len(self.members)):
            if self._away_until.get(name, 0.0) <= self._now_s:
                self._act(self.members[name])
        self._deliver()
        if self.coordinator.state.phase is Phase.AGGREGATING and draw.random() < 0.5:
            self.coordinator.average(self._now_s)
        self._feed(ev.ClockTicked(self._now_s))

    def _feed(self, event: ev.Event) -> None:
        self.coordinator.feed(event)

    def _operate(self) -> None:
        """Does what an operator may do at any time."""
        match self._draw.randrange(8):
            case 0 | 1:
                self._feed(ev.RunPaused(self._now_s))
            case 2:
                name = self._draw.choice(sorted(self.members))
                if self._draw.random() < self.weather.revoked:
                    self.coordinator.revoked.add(name)
                    self._feed(ev.MemberRevoked(self._now_s, name))
                    if not self.coordinator.state.is_excluded(
                        name
                    ):  # the run did not know it, and meets a new member later
                        self.coordinator.revoked.discard(name)
                    self._away_until[name] = self._now_s + 200.0
            case 3 if self._draw.random() < 0.02:
                self._feed(ev.RunCancelled(self._now_s, "enough"))
            case _:
                pass
        if self.coordinator.state.paused:
            self._feed(ev.RunResumed(self._now_s))

    def _look(self) -> None:
        """Reports who is there and who is not, as the coordinator's loop does."""
        state = self.coordinator.state
        for name in self._away_until:
            if self._away_until[name] > self._now_s and state.is_active(name) and self._draw.random() < 0.3:
                self._feed(ev.PlaceLost(self._now_s, name, "lease expired", permanent=False))
        state = self.coordinator.state
        for loss in state.excluded:
            if self._away_until.get(loss.client, 0.0) <= self._now_s and self._draw.random() < 0.2:
                self.coordinator.revoked.discard(loss.client)  # as a new member
                self._feed(ev.ClientReturned(self._now_s, loss.client))
        state = self.coordinator.state
        if needs_look(state):
            idle = [name for name in sorted(self.members) if not state.is_active(name)]
            present = [name for name in idle if self._away_until.get(name, 0.0) <= self._now_s]
            trainers = [name for name in present if name not in self.held_out]
            held_out = [name for name in present if name in self.held_out]
            for event in sightings(state, self._now_s, trainers, held_out, f"h{state.round}"):
                self._feed(event)

    def _act(self, member: Member) -> None:
        """Lets a member die, or do the next step of its task and send what it says."""
        state, draw = self.coordinator.state, self._draw
        if draw.random() < self.weather.dies:
            self._away_until[member.name] = self._now_s + draw.expovariate(0.02)
            if draw.random() < 0.1:
                member.lose_notebook(state.round)
            return
        if not state.is_private_round or not state.is_active(member.name) or draw.random() < 0.3:
            return
        if state.round in member.lost or (self.weather is not CALM and draw.random() < 0.002):
            self._feed(ev.PlaceLost(self._now_s, member.name, "ROUND_SECRETS_LOST", permanent=draw.random() < 0.5))
            return
        if state.round not in member.notebooks:
            lies = member.name in self._liars and draw.random() < self.weather.lies
            member.lies = frozenset(draw.sample(sorted(Lie), draw.randint(1, 2))) if lies else frozenset()
            self.lies.update(member.lies)
            self.coordinator.values[state.round, member.name] = member.notebook(state.round).value
        for message in self._said(member):
            self.coordinator.overhear(message, honest=not member.lies)
            if draw.random() >= self.weather.lost:
                self._bag.append(message)

    def _said(self, member: Member) -> list[Message]:
        """Returns the messages of a member in the open phase, if they have not arrived yet."""
        state = self.coordinator.state
        if member.name in state.sent and self._draw.random() < 0.9:
            return []
        match state.phase:
            case Phase.KEYING:
                return member.keys(state.round)
            case Phase.SHARING:
                return member.deal(self.coordinator.view())
            case Phase.COLLECTING:
                return member.train(self.coordinator.view())
            case Phase.CONFIRMING:
                return member.confirm(self.coordinator.view())
            case _:
                return member.reveal(self.coordinator.view())

    def _deliver(self) -> None:
        """Delivers messages in any order. Some come twice, and some much later."""
        draw, later = self._draw, []
        draw.shuffle(self._bag)
        for message in self._bag:
            if draw.random() < self.weather.delayed:
                later.append(message)
                continue
            if draw.random() < self.weather.repeated:
                later.append(message)
            self._receive(message)
        self._bag = later

    def _receive(self, message: Message) -> None:
        member = self.members[message.client]
        try:
            self.coordinator.receive(message, self._now_s)
        except AlreadyCommitted:
            assert member.lies or message.round in member.lost, "an honest member sent two messages"
        except (RoundClosed, WrongStep, LeaseLost):
            pass  # late


def private_spec(
    rounds: int, least: int, count: int, colluders: int, *, closes: bool = False, **policy: Any
) -> RunSpec:
    """Returns the spec of a run of private rounds. least: the minimum of updates; count: of members.

    closes: whether a closing round follows the last one.
    """
    values: dict[str, Any] = {
        "rounds": rounds,
        "round": {
            "min_clients": least,
            "target_clients": count,
            "gather_s": 20,
            "deadline_s": 120,
            "evaluate_every": 1000,
            "evaluation_deadline_s": 1,
            **policy,
        },
        "predictor": {"d_model": 1, "layers": 1, "heads": 1, "feedforward": 1, "embedder_layers": 2},
        "embedding": {"model": "none", "dimension": 1, "templates": ["{question}"]},
        "aggregation": {"max_examples": 1024, "weighting": "uniform"},
        "format": "pluralllm.run/4" if closes else "pluralllm.run/2",
        "private_rounds": {"colluders": colluders, "step_s": 40.0},
    }
    return RunSpec.model_validate(values)


def _policy(draw: random.Random) -> dict[str, Any]:
    return {
        "grace_after_quorum_s": draw.choice((0.0, 10.0, 60.0)),
        "on_missed_quorum": draw.choice(("extend", "extend", "skip", "abort")),
        "max_extensions": draw.randint(0, 3),
    }


def _weather(draw: random.Random) -> Weather:
    return Weather(
        lost=draw.choice((0.0, 0.1, 0.4)),
        repeated=draw.choice((0.0, 0.2)),
        delayed=draw.choice((0.0, 0.3)),
        dies=draw.choice((0.0, 0.005, 0.02)),
        restart=draw.choice((0.0, 0.01)),
        revoked=draw.choice((0.0, 0.5)),
        lies=draw.choice((0.0, 0.3)),
        operator=draw.choice((0.0, 0.02)),
    )


class PrivateRoundsFailed(AssertionError):
    """Something does not hold; the message says how to repeat the run."""


@dataclass(frozen=True, slots=True)
class Played:
    """The ends of a run's rounds, and the lies that were told in them."""

    ends: Counter[str]
    lies: Counter[Lie]
    log_sha256: str
    closed: str = ""  # how the closing round ended; "" if there was none


def simulate_private(seed: int, rounds: int = ROUNDS) -> Played:
    """Plays one run. Raises PrivateRoundsFailed if something does not hold."""
    world = World(seed, rounds)
    try:
        world.run()
        world.check_end(rounds)
    except (AssertionError, PluralError, ArithmeticError, LookupError) as error:
        again = f"PYTHONPATH=tests python -m simulation.private_rounds --seed {seed} --rounds {rounds}"
        raise PrivateRoundsFailed(f"{error!r}\nagain: {again}") from error
    log_sha256 = hashlib.sha256(repr(world.coordinator.log).encode()).hexdigest()
    closing = world.coordinator.rounds.get(rounds + 1)
    return Played(world.coordinator.outcomes, world.lies, log_sha256, "" if closing is None else closing.end)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation.private_rounds", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="The first seed.")
    parser.add_argument("--runs", type=int, default=1, help="The number of runs, each with the next seed.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="The number of rounds of one run.")
    options = parser.parse_args()
    ends: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.runs):
        ends += simulate_private(seed, options.rounds).ends
    print(*(f"{count:8} {end}" for end, count in ends.most_common()), sep="\n")
    print(f"{ends.total()} rounds, {time.process_time():.1f} s of a CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
