"""Versions that are made of masked terms: the bits of the plain solver on the rounded sum, whoever comes or goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.small_survey import SUMS, small_spec

from pluralllm.common.errors.private_rounds import SumImplausible
from pluralllm.common.errors.tree import Corrupt
from pluralllm.common.predictor.architecture import update_layout, version_layout
from pluralllm.common.private_rounds.masks import add_masks
from pluralllm.common.private_rounds.ring import MemberTail, clipping_of, quantised
from pluralllm.common.private_rounds.sum_files import PrivateSum, ring_of
from pluralllm.common.sums.solver import RIDGE, SummedAnswers, first_step, members_digest, next_values
from pluralllm.common.sums.solver_files import read_solver, state_files, write_next_private_sum, write_solver
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.weights.stored_weights import StoredWeights, read_values
from pluralllm.common.weights.update_format import update_format, write_masked
from pluralllm.common.words.spec import RunSpec

FEATURES, BOUND, MOST = 24, 100.0, 50
SPEC: RunSpec = small_spec(
    {
        **SUMS,
        "round": {"min_clients": 3, "target_clients": 4},
        "aggregation": {"weighting": "uniform", "max_examples": MOST, "max_delta_norm": BOUND},
        "private_rounds": {},
    }
)
KEY = (b"k" * 32, 1)  # of the streams that are left in the sum
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Term:
    """A member's term, its number of questions, and its numbers without masks."""

    values: Floats
    questions: int = 40

    def numbers(self, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        ring = ring_of(SPEC, 4)
        tail = MemberTail(self.questions, False, 1, MOST, not_zero=bool(self.values.any())).words()
        rng = np.random.default_rng(seed)
        return tail, quantised(self.values, clipping_of(self.values, ring), self.questions, ring, rng)


def terms_of(version: int, names: str = "abc", questions: int = 40) -> dict[str, Term]:
    size = update_layout(SPEC, version).values
    return {
        n: Term(np.random.default_rng([version, ord(n)]).normal(size=size).astype(np.float32), questions) for n in names
    }


def private_sum(folder: Path, version: int, terms: Mapping[str, Term], lie: int = 1) -> PrivateSum:
    """Returns the sum of terms. A stream that only the first term has is left in it. lie: factor of the first term's numbers."""
    form, stored = update_format(update_layout(SPEC, version), "ring32"), []
    for number, (name, term) in enumerate(terms.items()):
        tail, numbers = term.numbers(number)
        whole = np.concatenate([tail, numbers if number else numbers * np.uint32(lie)])
        if number == 0:
            add_masks(whole, 0, [KEY])
        path = folder / f"{name}.masked"
        stored.append(StoredWeights(path, write_masked(path, form, [whole]).digest))
    return PrivateSum(tuple(terms), stored, [(KEY[0], -1)], ring_of(SPEC, 4), MOST)


class Versions:
    """The newest version of a run, with the solver's state."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        first = np.zeros(FEATURES, np.float32)
        self.base = StoredWeights(folder / "0", write_weights(folder / "0", version_layout(SPEC, 0), [first]).digest)
        self.states: list[StoredWeights] = []

    def advance(self, terms: Mapping[str, Term]) -> tuple[Manifest, ...]:
        outs = [self.folder / f"{self.number + 1}", self.folder / f"{self.number + 1}.state"]
        private = private_sum(self.folder, self.number, terms)
        files, words = write_next_private_sum(SPEC, self.number, self.base, self.states, private, outs)
        assert words[:2] == (sum(term.questions for term in terms.values()), len(terms))
        self.number += 1
        self.base = StoredWeights(outs[0], files[0].digest)
        self.states = [StoredWeights(outs[1], one.digest) for one in files[1:]]
        assert len(self.states) == state_files(SPEC, self.number)
        return files


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path)


def answers_to(values: Floats) -> dict[str, Term]:
    """Returns terms of the second stage. The group of b has too few points."""
    projection = values[:-FEATURES].reshape(-1, FEATURES)
    own = {name: np.random.default_rng(ord(name)).normal(size=FEATURES) * (name != "b") for name in "abc"}
    return {name: Term(np.outer(projection @ v, v).astype(np.float32).ravel()) for name, v in own.items()}


def test_every_version_of_both_stages_has_the_bits_of_the_solver_on_the_rounded_sum(versions: Versions) -> None:
    values, solver, scale = read_values(versions.base), None, ring_of(SPEC, 4).scale
    for version in range(SPEC.rounds):
        in_first = values.size == FEATURES
        terms = terms_of(version) if in_first else answers_to(values)
        total = sum(t.numbers(n)[1].view(np.int32).astype(np.float64) for n, t in enumerate(terms.values())) / scale
        members = members_digest((name, 120) for name in terms)
        before, answers = values, SummedAnswers(np.asarray(total), 3 if in_first else 2, 120, members)
        values, solver = next_values(SPEC, version, values, answers, solver)
        versions.advance(terms)
        assert np.array_equal(read_values(versions.base), values)
        assert not np.array_equal(values, before)
    assert versions.number == 8


@pytest.mark.parametrize("change", ["gone", "joined", "other questions", "none"])
def test_directions_begin_anew_if_a_member_goes_or_joins_or_the_questions_change(
    versions: Versions, change: str
) -> None:
    versions.advance(terms_of(0))
    point = read_values(versions.base).astype(np.float64)
    later = {"gone": terms_of(1, "bc"), "joined": terms_of(1, "abcd"), "other questions": terms_of(1, questions=41)}
    terms = later.get(change, terms_of(1))
    versions.advance(terms)
    kept = read_solver(versions.states[0], FEATURES)
    residual = sum(term.values.astype(np.float64) for term in terms.values()) - RIDGE * point
    begins = np.allclose(kept.direction, residual, atol=1e-3)
    assert begins == (change != "none")
    if begins:
        questions = sum(term.questions for term in terms.values())
        assert kept.step == pytest.approx(first_step(questions))
        made = read_values(versions.base)
        assert np.allclose(made, point + kept.step * kept.direction.astype(np.float64), atol=1e-6), "it keeps the point"


def test_a_sum_longer_than_its_members_can_make_is_refused_and_leaves_no_file(versions: Versions) -> None:
    term = Term(np.full(FEATURES, 0.999 * BOUND / np.sqrt(FEATURES), np.float32))
    outs = [versions.folder / "1", versions.folder / "1.state"]
    lying = private_sum(versions.folder, 0, dict.fromkeys("abc", term), lie=4)
    with pytest.raises(
        SumImplausible, match=r"the norm of the mean is 199\.8, that of every honest update is at most 100"
    ):
        write_next_private_sum(SPEC, 0, versions.base, [], lying, outs)
    assert not any(out.exists() for out in outs)
    versions.advance(dict.fromkeys("abc", term))


def test_a_changed_byte_of_a_masked_term_or_of_the_state_is_found(versions: Versions) -> None:
    versions.advance(terms_of(0))
    private, outs = private_sum(versions.folder, 1, terms_of(1)), [versions.folder / "2", versions.folder / "2.state"]
    kept = read_solver(versions.states[0], FEATURES)
    write_solver(versions.states[0].path, type(kept)(kept.residual, kept.direction, 9.0, kept.members))
    with pytest.raises(Corrupt):
        write_next_private_sum(SPEC, 1, versions.base, versions.states, private, outs)
    write_solver(versions.states[0].path, kept)
    content = bytearray(private.updates[1].path.read_bytes())
    content[-1] ^= 1
    private.updates[1].path.write_bytes(content)
    with pytest.raises(Corrupt):
        write_next_private_sum(SPEC, 1, versions.base, versions.states, private, outs)
    assert not any(out.exists() for out in outs)
