"""Opens a connection to the coordinator with a member's identity, and renews the member's certificate when it is due."""

import contextlib
import sys
import time
from collections.abc import Callable

from pluralllm.common.errors.tree import PluralError
from pluralllm.common.trust.identity import Identity
from pluralllm.operator.remote import Remote


def opened(identity: Identity, on_open: Callable[[Remote], None], on_failure: Callable[[PluralError], None]) -> Remote:
    """Returns an open connection. A certificate that is due for renewal is renewed first.

    on_open: gets each connection that is opened, the one with the old certificate, too. on_failure: gets the error of a renewal
    that failed; the connection then uses the old certificate.
    Raises InvalidArgument if the coordinator's address in the identity is invalid.
    """
    connection = Remote.of_member(identity)
    on_open(connection)
    now_s = time.time()
    if not identity.is_renewal_due(now_s) or now_s >= identity.facts.not_after_s:
        return connection
    try:
        with contextlib.redirect_stdout(sys.stderr):  # log lines: standard output is for the answer of the command
            renewed = connection.renewed()
    except PluralError as error:
        on_failure(error)
        return connection
    on_open(renewed)
    return renewed
