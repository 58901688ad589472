"""The next version's files, and which of a round's files is to blame when one cannot be read."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.coordinator_harness import small_spec

from pluralllm.common.errors.tree import BaseLost, Corrupt, UpdateLost
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.first_version import write_first_version
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.ids import ClientId, Digest, ModelVersion, RoundNumber, RunId
from pluralllm.server.aggregation.next_version import write_next
from pluralllm.server.rounds.events import Receipt
from pluralllm.server.storage.blobs import LocalBlobs

SPEC = small_spec()
CLIENTS = (ClientId("alice"), ClientId("bob"))


class ARound:
    """A base and the updates of two clients, as blobs."""

    def __init__(self, folder: Path) -> None:
        self.blobs = LocalBlobs(folder)
        self._folder = folder
        draft = folder / "draft"
        digest = write_first_version(draft, SPEC).digest
        asyncio.run(self.blobs.put(digest, draft))
        self.base = VersionRecord(
            RunId("r"), ModelVersion(0), RoundNumber(0), digest, SPEC.sha256(), "", (), created_s=0.0
        )
        self.receipts = [Receipt(client, self._update(number + 1), 10) for number, client in enumerate(CLIENTS)]

    def _update(self, value: int) -> Digest:
        layout = layout_for(SPEC)
        draft = self._folder / "draft"
        write_weights(draft, layout, [np.full(layout.values, value / 1000, np.float32)])
        digest = manifest_of(draft).digest
        asyncio.run(self.blobs.put(digest, draft))
        return digest

    def file(self, digest: Digest) -> Path:
        return self._folder / digest[:2] / digest

    def average(self) -> None:
        asyncio.run(write_next(self.blobs, SPEC, self.base, self.receipts, (), (), self._folder / "next"))


@pytest.fixture
def whole(tmp_path: Path) -> ARound:
    return ARound(tmp_path)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def test_a_base_whose_record_has_another_number_of_moments_is_lost(whole: ARound) -> None:
    whole.base = replace(whole.base, moments=(Digest("m"),))
    with pytest.raises(BaseLost, match="its record has 1 moments, expected 0"):
        whole.average()


SPOIL: list[Callable[[Path], object]] = [flip, cut_short, Path.unlink]


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_base_that_cannot_be_read_is_named_as_the_base(whole: ARound, spoil: Callable[[Path], object]) -> None:
    spoil(whole.file(whole.base.digest))
    with pytest.raises(BaseLost) as lost:
        whole.average()
    assert lost.value.digest == whole.base.digest


@pytest.mark.parametrize("spoil", SPOIL)
def test_an_update_that_cannot_be_read_is_named_as_the_update(whole: ARound, spoil: Callable[[Path], object]) -> None:
    spoil(whole.file(whole.receipts[1].digest))
    with pytest.raises(UpdateLost) as lost:
        whole.average()
    assert lost.value.digest == whole.receipts[1].digest


def test_a_lost_update_does_not_blame_the_base_though_a_text_names_both(whole: ARound) -> None:
    class Talkative(LocalBlobs):
        async def path(self, digest: Digest) -> Path:
            if digest == whole.receipts[0].digest:
                raise Corrupt(what=f"blob {digest}, which follows {whole.base.digest}", expected=digest, got="none")
            return await super().path(digest)

    folder = whole.file(whole.base.digest).parents[1]
    with pytest.raises(UpdateLost):
        asyncio.run(write_next(Talkative(folder), SPEC, whole.base, whole.receipts, (), (), folder / "next"))


def test_a_file_that_is_whole_when_it_is_read_again_blames_nobody(whole: ARound) -> None:
    class Flickering(LocalBlobs):
        reads = 0

        async def path(self, digest: Digest) -> Path:
            self.reads += 1
            if self.reads == 1:
                raise Corrupt(what="blob", expected=digest, got="none")
            return await super().path(digest)

    folder = whole.file(whole.base.digest).parents[1]
    with pytest.raises(Corrupt):
        asyncio.run(write_next(Flickering(folder), SPEC, whole.base, whole.receipts, (), (), folder / "next"))
