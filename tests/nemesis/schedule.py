"""The faults of a run of real processes and their moments: a pure function of the seed.

A fault strikes some milliseconds after a moment of a round: it opened, its first update was recorded, averaging began, or its
version was published. A private round has three more moments: its members, its dealers and its sum were fixed. Processes have no
common clock, so the order of events differs between two runs of a seed; the strikes
are the same.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

CLIENTS = ("ann", "ben", "cem")
MEMBERS = (*CLIENTS, "dan")  # of private rounds: with fewer, none may drop out
ROUNDS = 6
PRIVATE = "private "  # the scenarios with private rounds begin with it
SECOND_STRIKE = 0.5  # the share of rounds that have two strikes
DAY_S = 86_400.0


class Kind(StrEnum):
    """The kinds of faults; strikes.py carries them out."""

    COORDINATOR_KILLED = "coordinator killed"
    COORDINATOR_STOPPED = "coordinator stopped in order"
    COORDINATOR_PAUSED = "coordinator paused"
    COORDINATOR_OVERTAKEN = "coordinator paused until another serves"
    CLIENT_KILLED = "client killed"
    CLIENT_PAUSED = "client paused"
    LINK_CUT = "connection cut"
    LINK_CUT_IN_MID = "connection cut after so many bytes"
    LINK_SLOW = "connection slow"
    LINK_HELD = "connection without a byte"
    LINK_ONE_WAY = "connection one way only"
    LINK_BLACK_HOLE = "connection into a black hole"
    LINK_FLAPS = "connection cut again and again"
    CALLS_REPLAYED = "calls replayed"
    CLOCK_OF_COORDINATOR = "coordinator's clock set"
    CLOCK_OF_CLIENT = "client's clock set"
    DISK_FULL = "disk full"
    DISK_ERROR = "disk error"
    UPDATE_SPOILT = "stored update spoilt"
    MODEL_SPOILT = "stored model spoilt, then restored"
    DATABASE_LOCKED = "database locked"
    DATABASE_CUT = "database ended every session"
    DATABASE_HELD = "database without an answer"
    BUCKET_CUT = "object store cut"
    BUCKET_HELD = "object store without an answer"
    SECOND_COORDINATOR = "second coordinator on the same state"
    LOG_FAILS = "log cannot be written"
    METRICS_FAIL = "port of metrics fails"
    PAGE_UNREAD = "page's visitors never read"
    COLLECTOR_HANGS = "collector of traces hangs"


class Moment(StrEnum):
    """The moments of a round that the coordinator's log shows."""

    OPENED = "opened"
    UPDATE = "first update recorded"
    AVERAGING = "averaging"
    PUBLISHED = "published"
    MEMBERS_FIXED = "members fixed"
    DEALERS_FIXED = "dealers fixed"
    SUM_FIXED = "sum fixed"


PLAIN_MOMENTS = (Moment.OPENED, Moment.UPDATE, Moment.AVERAGING, Moment.PUBLISHED)
K = Kind
OF_LINKS = (K.LINK_CUT, K.LINK_CUT_IN_MID, K.LINK_SLOW, K.LINK_HELD, K.LINK_ONE_WAY, K.LINK_BLACK_HOLE, K.LINK_FLAPS)
OF_SERVED_STORES = (K.DATABASE_CUT, K.DATABASE_HELD, K.BUCKET_CUT, K.BUCKET_HELD, K.COORDINATOR_OVERTAKEN)
OF_EMBEDDED_STORES = (K.SECOND_COORDINATOR,)
OF_SPOILT_FILES = (K.UPDATE_SPOILT, K.MODEL_SPOILT)
# The duration of each kind in seconds. Some pauses exceed the lease of 2 s, and some locks SQLite's limit of 5 s.
# PostgreSQL ends a session that is idle for 8 s, so the standby overtakes a coordinator that is paused for longer.
LASTS: dict[Kind, tuple[float, float]] = {
    K.COORDINATOR_PAUSED: (0.3, 4.0),
    K.COORDINATOR_OVERTAKEN: (12.0, 14.0),
    K.CLIENT_PAUSED: (0.3, 4.0),
    K.LINK_SLOW: (1.0, 3.0),
    K.LINK_HELD: (0.5, 4.0),
    K.LINK_ONE_WAY: (0.5, 4.0),
    K.LINK_FLAPS: (1.0, 3.0),
    K.CLOCK_OF_COORDINATOR: (0.5, 4.0),
    K.CLOCK_OF_CLIENT: (0.5, 4.0),
    K.DISK_FULL: (0.5, 3.0),
    K.DISK_ERROR: (2.0, 4.0),
    K.MODEL_SPOILT: (0.05, 0.3),
    K.DATABASE_LOCKED: (0.5, 7.0),
    K.DATABASE_HELD: (0.5, 4.0),
    K.BUCKET_HELD: (0.5, 4.0),
    K.LOG_FAILS: (0.5, 4.0),
    K.METRICS_FAIL: (0.6, 3.0),
    K.PAGE_UNREAD: (1.0, 4.0),
    K.COLLECTOR_HANGS: (1.0, 6.0),
}
CLOCK_JUMPS_S = (60.0, 3600.0, DAY_S, 20 * DAY_S, 3650 * DAY_S)
# These kinds need a certain moment: before it the round has no such file, and later it has none any more.
ONLY_AT = {K.UPDATE_SPOILT: Moment.UPDATE, K.MODEL_SPOILT: Moment.OPENED}


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault. `number` is a seeded random number for details of the fault."""

    round: int
    moment: Moment
    delay_s: float
    kind: Kind
    client: str  # the client that it strikes, if the kind strikes a client
    lasts_s: float
    number: int

    def __str__(self) -> str:
        about = f" of {self.client}" if self.kind in (*OF_LINKS, K.CLIENT_KILLED, K.CLIENT_PAUSED) else ""
        lasts = f" for {self.lasts_s:.2f} s" if self.lasts_s else ""
        return f"round {self.round} {self.moment}, {1000 * self.delay_s:.0f} ms later: {self.kind}{about}{lasts}"


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    stores: str
    scenario: str  # a key of federation.SPECS
    standby: bool  # whether a second coordinator serves the same database from the start
    strikes: tuple[Strike, ...]

    @property
    def is_private(self) -> bool:
        """Whether the run has private rounds."""
        return self.scenario.startswith(PRIVATE)

    @property
    def sha256(self) -> str:
        """The hash of the schedule, which is the same in every process."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def has(self, *kinds: Kind) -> bool:
        return any(strike.kind in kinds for strike in self.strikes)

    def lines(self) -> list[str]:
        """Describes the strikes for a person."""
        stands_by = ", a second coordinator stands by" if self.standby else ""
        return [f"seed {self.seed}, {self.stores}, {self.scenario}{stands_by}", *map(str, self.strikes)]


def kinds_for(stores: str, unavailable: Iterable[Kind] = ()) -> tuple[Kind, ...]:
    """Returns the kinds that are possible with a pair of stores on this machine."""
    foreign = OF_SERVED_STORES if stores == "sqlite+local" else OF_EMBEDDED_STORES
    left_out = {*foreign, *unavailable}
    return tuple(kind for kind in Kind if kind not in left_out)


def schedule(seed: int, stores: str, kinds: Sequence[Kind], *, private: bool = False) -> Schedule:
    """Returns a strike for every round, and in some rounds a second one of another kind.

    private: whether the run has private rounds.
    """
    prefix = PRIVATE if private else ""
    draw = random.Random(f"nemesis {prefix}{seed} {stores}")
    standby = stores != "sqlite+local" and draw.random() < 0.5
    possible = [kind for kind in kinds if standby or kind is not K.COORDINATOR_OVERTAKEN]
    scenario = prefix + draw.choice(("everybody", "everybody", "quorum"))
    strikes: list[Strike] = []
    for number in range(1, ROUNDS + 1):
        how_many = 2 if len(possible) > 1 and draw.random() < SECOND_STRIKE else 1
        strikes += [_strike(draw, number, kind, private=private) for kind in draw.sample(possible, how_many)]
    return Schedule(seed, stores, scenario, standby, tuple(strikes))


def _strike(draw: random.Random, number: int, kind: Kind, *, private: bool) -> Strike:
    moment = ONLY_AT.get(kind) or draw.choice(tuple(Moment) if private else PLAIN_MOMENTS)
    delay_s = 0.0 if kind in ONLY_AT else draw.choice((0.0, draw.uniform(0.0, 0.4)))
    lasts_s = draw.uniform(*LASTS[kind]) if kind in LASTS else 0.0
    client = draw.choice(MEMBERS if private else CLIENTS)
    return Strike(number, moment, round(delay_s, 3), kind, client, round(lasts_s, 2), draw.getrandbits(32))
