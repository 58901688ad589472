"""Counts the questions that members of a run have in common, from salted digests. Nothing is stored: a restart begins anew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.question_digests import MAX_DIGESTS

KEPT_RUNS = 8
KEPT_MEMBERS = 256  # of one run, 32 KiB each; the counts say how many members they are about

Digests = NDArray[np.uint64]  # (D,), strictly ascending


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers that a member learns."""

    members: int  # other members that have sent digests
    shared: int  # own digests that any of them has
    compared: int  # own digests that each of them would have sent, if it had the question


class QuestionCounts:
    """The digests of each run's members. The first ones of a member count: with others it could ask about single questions."""

    def __init__(self) -> None:
        self._of_run: dict[RunId, dict[ClientId, Digests]] = {}  # the run that was compared last comes last

    def compare(self, run: RunId, client: ClientId, digests: Digests) -> Counts:
        """Keeps a member's digests if they are its first ones of the run, and counts those that others have, too."""
        members = self._of_run.pop(run, {})
        self._of_run[run] = members
        own = members.setdefault(client, digests)
        for oldest in list(members)[:-KEPT_MEMBERS]:
            members.pop(oldest)
        for earliest in list(self._of_run)[:-KEPT_RUNS]:
            self._of_run.pop(earliest)
        others = [theirs for name, theirs in members.items() if name != client]
        for theirs in others:
            if len(theirs) == MAX_DIGESTS:  # a full list ends early: it says nothing of larger digests
                own = own[own <= theirs[-1]]
        is_shared = np.zeros(len(own), bool)
        for theirs in others:
            is_shared |= np.isin(own, theirs, assume_unique=True)
        return Counts(len(others), int(is_shared.sum()), len(own))
