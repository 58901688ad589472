"""Masked updates are taken with their members' statements only, in the form of a masked file, and without facts in plain text."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.memory_coordinator import MemoryCoordinator
from support.private_members import member_key, person
from support.private_round import NAMES, ONE, collecting

from pluralllm.common.errors.tree import InvalidArgument, PluralError, WrongLayout
from pluralllm.common.private_rounds.messages import UpdateStatement
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, manifest_of
from pluralllm.common.words.ids import Digest
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun

ANN = NAMES[0]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[MemoryCoordinator]:
    process = MemoryCoordinator(tmp_path)
    yield process
    await process.stop()


def masked(folder: Path, run: LiveRun, *, spoilt: bool = False) -> Path:
    """Returns a file of the masked form; if it is spoilt, one whose header names another type."""
    path, form = folder / "masked", run.update_format
    header = form.header.replace(b"U32", b"I32", 1) if spoilt else form.header
    path.write_bytes(header + bytes(form.size_bytes - len(form.header)))
    return path


async def begin(place: MemoryCoordinator, run: LiveRun, manifest: Manifest, **changes: Any) -> Any:
    facts: dict[str, Any] = {"examples": 1, "metrics": {}} | changes
    return await place.intake.begin(
        run.task_name(ANN), run.record.spec_sha256, run.base.digest, manifest, facts["examples"], facts["metrics"]
    )


def chunks(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]


async def commit(place: MemoryCoordinator, run: LiveRun, path: Path, signer: str = "ann") -> Any:
    """Sends a file as ann's update, with the signature of a member."""
    manifest, rounds = manifest_of(path), place.parts.open_rounds
    await begin(place, run, manifest)
    for index, chunk in enumerate(chunks(path)):
        await place.intake.put(run.task_name(ANN), manifest.digest, index, chunk)
    dealers_sha256 = rounds.fixed(run, await rounds.of(run)).dealers_sha256
    statement = UpdateStatement("ann", bytes.fromhex(manifest.digest)).signed(member_key(signer), dealers_sha256)
    return await place.intake.commit(run.task_name(ANN), manifest.digest, statement.signature)


async def test_a_masked_update_is_on_record_with_its_statement(place: MemoryCoordinator, tmp_path: Path) -> None:
    run = await collecting(place)
    path = masked(tmp_path, run)
    row = await commit(place, run, path)
    assert row.receipt == ev.Receipt(ANN, Digest(manifest_of(path).digest), 1)
    assert run.state.receipts == (row.receipt,)
    assert list((await place.parts.open_rounds.of(run)).of(UpdateStatement, run.state.receipts)) == [ANN]
    (stored,) = await place.parts.store.round_messages(run.id, ONE, ev.RoundStep.UPDATE)
    assert UpdateStatement.from_json(stored.body).is_signed(
        person("ann").member.peer_key_der,
        place.parts.open_rounds.fixed(run, await place.parts.open_rounds.of(run)).dealers_sha256,
    )


@pytest.mark.parametrize(
    "facts", [{"examples": 2}, {"examples": 0}, {"metrics": {"loss": 0.5}}, {"metrics": {"base_distance": 0.1}}]
)
async def test_facts_in_plain_text_are_refused(
    place: MemoryCoordinator, tmp_path: Path, facts: dict[str, object]
) -> None:
    run = await collecting(place)
    with pytest.raises(InvalidArgument, match="in a private round examples is 1"):
        await begin(place, run, manifest_of(masked(tmp_path, run)), **facts)
    assert [(refused.client, refused.reason) for refused in run.state.refusals] == [("ann", "INVALID_ARGUMENT")]


@pytest.mark.parametrize(("signer", "spoilt", "refusal"), [("ben", False, InvalidArgument), ("ann", True, WrongLayout)])
async def test_another_members_signature_and_a_file_of_another_form_are_refused(
    place: MemoryCoordinator, tmp_path: Path, signer: str, spoilt: bool, refusal: type[PluralError]
) -> None:
    run = await collecting(place)
    with pytest.raises(refusal):
        await commit(place, run, masked(tmp_path, run, spoilt=spoilt), signer)
    assert run.state.receipts == ()
    assert not await place.parts.store.round_messages(run.id, ONE, ev.RoundStep.UPDATE)
