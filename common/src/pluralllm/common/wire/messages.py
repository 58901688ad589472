"""Between protobuf messages and this project's types, both ways."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, checked_manifest, missing_ranges
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole
from pluralllm.v1 import resources_pb2 as pb

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

# One message holds a chunk and its envelope, or the manifest of 100,000 chunks.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# A matched pair: the client pings this often, the server allows it (grpc's GOAWAY "too_many_pings" otherwise).
KEEPALIVE_TIME_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

# Who is calling in plain text, where no certificate says so: metadata of every call, believed on loopback only.
CLIENT_ID_KEY = "pluralllm-client-id"

ROLES = {GroupRole.TRAIN: pb.GROUP_ROLE_TRAIN, GroupRole.HELD_OUT: pb.GROUP_ROLE_HELD_OUT}
ROLES_BACK = {number: role for role, number in ROLES.items()}
MEMBER_ROLES = {
    MemberRole.CLIENT: pb.MEMBER_ROLE_CLIENT,
    MemberRole.OBSERVER: pb.MEMBER_ROLE_OBSERVER,
    MemberRole.ADMIN: pb.MEMBER_ROLE_ADMIN,
}
MEMBER_ROLES_BACK = {number: role for role, number in MEMBER_ROLES.items()}


def timestamp(time_s: float) -> Timestamp:
    """Seconds since the epoch as a protobuf timestamp (microseconds kept)."""
    found = Timestamp()
    found.FromMicroseconds(round(time_s * 1e6))
    return found


def seconds(message: Timestamp) -> float:
    """The way back, also of a stranger's that is no date: protobuf's own raises for it."""
    return (message.seconds * 10**6 + message.nanos // 1000) / 1e6


def manifest_message(manifest: Manifest) -> pb.BlobManifest:
    return pb.BlobManifest(
        digest=manifest.digest,
        size_bytes=manifest.size_bytes,
        chunk_bytes=CHUNK_BYTES,
        chunk_sha256=manifest.chunk_hashes,
    )


def manifest_from(message: pb.BlobManifest, limit_bytes: int) -> Manifest:
    """A stranger's manifest, checked. Raises OverLimit, DigestMismatch."""
    return checked_manifest(message.digest, message.size_bytes, message.chunk_bytes, message.chunk_sha256, limit_bytes)


def range_messages(missing: Iterable[int]) -> list[pb.ChunkRange]:
    return [pb.ChunkRange(first=first, last=last) for first, last in missing_ranges(missing)]


def chunks_in(ranges: Iterable[pb.ChunkRange], chunks: int) -> list[int]:
    """The chunk numbers of a list of ranges, those of the blob only, in order and each once: however often it is asked for."""
    found: list[int] = []
    behind = 0
    for piece in sorted(ranges, key=lambda piece: piece.first):
        end = min(piece.last + 1, chunks)
        found += range(max(behind, piece.first), end)
        behind = max(behind, end)
    return found
