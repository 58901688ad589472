"""The errors that end a command which waits for a run: no later try can mend them. Every other error may pass."""

from pluralllm.client.joining.diagnosis import FINAL
from pluralllm.common.errors.membership import IdentityMismatch, RoleForbids, RunNotShared
from pluralllm.common.errors.tree import InvalidArgument, NotFound, OverLimit, PluralError, Unidentified

ENDS: tuple[type[PluralError], ...] = (
    IdentityMismatch,
    InvalidArgument,
    NotFound,
    OverLimit,
    RoleForbids,
    RunNotShared,
    Unidentified,
    *FINAL,
)
