"""Digests that say which questions two members have in common, and only within one run."""

import hashlib
from dataclasses import replace

from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.question_digests import MAX_DIGESTS, question_digests
from pluralllm.common.words.questions import Question

RUN, SPEC = RunId("first"), Digest("a" * 64)
TEA = Question("Tea?", ("Yes", "No"), (0.5, 0.5))


def digests(*questions: Question, run: RunId = RUN, spec: Digest = SPEC) -> tuple[int, ...]:
    return question_digests(run, spec, questions)


def test_a_digest_is_what_the_protocol_says() -> None:
    expected = hashlib.sha256(f"questions/first/{SPEC}/{TEA.key}".encode()).digest()[:8]
    assert digests(TEA) == (int.from_bytes(expected, "big"),)


def test_answers_order_and_spelling_change_no_digest_and_another_run_or_spec_does() -> None:
    assert digests(TEA, Question("TEA?", ("no", "yes"), (0.1, 0.9))) == digests(TEA)
    others = [digests(TEA, run=RunId("second")), digests(TEA, spec=Digest("b" * 64)), digests(replace(TEA, text="Te?"))]
    assert digests(TEA) not in others


def test_all_members_leave_out_the_same_of_many() -> None:
    many = [replace(TEA, text=f"Question {number}?") for number in range(MAX_DIGESTS + 500)]
    everything, fewer = digests(*many), digests(*many[1:])
    assert len(everything) == MAX_DIGESTS
    assert list(everything) == sorted(set(everything))
    assert len(set(everything) - set(fewer)) <= 1
    assert everything[-1] < 2**64
