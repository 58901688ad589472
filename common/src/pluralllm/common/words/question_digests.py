"""Salted digests of questions, by which the members of a run learn how many of their questions other members have, too.

A digest says nothing about answers. Whoever knows a question and sees the digests of a member can tell whether the member has it;
a member that sends the digest of one question only learns whether any other member has it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.questions import Question

MAX_DIGESTS = 4_096  # of one member


@dataclass(frozen=True, slots=True)
class SharedQuestions:
    """How many of a member's questions others have."""

    members: int  # other members that have compared theirs
    shared: int  # questions of this member that at least one of them has
    compared: int  # questions of this member that were compared; of many questions only some


def question_digests(run: RunId, spec_sha256: Digest, questions: Iterable[Question]) -> tuple[int, ...]:
    """Returns the digests of questions for one run, ascending: 64 bits each, unsigned.

    Questions with one key have one digest. Run and spec are the salt, so the digests of two runs cannot be compared. Of more than
    MAX_DIGESTS only the smallest are returned: a comparison with another list is then one of the digests up to its last one.
    """
    salt = hashlib.sha256(f"questions/{run}/{spec_sha256}/".encode())
    digests = set()
    for key in {question.key for question in questions}:
        salted = salt.copy()
        salted.update(key.encode())
        digests.add(int.from_bytes(salted.digest()[:8], "big"))
    return tuple(sorted(digests)[:MAX_DIGESTS])
