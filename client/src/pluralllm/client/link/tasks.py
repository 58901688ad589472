"""The messages between client and coordinator as plain dataclasses, free of protobuf."""

from dataclasses import dataclass

from pluralllm.common.private_rounds.peer_keys import PeerKeyClaim
from pluralllm.common.private_rounds.roster import RosterEntry
from pluralllm.common.trust.audit_chain import AuditEntry, WithheldEntry
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.spec import GroupRole


@dataclass(frozen=True, slots=True)
class Greeting:
    """The coordinator's answer to Hello: its clock, its present addresses and its release."""

    server_s: float  # seconds since the epoch
    addresses: Addresses | None = None  # None in plain text, and from an older release
    release: str = ""  # empty from an older release
    roster_head: bytes | None = None  # of the roster of peer keys; None from a release that has no roster


@dataclass(frozen=True, slots=True)
class Introduction:
    """The facts that a client states in Hello."""

    group: str
    role: GroupRole
    questions: int  # in the group's private file
    data_changed_s: float | None = None  # when this client has noticed the file's last change; None if there was none
    noise: NoiseStatement | None = None  # the partner's statement about the noise in its answers; None to state nothing
    peer_key: PeerKeyClaim | None = None  # None: the client takes no part in private rounds


@dataclass(frozen=True, slots=True)
class RosterPage:
    """Entries of the roster of peer keys, and the head of the whole roster."""

    entries: tuple[RosterEntry, ...]
    head: bytes


@dataclass(frozen=True, slots=True)
class Renewed:
    """The coordinator's answer to Renew: the next certificate chain as PEM, and its present addresses."""

    chain_pem: bytes
    addresses: Addresses | None


@dataclass(frozen=True, slots=True)
class Task:
    """One task for this client: to train, to evaluate or to score rollouts. Tasks with equal names are one and the same task."""

    name: TaskId
    run: RunId
    kind: TaskKind
    round: RoundNumber
    spec_sha256: Digest
    base_version: ModelVersion
    base_digest: Digest
    base_record_sha256: str
    cohort_size: int
    seed: int
    traceparent: str = ""  # W3C trace context of the round; empty if it has none
    phase: int = 0  # step of a private round, 1 .. 5; 0 in every other round


@dataclass(frozen=True, slots=True)
class Wait:
    """The answer that there is no task now, and that the client must poll again after `after_s` seconds."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class RunOver:
    """The answer that a run has ended, with its outcome and its last model version."""

    run: RunId
    outcome: str
    reason: str
    version: ModelVersion
    digest: Digest


Answer = Task | Wait | RunOver


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A version record as the coordinator presents it, with its signature by the federation's record key."""

    record: VersionRecord
    signature: bytes  # empty without certificates


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """An audit entry as the coordinator presents it, with its hash. The content of other members' entries is withheld."""

    entry: AuditEntry | WithheldEntry
    sha256: str


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Number and hash of the audit log's newest entry, with their signature by the federation's record key."""

    sequence: int
    sha256: str
    signature: bytes  # empty without certificates


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one evaluation.

    wasserstein_score is None if no question has a scale, or if the partner's policy keeps the score on this machine.
    """

    alignment_score: float
    alignment_score_base2: float
    wasserstein_score: float | None
    questions: int
    # Alignment score minus the score with uniform answers as the context; None if the partner's policy keeps it.
    context_gain: float | None = None
