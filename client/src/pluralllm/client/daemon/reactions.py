"""The lists that say what the daemon does about an error: which errors end it, and what becomes of the task under way.

An error that stands in no list may pass, so the daemon lives on and tries again. A new error therefore never ends a daemon, and
never excludes a partner from a run, unless somebody adds it here.
"""

from enum import Enum, auto

from pluralllm.client.joining.diagnosis import REJECTED
from pluralllm.common.errors import membership as m
from pluralllm.common.errors import private_rounds as p
from pluralllm.common.errors import tree as e

# The coordinator rejects this very certificate, or another daemon has taken over this identity. A repetition cannot mend it.
FINAL: tuple[type[e.PluralError], ...] = (e.SessionReplaced, *REJECTED)

# The errors that end the daemon: also the dates of the certificate, if a diagnosis finds that this machine's clock is right.
ENDS: tuple[type[e.PluralError], ...] = (*FINAL, m.CertificateExpired, m.CertificateNotYetValid)

# The coordinator needs the task's result no longer.
OVER: tuple[type[e.PluralError], ...] = (e.RoundClosed, e.LeaseLost)

# The private round has another step by now. The client asks the coordinator which one, and goes on from there.
ASK_AGAIN: tuple[type[e.PluralError], ...] = (p.WrongStep,)

# Refusals of the caller or of any call, not of the task. The loop that polls meets them too, and knows which are final.
OF_THE_CALLER: tuple[type[e.PluralError], ...] = (
    e.NoAnswer,
    e.StaleSession,
    e.ProtocolUnsupported,
    e.Unidentified,
    m.AwaitingApproval,
    m.CertificateExpired,
    m.CertificateNotYetValid,
    m.CertificateUnknown,
    m.IdentityMismatch,
    m.RoleForbids,
    m.TooManyAttempts,
    m.TooManyCalls,
    *FINAL,
)

# Another try on this machine fails in the same way until its owner changes something.
PERMANENT: tuple[type[e.PluralError], ...] = (
    e.AlreadyCommitted,
    e.AnswersProtected,
    e.ConsentNeeded,
    e.DigestMismatch,
    e.EmbeddingMismatch,
    e.EmbeddingUnusable,
    e.ExtraMissing,
    e.HistoryDiverged,
    e.InvalidArgument,
    e.InvalidConfig,
    e.InvalidData,
    e.InvalidSpec,
    e.LedgerBroken,
    e.LedgerDiverged,
    e.ModelUnavailable,
    e.NoisedFileLost,
    e.NoiseDemanded,
    e.NormTooLarge,
    e.NotFinite,
    e.NotReleased,
    e.OverLimit,
    e.PluginBroken,
    e.PluginMissing,
    e.PolicyForbids,
    e.RecordInvalid,
    e.SpecMismatch,
    e.TooFewQuestions,
    e.WrongBase,
    e.WrongLayout,
    m.RunNotShared,
    p.AggregateDiffers,
    p.PeerKeyDiffers,
    p.RosterDiverged,
    p.TermTooLong,
    p.TooFewKnown,
)


class Outcome(Enum):
    """The fate of a task whose work has ended with an error."""

    DROPPED = auto()  # nobody needs the result
    INTERRUPTED = auto()  # the task stays this client's, and is tried again; a finished result waits in the outbox
    FAILED = auto()  # the coordinator learns it, and may give the task again
    REFUSED = auto()  # the coordinator learns it, and gives this client no more tasks of the run before its next Hello


def outcome_of(error: Exception) -> Outcome:
    """Returns what becomes of a task whose work has ended with this error."""
    if isinstance(error, OVER):
        return Outcome.DROPPED
    if isinstance(error, (*ASK_AGAIN, *OF_THE_CALLER)):
        return Outcome.INTERRUPTED
    return Outcome.REFUSED if isinstance(error, PERMANENT) else Outcome.FAILED
