"""Counts the questions that members of a run have in common, from salted digests. Nothing is stored: a restart begins anew."""

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.words.ids import ClientId, RunId

KEPT_RUNS = 8
KEPT_MEMBERS = 256  # of one run, 32 KiB each; the counts say how many members they are about

Digests = NDArray[np.uint64]  # (D,), ascending


class QuestionCounts:
    """The digests of each run's members, as each member has sent them last."""

    def __init__(self) -> None:
        self._of_run: dict[RunId, dict[ClientId, Digests]] = {}  # the run that was compared last comes last

    def compare(self, run: RunId, client: ClientId, digests: Digests) -> tuple[int, int]:
        """Keeps a member's digests. Returns the number of other members, and how many of the digests any of them has."""
        members = self._of_run.pop(run, {})
        others = [own for name, own in members.items() if name != client]
        is_shared = np.zeros(len(digests), bool)
        for own in others:
            at = np.searchsorted(own, digests)
            is_shared |= np.append(own, np.uint64(0))[at] == digests if len(own) else False
        members.pop(client, None)
        members[client] = digests
        for oldest in list(members)[:-KEPT_MEMBERS]:
            members.pop(oldest)
        self._of_run[run] = members
        for earliest in list(self._of_run)[:-KEPT_RUNS]:
            self._of_run.pop(earliest)
        return len(others), int(is_shared.sum())
