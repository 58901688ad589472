"""Converts the errors of the tree to gRPC statuses and back; one table gives each error class its status code.

An error is sent as a google.rpc.Status (aip.dev/193) with one ErrorInfo. The ErrorInfo's `reason` is the name of the error
class. Its `metadata` holds the error's facts (the values that describe the error) as JSON.
"""

import json
import typing
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pluralllm.common.errors import membership as m
from pluralllm.common.errors import private_rounds as p
from pluralllm.common.errors import tree as e
from pluralllm.common.text.printable import printable, printable_values

DOMAIN = "pluralllm"
# A reason in ReportFailure that is no error of the tree: the daemon stops, and its session ends with it.
CLIENT_STOPPED = "CLIENT_STOPPED"

CODES: dict[type[e.PluralError], grpc.StatusCode] = {
    e.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidConfig: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidData: grpc.StatusCode.INVALID_ARGUMENT,
    e.DataChanged: grpc.StatusCode.FAILED_PRECONDITION,
    e.InvalidResults: grpc.StatusCode.INVALID_ARGUMENT,
    e.InvalidModel: grpc.StatusCode.INVALID_ARGUMENT,
    e.TooFewQuestions: grpc.StatusCode.FAILED_PRECONDITION,
    e.NotFound: grpc.StatusCode.NOT_FOUND,
    e.WrongPhase: grpc.StatusCode.FAILED_PRECONDITION,
    e.RunNotEnded: grpc.StatusCode.FAILED_PRECONDITION,
    e.RoundClosed: grpc.StatusCode.FAILED_PRECONDITION,
    e.WrongBase: grpc.StatusCode.FAILED_PRECONDITION,
    e.SpecMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.AlreadyCommitted: grpc.StatusCode.ALREADY_EXISTS,
    e.LeaseLost: grpc.StatusCode.FAILED_PRECONDITION,
    e.OverLimit: grpc.StatusCode.OUT_OF_RANGE,
    e.ChunksMissing: grpc.StatusCode.FAILED_PRECONDITION,
    e.DigestMismatch: grpc.StatusCode.DATA_LOSS,
    e.WrongLayout: grpc.StatusCode.INVALID_ARGUMENT,
    e.NotFinite: grpc.StatusCode.INVALID_ARGUMENT,
    e.NormTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    e.ProtocolUnsupported: grpc.StatusCode.FAILED_PRECONDITION,
    e.StaleSession: grpc.StatusCode.FAILED_PRECONDITION,
    e.SessionReplaced: grpc.StatusCode.ABORTED,
    e.Unidentified: grpc.StatusCode.UNAUTHENTICATED,
    e.PolicyForbids: grpc.StatusCode.FAILED_PRECONDITION,
    e.ConsentNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    e.EmbeddingMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    e.EmbeddingUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    e.ModelUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    e.ExtraMissing: grpc.StatusCode.FAILED_PRECONDITION,
    e.CommandMissing: grpc.StatusCode.FAILED_PRECONDITION,
    e.CommandBroken: grpc.StatusCode.FAILED_PRECONDITION,
    e.PluginMissing: grpc.StatusCode.FAILED_PRECONDITION,
    e.PluginBroken: grpc.StatusCode.FAILED_PRECONDITION,
    e.HistoryDiverged: grpc.StatusCode.FAILED_PRECONDITION,
    e.RecordInvalid: grpc.StatusCode.FAILED_PRECONDITION,
    e.PrivacyBudgetSpent: grpc.StatusCode.FAILED_PRECONDITION,
    e.NotReleased: grpc.StatusCode.FAILED_PRECONDITION,
    e.NoisedFileLost: grpc.StatusCode.FAILED_PRECONDITION,
    e.AnswersProtected: grpc.StatusCode.FAILED_PRECONDITION,
    e.NoiseDemanded: grpc.StatusCode.FAILED_PRECONDITION,
    e.LedgerBroken: grpc.StatusCode.DATA_LOSS,
    e.LedgerDiverged: grpc.StatusCode.DATA_LOSS,
    e.InUse: grpc.StatusCode.FAILED_PRECONDITION,
    e.NotLoopback: grpc.StatusCode.FAILED_PRECONDITION,
    m.CertificateInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    m.CertificateExpired: grpc.StatusCode.UNAUTHENTICATED,
    m.CertificateNotYetValid: grpc.StatusCode.UNAUTHENTICATED,
    m.CertificateRevoked: grpc.StatusCode.UNAUTHENTICATED,
    m.CertificateUnknown: grpc.StatusCode.UNAUTHENTICATED,
    m.CertificateForeign: grpc.StatusCode.UNAUTHENTICATED,
    m.CertificateWrongUse: grpc.StatusCode.UNAUTHENTICATED,
    m.RoleForbids: grpc.StatusCode.PERMISSION_DENIED,
    m.IdentityMismatch: grpc.StatusCode.PERMISSION_DENIED,
    m.AwaitingApproval: grpc.StatusCode.PERMISSION_DENIED,
    m.InviteInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    m.InviteForOtherCommand: grpc.StatusCode.FAILED_PRECONDITION,
    m.InviteUnknown: grpc.StatusCode.UNAUTHENTICATED,
    m.InviteForAnother: grpc.StatusCode.PERMISSION_DENIED,
    m.InviteExpired: grpc.StatusCode.UNAUTHENTICATED,
    m.InviteUsed: grpc.StatusCode.UNAUTHENTICATED,
    m.RunNotShared: grpc.StatusCode.PERMISSION_DENIED,
    m.TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    m.TooManyAttempts: grpc.StatusCode.RESOURCE_EXHAUSTED,
    m.MemberExists: grpc.StatusCode.ALREADY_EXISTS,
    m.LastAdmin: grpc.StatusCode.FAILED_PRECONDITION,
    m.NotInitialised: grpc.StatusCode.FAILED_PRECONDITION,
    m.AlreadyInitialised: grpc.StatusCode.FAILED_PRECONDITION,
    m.NotJoined: grpc.StatusCode.FAILED_PRECONDITION,
    m.AlreadyJoined: grpc.StatusCode.FAILED_PRECONDITION,
    m.ForeignAuthority: grpc.StatusCode.UNAUTHENTICATED,
    m.WrongHost: grpc.StatusCode.FAILED_PRECONDITION,
    m.ServerCertificateOutOfDate: grpc.StatusCode.FAILED_PRECONDITION,
    m.ClockWrong: grpc.StatusCode.FAILED_PRECONDITION,
    m.IssuerExpired: grpc.StatusCode.FAILED_PRECONDITION,
    m.AuditBroken: grpc.StatusCode.DATA_LOSS,
    p.TooFewKnown: grpc.StatusCode.FAILED_PRECONDITION,
    p.HiddenAmongTooFew: grpc.StatusCode.FAILED_PRECONDITION,
    p.SumsTooClose: grpc.StatusCode.FAILED_PRECONDITION,
    p.AnotherSum: grpc.StatusCode.FAILED_PRECONDITION,
    p.BadBox: grpc.StatusCode.FAILED_PRECONDITION,
    p.BadView: grpc.StatusCode.FAILED_PRECONDITION,
    p.DealtWrongly: grpc.StatusCode.FAILED_PRECONDITION,
    p.SumImplausible: grpc.StatusCode.FAILED_PRECONDITION,
    p.TermTooLong: grpc.StatusCode.FAILED_PRECONDITION,
    p.WrongStep: grpc.StatusCode.FAILED_PRECONDITION,
    p.RosterDiverged: grpc.StatusCode.FAILED_PRECONDITION,
    p.PeerKeyDiffers: grpc.StatusCode.PERMISSION_DENIED,
    p.AggregateDiffers: grpc.StatusCode.FAILED_PRECONDITION,
    p.RoundSecretsLost: grpc.StatusCode.FAILED_PRECONDITION,
    e.Unreachable: grpc.StatusCode.UNAVAILABLE,
    e.ForeignAnswer: grpc.StatusCode.UNAVAILABLE,
    e.ProxyFailed: grpc.StatusCode.UNAVAILABLE,
    e.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.WrongPort: grpc.StatusCode.UNIMPLEMENTED,
    e.LinkTooSlow: grpc.StatusCode.UNAVAILABLE,
    e.StreamSilent: grpc.StatusCode.UNAVAILABLE,
    e.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    e.BackupUnusable: grpc.StatusCode.FAILED_PRECONDITION,
    e.NotEmpty: grpc.StatusCode.FAILED_PRECONDITION,
    e.Corrupt: grpc.StatusCode.DATA_LOSS,
    e.BaseLost: grpc.StatusCode.DATA_LOSS,
    e.UpdateLost: grpc.StatusCode.DATA_LOSS,
    e.StoreFailed: grpc.StatusCode.UNAVAILABLE,
    e.DiskFailed: grpc.StatusCode.UNAVAILABLE,
    e.Overtaken: grpc.StatusCode.UNAVAILABLE,
    e.AnswerInvalid: grpc.StatusCode.INTERNAL,
    e.WorkerDied: grpc.StatusCode.INTERNAL,
    e.BackgroundFailed: grpc.StatusCode.UNAVAILABLE,
    e.Internal: grpc.StatusCode.INTERNAL,
}

# The coordinator's own errors always carry an ErrorInfo. A status without one comes from gRPC itself, from a proxy or from
# another server, and never has a meaning of this project. With these codes, gRPC reports that no answer came.
NOTHING_ANSWERED = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
# gRPC's own text for a call above the server's limit of open calls. A message that is too large has the same code.
TOO_MANY_CALLS = "concurrent rpc limit"

# A status travels as metadata, and peers refuse metadata of more than 8 KiB (gRPC's soft limit): the caller would then see a
# broken stream instead of the reason of the refusal. A fact may repeat a long text that the caller sent, so long facts and long
# messages are cut.
CUT = "…"
MAX_FACTS_BYTES = 3072  # JSON bytes of all facts together; on the wire they are base64, which is a third longer
MAX_MESSAGE_BYTES = 700  # UTF-8 bytes; it travels twice, once with 3 characters for each byte that is not ASCII


def to_status(error: e.PluralError) -> Any:
    """Returns the gRPC status of an error, in the form that grpc's abort_with_status takes.

    The status carries the error's facts (the values that describe the error). Long facts and a long message are cut, so that
    the status fits into gRPC's limit for metadata.
    """
    fact_values = error.facts
    limit_bytes = MAX_FACTS_BYTES // max(1, len(fact_values))
    facts = {name: _json(value, limit_bytes) for name, value in fact_values.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    detail = any_pb2.Any()
    detail.Pack(info)
    code = getattr(code_pb2, CODES[type(error)].name)
    return rpc_status.to_status(
        status_pb2.Status(code=code, message=_cut(str(error), MAX_MESSAGE_BYTES), details=[detail])
    )


def _json(value: object, limit_bytes: int) -> str:
    """Returns one value of an error as JSON. A text is cut until its JSON has at most `limit_bytes` bytes."""
    while len(encoded := json.dumps(value)) > limit_bytes and isinstance(value, str):
        value = _cut(value, min(limit_bytes, len(value.encode(errors="replace")) * limit_bytes // len(encoded)))
    return encoded


def _cut(text: str, limit_bytes: int) -> str:
    """Returns a text unchanged if its UTF-8 has at most `limit_bytes` bytes, otherwise the text's beginning and an ellipsis."""
    raw = text.encode(errors="replace")
    return (
        raw.decode()
        if len(raw) <= limit_bytes
        else raw[: limit_bytes - len(CUT.encode())].decode(errors="ignore") + CUT
    )


def _typed_error(call: grpc.Call) -> e.PluralError | None:
    """Returns the typed error that the status of a failed call carries.

    Returns None if the status carries no error of the tree, or an error that this release does not know or cannot read.
    """
    try:
        status = rpc_status.from_call(call)
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            leaf = e.leaves().get(info.reason) if detail.Unpack(info) and info.domain == DOMAIN else None
            if leaf is not None:
                field_names = e.fields_of(leaf)
                error = leaf(**{name: _fact(text) for name, text in info.metadata.items() if name in field_names})
                str(error)  # raises if a fact has a type that does not fit the message of this release
                return error
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError, DecodeError):
        return None
    return None


def _fact(text: str) -> object:
    """Returns one fact of an error from its JSON. A text is made printable, because the other side chose it."""
    return printable_values(json.loads(text))


def from_rpc_error(error: grpc.RpcError, address: str) -> e.PluralError:
    """Returns the typed error for a failed RPC. address: the coordinator's address, for the error's text.

    If the status carries no typed error of this release, the result is a subclass of NoAnswer: Unreachable if nothing answered,
    Busy if the server has too many open calls, otherwise ForeignAnswer with the status code.
    """
    call = typing.cast(grpc.Call, error)  # grpc raises its calls
    code: Callable[[], grpc.StatusCode] = call.code
    if (typed_error := _typed_error(call)) is not None:
        if isinstance(typed_error, e.NoAnswer):
            typed_error.address = address  # the server may have sent any text
        return typed_error
    details = printable(call.details() or "", lines=True)
    if code() is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_MANY_CALLS in details.lower():
        return e.Busy(address=address, problem=details)
    if code() in NOTHING_ANSWERED:
        return e.Unreachable(address=address, problem=details or code().name)
    return e.ForeignAnswer(address=address, code=code().name, problem=details or "no text")
