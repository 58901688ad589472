"""A coordinator that forges its history: no forged model is used, and nothing of it is downloaded."""

import asyncio
import random
from pathlib import Path

import pytest
from hostile.evil_records import (
    CLIENT,
    FORGERIES,
    RUN,
    SPEC,
    VERIFIER,
    Presented,
    chain_of,
    honest,
    own_update,
    train_task,
)

from pluralllm.client.daemon.models import Models
from pluralllm.client.keeping.history import History
from pluralllm.common.errors.tree import HistoryDiverged, PluralError, RecordInvalid
from pluralllm.common.words.ids import Digest, ModelVersion, RunId

TRIES = 1_000
LENGTH = 6


class ScriptedTransport:
    """A transport whose records come from the script, and which counts downloads."""

    def __init__(self, shown: Presented) -> None:
        self.version_records = shown.fetch
        self.downloads = 0

    async def fetch_model(
        self, run: RunId, version: ModelVersion, digest: Digest, size_bytes: int, target: Path
    ) -> None:
        self.downloads += 1
        await asyncio.to_thread(target.write_bytes, b"model")


async def use(folder: Path, history: History, shown: Presented) -> PluralError | None:
    """Lets a client fetch the model of a task. Returns the error with which the client refused; None if it took the model."""
    transport = ScriptedTransport(shown)
    models = Models(folder / "models", history, transport)  # type: ignore[arg-type]
    try:
        await models.fetch(shown.task, 5, SPEC)
    except (RecordInvalid, HistoryDiverged) as error:
        assert transport.downloads == 0, "a forged model was downloaded"
        return error
    assert transport.downloads == 1
    return None


async def client_after(folder: Path, versions: int) -> History:
    """Returns the history of a client that has taken part up to this version, and has sent an update in each round."""
    history = History(folder / "history", CLIENT, VERIFIER)
    for number in range(1, LENGTH + 1):
        with history.handing_in(train_task(chain_of(number)[number - 1]), *own_update(number)):
            pass
    if versions >= 0:
        assert await use(folder, history, honest(versions)) is None
    return history


async def test_none_of_a_thousand_forged_models_is_accepted(tmp_path: Path) -> None:
    rng, accepted, kinds = random.Random(7), [], sorted(FORGERIES)
    seen_before = [-1, 0, LENGTH // 2]  # a client that joins late, one at the start, one in the middle
    histories = [await client_after(tmp_path / str(seen), seen) for seen in seen_before]
    before = [history.seen(RUN) for history in histories]
    for attempt in range(TRIES):
        kind = kinds[attempt % len(kinds)]
        which = rng.randrange(kind == "other base for one client", len(histories))
        shown = FORGERIES[kind](rng.randrange(max(seen_before) + 1, LENGTH + 1), seen_before[which], rng)
        if await use(tmp_path / str(seen_before[which]), histories[which], shown) is None:
            accepted.append((kind, which, shown))
    assert [kind for kind, _, _ in accepted] == []
    assert [history.seen(RUN) for history in histories] == before, "a refused record was kept"


@pytest.mark.parametrize("seen", [-1, 0, 3, LENGTH - 1, LENGTH])
async def test_an_honest_coordinator_is_followed_from_any_version(tmp_path: Path, seen: int) -> None:
    history = await client_after(tmp_path, seen)
    shown = honest(LENGTH)
    assert await use(tmp_path, history, shown) is None
    assert sorted(history.seen(RUN).versions) == list(range(LENGTH + 1))
    assert history.updates_of(RUN, ModelVersion(LENGTH)) == 4
    first = shown.calls[0][0] if shown.calls else LENGTH + 1
    assert first == seen + 1, "only the records after the newest that it has checked"


async def test_a_version_that_was_withheld_in_a_round_is_noticed_when_it_is_presented_later(tmp_path: Path) -> None:
    """The coordinator lets one client train from version 2 in round 4, while round 3 had made version 3 for the others."""
    history, records = History(tmp_path / "history", CLIENT, VERIFIER), chain_of(LENGTH)
    old = train_task(records[2], round_number=4)
    assert await use(tmp_path, history, Presented(old, records)) is None, "nothing to compare with yet"
    with history.handing_in(old, *own_update(4)):
        pass
    refusal = await use(tmp_path, history, honest(LENGTH))
    assert isinstance(refusal, HistoryDiverged)
    assert "withheld" in str(refusal)
