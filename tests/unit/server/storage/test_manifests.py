"""Records and chunk lists of model versions are read once."""

from pathlib import Path

import pytest
from support.memory_coordinator import Hooks, MemoryCoordinator

from pluralllm.common.errors.tree import NotFound
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.server.storage.manifests import KEPT


async def test_a_version_is_read_from_the_store_once_whoever_asks(tmp_path: Path) -> None:
    place, hooks = MemoryCoordinator(tmp_path), Hooks()
    run = await place.new_run()
    place.before = hooks
    first = await place.parts.models.manifest(run.id, ModelVersion(0))
    assert await place.parts.models.manifest(run.id, ModelVersion(0)) == first
    assert await place.parts.models.record(run.id, ModelVersion(0)) == first[0] == run.newest
    assert [operation for operation, _ in hooks.calls].count("store.version") == 1


async def test_a_version_that_does_not_exist_yet_is_asked_for_again(tmp_path: Path) -> None:
    place, hooks = MemoryCoordinator(tmp_path), Hooks()
    run = await place.new_run()
    place.before = hooks
    for _ in range(2):
        with pytest.raises(NotFound):
            await place.parts.models.record(run.id, ModelVersion(1))
    assert [operation for operation, _ in hooks.calls] == ["store.version"] * 2


async def test_some_records_are_kept_and_not_all(tmp_path: Path) -> None:
    place = MemoryCoordinator(tmp_path)
    for number in range(KEPT + 1):
        run = await place.new_run(f"r{number}")
        await place.parts.models.record(run.id, ModelVersion(0))
    hooks = place.before = Hooks()
    await place.parts.models.record(RunId("r1"), ModelVersion(0))
    assert hooks.calls == []
    await place.parts.models.record(RunId("r0"), ModelVersion(0))
    assert [operation for operation, _ in hooks.calls] == ["store.version"]
