"""Attack 20: whoever has all that the coordinator has of a private round, before the reveal, has no update and no secret of it.

Searched are the files of its state (database, masked updates), its objects in memory, its log, the events and the status that it
shows, and what `support-bundle` takes from its database. The control is the same search in a plain run.
"""

import asyncio
import gc
import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from private.evil_client import secrets_of
from private.evil_coordinator import CONFIRM, KEYS, REVEAL, SHARES, UPDATE
from private.test_canary import forms
from private.test_service import CLIP_NORM, MOST_WEIGHT, SPEC, Member, members_of, play, until_version
from structlog.testing import capture_logs
from support.coordinator_harness import DEADLINE_S, Served, delta, serving, small_spec, write_delta

from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.lines import ConfirmLine, KeysLine, SharesLine
from pluralllm.common.predictor.architecture import update_layout
from pluralllm.common.private_rounds.messages import Confirmation
from pluralllm.common.private_rounds.ring import Ring, clipping_of
from pluralllm.server.commands.support_bundle import read_database
from pluralllm.server.process.config import ServerConfig
from pluralllm.v1 import operations_pb2

PIECE = 64  # bytes of an update that are searched for, at several places
# Code, and what runs: in this process they lead to the clients, too.
CODE = (types.ModuleType, types.FunctionType, types.MethodType, types.FrameType, types.CoroutineType, type)
SKIPPED = (*CODE, asyncio.Task, asyncio.AbstractEventLoop)
Needles = dict[str, list[bytes]]  # what is searched for, by what it is
KINDS = ("update", "numbers", "rk", "m", "b", "e", "seed", "share", "pair")


def pieces(values: NDArray[Any]) -> list[bytes]:
    content = values.tobytes()
    return [content[start : start + PIECE] for start in range(0, len(content) - PIECE, len(content) // 7)]


def written(secrets: Iterable[bytes]) -> list[bytes]:
    """Returns the secrets themselves, and the texts by which they could be written."""
    return [form for secret in secrets for form in (secret, *(text.encode() for text in forms(secret)))]


def needles_of(members: Iterable[Member]) -> Needles:
    """Returns what nobody but its owner may have: all secrets of the members, their shares and keys, and their updates."""
    needles: Needles = {kind: [] for kind in KINDS}
    for member in members:
        client = member.client
        assert client is not None
        own, lines = secrets_of(client), client.notebook
        needles["rk"] += written([bytes.fromhex(lines.needed(KeysLine).secret)])
        needles["m"] += written([own.mask])
        needles["b"] += written([own.own])
        needles["e"] += written([own.box])
        needles["seed"] += written([own.training])
        shares = lines.needed(SharesLine)
        needles["share"] += written([bytes.fromhex(shares.own_self), bytes.fromhex(shares.own_mask)])
        assert member.view is not None
        holding = steps.hold(lines, client.me, member.view)
        needles["share"] += written([part for held in holding.held.values() for part in (held.own, held.mask)])
        needles["pair"] += written(holding.pair_keys.values())
        delta, ring = client.delta(), Ring(4, CLIP_NORM, MOST_WEIGHT)
        needles["update"] += pieces(delta)
        factor = clipping_of(delta, ring).factor * len(client.name) / MOST_WEIGHT * ring.scale
        needles["numbers"] += pieces(np.floor(delta.astype(np.float64) * factor).astype(np.int32))
    return needles


def objects_of(root: object) -> list[bytes]:
    """Returns the bytes and texts that an object leads to, but for code and what runs."""
    seen, waiting, texts = set[int](), [root], list[bytes]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, SKIPPED):
            continue
        seen.add(id(one))
        match one:
            case bytes() | bytearray():
                texts.append(bytes(one))
            case str():
                texts.append(one.encode(errors="replace"))
            case np.ndarray():
                texts.append(one.tobytes())
            case _:
                waiting += gc.get_referents(one)
    return texts


def files_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


async def everything(served: Served, state: Path, logs: Iterable[Any]) -> list[bytes]:
    """Returns all that the coordinator has and shows, as bytes."""
    files = await asyncio.to_thread(files_of, state)
    stream = served.operations.WatchRun(operations_pb2.WatchRunRequest(name="runs/r"), timeout=DEADLINE_S)
    shown = []
    async for message in stream:
        shown.append(message.SerializeToString())
        if message.event.sequence >= served.parts.runs.get("r").sequence:
            break
    stream.cancel()
    shown.append((await served.run("r")).SerializeToString())
    bundle = await read_database(ServerConfig(state_dir=state))
    told = [json.dumps(bundle, default=str).encode(), *(json.dumps(line, default=str).encode() for line in logs)]
    return [*files, *shown, *told, *objects_of(served.parts)]


def found_in(texts: Iterable[bytes], needles: Needles) -> set[str]:
    """Returns what is there: the kinds of which one needle is in one of the texts."""
    whole = b"\0".join(texts)
    return {kind for kind, some in needles.items() if any(needle in whole for needle in some)}


def confirmed_by(member: Member) -> bytes:
    assert member.client is not None
    return member.client.notebook.message(member.client.notebook.needed(ConfirmLine))


async def test_20_before_the_reveal_the_coordinator_has_no_secret_and_no_update_and_afterwards_the_agreed_ones(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    async with serving(state) as served:
        await served.create("r", SPEC)
        members = await members_of(served, tmp_path / "clients")
        with capture_logs() as logs:
            await play(members, KEYS, SHARES, UPDATE)
            await play(members[:3], CONFIRM)
            needles = needles_of(members)
            assert all(len(some) >= 4 for some in needles.values())
            texts = await everything(served, state, list(logs))
            in_memory = objects_of(served.parts)
            signature = Confirmation.from_json(confirmed_by(members[0])).signature
            assert any(signature in text for text in in_memory), "the control: what is in memory is searched"
            assert found_in(texts, needles) == set()
            await play(members[:3], REVEAL)
            await until_version(served, 1)
            assert found_in(await everything(served, state, list(logs)), needles) == {"b"}, "all were in the sum"


async def test_20_the_control_in_a_plain_run_the_same_search_finds_the_update(tmp_path: Path) -> None:
    state, spec = tmp_path / "state", small_spec()
    async with serving(state) as served:
        ann, ben = await served.client("ann"), await served.client("ben")
        await served.create("r", spec)
        for client in (ann, ben):
            await client.evaluate(await client.task())
        await ann.push(await ann.task(), tmp_path / "u", write_delta(tmp_path / "u", spec, 1))
        needles = {"update": pieces(delta(update_layout(spec, 0), 1))}
        assert found_in(await everything(served, state, []), needles) == {"update"}
