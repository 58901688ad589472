"""The files of a run of sums: a solver's state beside each version of the first stage, and the same bits when made again."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.small_survey import SUMS, small_spec

from pluralllm.common.errors.tree import BaseLost, UpdateLost
from pluralllm.common.predictor.architecture import update_layout, version_layout
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.sums.solver import Solver, members_digest, next_values, summed
from pluralllm.common.sums.solver_files import read_solver, solver_layout, state_files, write_solver
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.layout import read_layout, write_weights
from pluralllm.common.weights.stored_weights import StoredWeights, read_values
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server.aggregation.next_version import Draft, write_next
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.storage.blobs import LocalBlobs

SPEC = small_spec(SUMS)
CLIENTS = (ClientId("alice"), ClientId("bob"))
FEATURES = 24


class Chain:
    """The versions of a run as blobs, with made-up answers."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.folder = LocalBlobs(folder), folder
        draft = folder / "draft"
        digest = write_first_version(draft, SPEC).digest
        asyncio.run(self.blobs.put(digest, draft))
        self.newest = VersionRecord(
            RunId("r"), ModelVersion(0), RoundNumber(0), digest, SPEC.sha256(), "", (), created_s=0.0
        )
        self.receipts: list[Receipt] = []

    def answer(self) -> None:
        """Stores an answer of each client to the newest version."""
        layout, version = update_layout(SPEC, self.newest.version), self.newest.version
        self.receipts = []
        for number, client in enumerate(CLIENTS):
            draft, rng = self.folder / "draft", np.random.default_rng([version, number])
            digest = write_weights(draft, layout, [rng.normal(size=layout.values).astype(np.float32)]).digest
            asyncio.run(self.blobs.put(digest, draft))
            self.receipts.append(Receipt(client, digest, 10 + number))

    def make(self) -> tuple[Draft, ...]:
        arguments = (self.blobs, SPEC, self.newest, self.receipts, (), (), self.folder / "next")
        return asyncio.run(write_next(*arguments)).files

    def advance(self) -> tuple[Draft, ...]:
        """Makes the next version and its record."""
        self.answer()
        drafts = self.make()
        digests = tuple(draft.manifest.digest for draft in drafts)
        for draft in drafts:
            asyncio.run(self.blobs.put(draft.manifest.digest, draft.path))
        updates = tuple((receipt.client, receipt.digest, receipt.examples) for receipt in self.receipts)
        version, number = ModelVersion(self.newest.version + 1), RoundNumber(self.newest.round + 1)
        self.newest = VersionRecord(
            RunId("r"), version, number, digests[0], SPEC.sha256(), "", updates, 0.0, digests[1:]
        )
        return drafts

    def file(self, digest: Digest) -> Path:
        return self.folder / digest[:2] / digest

    def stored(self, digest: Digest) -> StoredWeights:
        return StoredWeights(self.file(digest), digest)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def test_each_version_has_its_layout_and_those_of_the_first_stage_have_a_state(chain: Chain) -> None:
    for version in range(1, SPEC.rounds + 1):
        drafts = chain.advance()
        assert read_layout(chain.file(chain.newest.digest)) == version_layout(SPEC, version)
        assert len(drafts) == 1 + (version < 6), "the second stage begins with version 6"
        assert state_files(SPEC, version) == len(chain.newest.moments)
    assert state_files(SPEC, 0) == 0


def test_a_state_is_that_of_the_solver(chain: Chain) -> None:
    solver, values = None, read_values(chain.stored(chain.newest.digest))
    for _ in range(3):
        before = chain.newest
        chain.advance()
        answers = [read_values(chain.stored(receipt.digest)) for receipt in chain.receipts]
        members = [(receipt.client, receipt.examples) for receipt in chain.receipts]
        values, solver = next_values(SPEC, before.version, values, summed(answers, members, FEATURES, 99), solver)
        assert np.array_equal(read_values(chain.stored(chain.newest.digest)), values)
        kept = read_solver(chain.stored(chain.newest.moments[0]), FEATURES)
        assert solver is not None
        assert np.array_equal(kept.residual, solver.residual)
        assert np.array_equal(kept.direction, solver.direction)
        assert (kept.step, kept.members) == (solver.step, members_digest(members))


def test_a_written_state_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    residual, direction = (rng.normal(size=FEATURES).astype(np.float32) for _ in range(2))
    manifest = write_solver(tmp_path / "state", Solver(residual, direction, 0.25, bytes(range(100, 132))))
    kept = read_solver(StoredWeights(tmp_path / "state", manifest.digest), FEATURES)
    assert read_layout(tmp_path / "state") == solver_layout(FEATURES)
    assert (kept.step, kept.members) == (0.25, bytes(range(100, 132)))
    assert np.array_equal(kept.residual, residual)
    assert np.array_equal(kept.direction, direction)


@pytest.mark.parametrize("versions", [1, 4, 7])
def test_a_version_made_again_has_the_same_bits(chain: Chain, versions: int) -> None:
    for _ in range(versions):
        chain.advance()
    chain.answer()
    first = [draft.manifest.digest for draft in chain.make()]
    assert [draft.manifest.digest for draft in chain.make()] == first


def test_a_lost_state_is_named_as_the_base(chain: Chain) -> None:
    chain.advance()
    chain.answer()
    (state,) = chain.newest.moments
    chain.file(state).write_bytes(b"short")
    with pytest.raises(BaseLost) as lost:
        chain.make()
    assert lost.value.digest == state
    assert not list(chain.folder.glob("next*"))


def test_a_record_without_the_state_is_refused_as_a_lost_base(chain: Chain) -> None:
    chain.advance()
    chain.answer()
    record = chain.newest
    chain.newest = VersionRecord(
        record.run, record.version, record.round, record.digest, record.spec_sha256, "", (), created_s=0.0
    )
    with pytest.raises(BaseLost, match="its record has 0 moments, expected 1"):
        chain.make()


def test_a_lost_answer_is_named_and_no_file_is_left(chain: Chain) -> None:
    chain.advance()
    chain.answer()
    chain.file(chain.receipts[1].digest).unlink()
    with pytest.raises(UpdateLost) as lost:
        chain.make()
    assert lost.value.digest == chain.receipts[1].digest
    assert not list(chain.folder.glob("next*"))


def test_an_answer_whose_bytes_have_changed_is_not_used(chain: Chain) -> None:
    chain.answer()
    file = chain.file(chain.receipts[0].digest)
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UpdateLost):
        chain.make()
    assert not list(chain.folder.glob("next*"))
