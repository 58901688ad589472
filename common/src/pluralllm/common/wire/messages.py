"""Converts protobuf messages to this project's types and back; holds the limits that both ends of a channel share."""

from collections.abc import Iterable
from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.private_rounds.roster import RosterChange, RosterEntry
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, checked_manifest, missing_ranges
from pluralllm.common.words.addresses import Addresses
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.roles import GroupRole, MemberRole
from pluralllm.v1 import federation_pb2
from pluralllm.v1 import resources_pb2 as pb
from pluralllm.v1.enrolment_pb2 import RenewResponse
from pluralllm.v1.federation_pb2 import BeginUpdateRequest, HelloRequest, HelloResponse

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

# Enough for a chunk with its envelope, or for the manifest of 100,000 chunks.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# A daemon notices within 25 s that its connection brings no byte any more. The answer to a ping may wait behind what stands on
# the connection: at most 5 s on the slowest link. A server must allow pings as frequent as these ("too_many_pings").
PING_EVERY_MS, PING_LIMIT_MS = 10_000, 15_000
# An operator's command sends messages of 4 MiB in one piece, so its pings are patient. A server sends such messages, too, and a
# ping behind one waits for minutes on the slowest link.
PATIENT_PING_EVERY_MS, PATIENT_PING_LIMIT_MS, SERVER_PING_LIMIT_MS = 60_000, 60_000, 300_000
UNACKNOWLEDGED_MS = 60_000  # then the kernel ends a connection whose bytes the other end's kernel does not take


def pings(every_ms: int, limit_ms: int) -> tuple[tuple[str, int], ...]:
    """Returns the options for pings. gRPC sends one after `every_ms` without a byte, and waits `limit_ms` for the answer.

    The name of gRPC's option keepalive_timeout_ms misleads: for the answer it waits ping_timeout_ms, a minute by default.
    """
    return (
        ("grpc.keepalive_time_ms", every_ms),
        ("grpc.keepalive_timeout_ms", min(limit_ms, UNACKNOWLEDGED_MS)),  # becomes the kernel's TCP_USER_TIMEOUT
        ("grpc.http2.ping_timeout_ms", limit_ms),
    )


CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Keeps what is under way on a stream at 64 KiB, or at one message. With the probe, gRPC takes 4 MiB at once from the start:
    # minutes on a slow link, during which every other call on the connection waits.
    ("grpc.http2.bdp_probe", 0),
)

DAEMON_OPTIONS: tuple[tuple[str, int], ...] = (
    *pings(PING_EVERY_MS, PING_LIMIT_MS),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # otherwise up to two minutes, also after the coordinator is back
)
COMMAND_OPTIONS = pings(PATIENT_PING_EVERY_MS, PATIENT_PING_LIMIT_MS)

CHUNK_PIECES = "chunk_pieces"  # capability of a coordinator: it takes chunks in pieces
PRIVATE_ROUNDS = "private-rounds/1"  # capability of both sides: the daemon or coordinator knows private rounds
MAX_ROSTER_ENTRIES = 1000  # in one answer

# Metadata key that names the calling client in plain text, where no certificate does. Servers accept it on loopback only.
CLIENT_ID_KEY = "pluralllm-client-id"

ROLES = {GroupRole.TRAIN: pb.GROUP_ROLE_TRAIN, GroupRole.HELD_OUT: pb.GROUP_ROLE_HELD_OUT}
ROLES_BACK = {number: role for role, number in ROLES.items()}
MEMBER_ROLES = {
    MemberRole.CLIENT: pb.MEMBER_ROLE_CLIENT,
    MemberRole.OBSERVER: pb.MEMBER_ROLE_OBSERVER,
    MemberRole.ADMIN: pb.MEMBER_ROLE_ADMIN,
}
MEMBER_ROLES_BACK = {number: role for role, number in MEMBER_ROLES.items()}
NOT_REPORTED = {
    NotReported.TOO_FEW_QUESTIONS: pb.NOT_REPORTED_TOO_FEW_QUESTIONS,
    NotReported.BUDGET_SPENT: pb.NOT_REPORTED_BUDGET_SPENT,
    NotReported.KEPT_BACK: pb.NOT_REPORTED_KEPT_BACK,
}
NOT_REPORTED_BACK = {number: reason for reason, number in NOT_REPORTED.items()}
ROSTER_CHANGES = {
    RosterChange.ADDED: federation_pb2.ROSTER_CHANGE_ADDED,
    RosterChange.REMOVED: federation_pb2.ROSTER_CHANGE_REMOVED,
    RosterChange.REPLACED: federation_pb2.ROSTER_CHANGE_REPLACED,
}
ROSTER_CHANGES_BACK = {number: change for change, number in ROSTER_CHANGES.items()}


def timestamp(time_s: float) -> Timestamp:
    """Converts seconds since the epoch to a protobuf timestamp, rounded to microseconds."""
    message = Timestamp()
    message.FromMicroseconds(round(time_s * 1e6))
    return message


def seconds(message: Timestamp) -> float:
    """Converts a protobuf timestamp to seconds since the epoch.

    The function never raises an error. Protobuf's own conversion raises an error if the timestamp is not a valid date.
    """
    return (message.seconds * 10**6 + message.nanos // 1000) / 1e6


def addresses_in(answer: HelloResponse | RenewResponse) -> Addresses | None:
    """Returns the coordinator's addresses in an answer; None if it has none, as in plain text and from an older release."""
    if not answer.HasField("addresses"):
        return None
    return Addresses(answer.addresses.coordinator, answer.addresses.enrolment)


def noise_message(statement: NoiseStatement | None) -> pb.NoiseStatement | None:
    """Converts a statement about noise to its protobuf message; None stays None, which leaves a field absent."""
    return None if statement is None else pb.NoiseStatement(**asdict(statement))


def noise_in(message: HelloRequest | BeginUpdateRequest) -> NoiseStatement | None:
    """Returns the statement about noise in a request, and checks it; None if the client states nothing.

    Raises InvalidArgument for a statement that means nothing.
    """
    if not message.HasField("noise"):
        return None
    noise = message.noise
    statement = NoiseStatement(noise.noised, noise.epsilon, noise.delta, noise.unit)
    if problem := statement.problem():
        raise InvalidArgument(field="noise", problem=problem)
    return statement


def roster_entry_message(entry: RosterEntry) -> federation_pb2.RosterEntry:
    """Converts an entry of the roster to its protobuf message."""
    return federation_pb2.RosterEntry(
        sequence=entry.sequence,
        name=entry.name,
        group=entry.group,
        fingerprint=entry.fingerprint,
        change=ROSTER_CHANGES[entry.change],
    )


def roster_entry_in(message: federation_pb2.RosterEntry) -> RosterEntry:
    """Converts a checked message to an entry of the roster."""
    change = ROSTER_CHANGES_BACK[message.change]
    return RosterEntry(message.sequence, message.name, message.group, message.fingerprint, change)


def manifest_message(manifest: Manifest) -> pb.BlobManifest:
    """Converts a manifest (digest, size and chunk hashes of a file) to its protobuf message."""
    return pb.BlobManifest(
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        chunk_bytes=CHUNK_BYTES,
        chunk_sha256=manifest.chunk_hashes,
    )


def manifest_from(message: pb.BlobManifest, limit_bytes: int) -> Manifest:
    """Converts a message from a peer to a manifest (digest, size and chunk hashes of a file), and checks the values.

    limit_bytes: the greatest allowed size of the file. Raises OverLimit if the file is larger, or if the chunk size or the
    number or length of the chunk hashes is wrong.
    Raises DigestMismatch if the digest is not the digest of the chunk hashes.
    """
    return checked_manifest(message.digest, message.size_bytes, message.chunk_bytes, message.chunk_sha256, limit_bytes)


def range_messages(missing: Iterable[int]) -> list[pb.ChunkRange]:
    """Converts the numbers of missing chunks to range messages. The result has as few ranges as possible."""
    return [pb.ChunkRange(first=first, last=last) for first, last in missing_ranges(missing)]


def chunks_in(ranges: Iterable[pb.ChunkRange], chunks: int) -> list[int]:
    """Returns the chunk numbers that the ranges contain, in ascending order and without repetition.

    chunks: the number of chunks in the file. Chunk numbers in the ranges that the file does not have are ignored.
    """
    numbers: list[int] = []
    next_number = 0
    for piece in sorted(ranges, key=lambda piece: piece.first):
        end = min(piece.last + 1, chunks)
        numbers += range(max(next_number, piece.first), end)
        next_number = max(next_number, end)
    return numbers
