"""A hostile administrator sends run specs that cost their reader more than their sender: they are refused, and nobody waits."""

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from support.coordinator_harness import DEADLINE_S, serving, small_spec

from pluralllm.common.errors.grpc_status import from_rpc_error
from pluralllm.common.errors.tree import InvalidSpec, SpecMismatch
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.embedding import MAX_PROBES
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import MAX_GROUPS, MAX_SPEC_BYTES, RunSpec, parse_spec
from pluralllm.server.runs import coordinator, recovery
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.store import RunRecord
from pluralllm.v1 import operations_pb2 as pb

LONGEST_PAUSE_S = 0.5  # of the coordinator's loop; the bombs stopped it for seconds
Changes = dict[str, dict[str, Any]]


def spec_json(changes: Changes) -> bytes:
    values: dict[str, Any] = json.loads(small_spec().canonical_json())
    for table, keys in changes.items():
        values[table] = {**values[table], **keys}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()


def names(count: int, form: str = "group {}") -> list[str]:
    return [form.format(number) for number in range(count)]


def template(text: str) -> bytes:
    return spec_json({"embedding": {"templates": ["{option}", text]}})


PLAIN_NAMES = "may use {question}, {options}, {letter}, {option} only, by their plain names"
BOMBS: dict[str, tuple[bytes, str]] = {
    "a width": (template("{question:>1000000000}"), PLAIN_NAMES),
    "a precision": (template("{question:.9}"), PLAIN_NAMES),
    "a width that is a field": (template("{question:{options}}"), PLAIN_NAMES),
    "a conversion": (template("{question!r}"), PLAIN_NAMES),
    "an attribute": (template("{question.__class__.__mro__}"), PLAIN_NAMES),
    "an index": (template("{question[0]}"), PLAIN_NAMES),
    "a position": (template("{}"), PLAIN_NAMES),
    "another name": (template("{self}"), PLAIN_NAMES),
    "an open brace": (template("{question"), PLAIN_NAMES),
    "a field many times": (template("{options}" * 22), "uses {options} 22 times, at most 2 are allowed"),
    "too many groups": (
        spec_json({"groups": {"train": names(MAX_GROUPS + 1)}}),
        f"at most {MAX_GROUPS} items",
    ),
    "too many groups in two lists": (
        spec_json({"groups": {"train": names(MAX_GROUPS), "held_out": ["one more"]}}),
        f"names {MAX_GROUPS + 1} groups, at most {MAX_GROUPS} are allowed",
    ),
    "one group many times": (
        spec_json({"groups": {"train": names(500), "held_out": names(500)}}),
        "a group is named once, as train or held_out; twice: group 0, group 1",
    ),
    "groups that take minutes to compare": (
        spec_json({"groups": {"train": names(20_000, "{}")}}),
        f"at most {MAX_GROUPS} items",
    ),
    "too many probes": (
        spec_json({"embedding": {"probes": [{"text": "a", "vector": [1] * 4}] * (MAX_PROBES + 1)}}),
        f"at most {MAX_PROBES} items",
    ),
    "a text that is too long": (
        spec_json({"embedding": {"model": "m" * MAX_SPEC_BYTES}}),
        f"bytes, at most {MAX_SPEC_BYTES} are allowed",
    ),
    "a spec that grows when it is stored": (
        spec_json({"groups": {"train": names(MAX_GROUPS, "é" * 60 + "{}")}}),
        f"bytes as canonical JSON, at most {MAX_SPEC_BYTES} are allowed",
    ),
    "nesting": (b'{"title":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
    "a number without end": (b'{"seed":' + b"1" * 200_000 + b"}", "Invalid JSON"),
    "keys without end": (
        b"{" + b",".join(b'"k%d":1' % number for number in range(20_000)) + b"}",
        "more problems",
    ),
    "a key without end": (b'{"' + b"k" * 200_000 + b'":1}', "unknown key; check its spelling"),
}


@contextlib.asynccontextmanager
async def pauses() -> AsyncIterator[Callable[[], float]]:
    """Yields a function that returns the longest time in seconds for which the event loop answered nobody."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.monotonic() - before_s)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    try:
        yield lambda: longest_s
    finally:
        watching.cancel()


@pytest.mark.parametrize("name", BOMBS)
async def test_a_spec_bomb_is_refused_with_a_short_reason_and_the_loop_goes_on(tmp_path: Path, name: str) -> None:
    raw, reason = BOMBS[name]
    async with serving(tmp_path / "state") as served, pauses() as longest_s:
        with pytest.raises(InvalidSpec) as refusal:
            await create(served.operations, "bomb", raw)
        assert reason in refusal.value.problems
        assert len(str(refusal.value)) < 8_000
        with pytest.raises(grpc.aio.AioRpcError):
            await served.run("bomb")
        assert longest_s() < LONGEST_PAUSE_S


async def create(operations: Any, run: str, raw: bytes) -> None:
    try:
        await operations.CreateRun(pb.CreateRunRequest(run_id=run, spec_json=raw), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, "the coordinator") from error


async def test_the_largest_spec_is_accepted_and_read_again_after_a_restart(tmp_path: Path) -> None:
    largest = small_spec(groups={"train": names(MAX_GROUPS)}, round={"target_clients": MAX_GROUPS})
    async with serving(tmp_path / "state") as served:
        await create(served.operations, "largest", largest.canonical_json())
    async with serving(tmp_path / "state") as served:
        assert (await served.run("largest")).spec_sha256 == largest.sha256()


async def test_no_spec_is_read_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(text: bytes, file: str) -> RunSpec:
        threads.append(threading.get_ident())
        return parse_spec(text, file)

    for module in (coordinator, recovery):
        monkeypatch.setattr(module, "parse_spec", noting)
    for _ in range(2):  # as it is sent, and as it is stored
        async with serving(tmp_path / "state") as served:
            await served.create("r", small_spec(), start=False)
    assert len(threads) == 3  # sent, read at the second start, sent again
    assert threading.get_ident() not in threads


def record_of(run: str, raw: bytes) -> tuple[RunRecord, VersionRecord]:
    sha256 = Digest(hashlib.sha256(raw).hexdigest())
    first = VersionRecord(RunId(run), ModelVersion(0), RoundNumber(0), Digest("d"), sha256, "", (), 0.0)
    return RunRecord(RunId(run), raw, sha256, 0.0), first


@pytest.mark.parametrize("name", ["a width", "groups that take minutes to compare"])
async def test_a_bomb_that_an_earlier_release_stored_is_left_out_and_stops_no_other_run(
    tmp_path: Path, name: str
) -> None:
    async with serving(tmp_path / "state") as served:
        await served.create("before", small_spec())
    database = f"sqlite+aiosqlite:///{next((tmp_path / 'state').glob('*.sqlite3'))}"
    store = await open_store(database)
    await store.create_run(*record_of("bomb", BOMBS[name][0]))
    await store.create_run(*record_of("cut", b"{"))
    await store.close()
    with capture_logs() as logs:
        async with serving(tmp_path / "state") as served, pauses() as longest_s:
            assert (await served.run("before")).name == "runs/before"
            with pytest.raises(SpecMismatch):
                await create(served.operations, "bomb", small_spec().canonical_json())
            assert longest_s() < LONGEST_PAUSE_S
    assert [line["run"] for line in logs if line["event"] == "run.unreadable"] == ["bomb", "cut"]
