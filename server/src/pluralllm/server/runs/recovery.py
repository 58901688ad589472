"""Rebuilds the runs of a store at a start.

A run that has not ended is read with everything that its open round needs. An ended run never plays again, and a coordinator may
have thousands of them. Of an ended run, memory has the state and the newest model version; the store is asked for the rest when
somebody wants it. If the newest checkpoint of an ended run has seen the whole event log, a few queries read many such runs.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence

import structlog

from pluralllm.common.errors.tree import Corrupt, InvalidSpec, StorageFull
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.words.ids import ModelVersion, RunId
from pluralllm.common.words.spec import RunSpec, parse_spec
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.machine import step
from pluralllm.server.rounds.state import Phase
from pluralllm.server.runs.checkpoints import Content, Remembered, content_of
from pluralllm.server.runs.live_run import LiveRun, Progress, averaging_after, first_state
from pluralllm.server.storage.store import RunRecord, SettledRun, Store

log = structlog.get_logger()

REPLAY_PAGE = 1000
RUNS_AT_ONCE = 100  # with 1,000 members each, their checkpoints have some 30 MB


async def recover_all(store: Store, *, writes: bool = False) -> AsyncIterator[tuple[RunRecord, LiveRun | InvalidSpec]]:
    """Yields all runs of the store, the oldest first; for a run whose spec this release does not allow, the error instead.

    writes: whether an ended run gets a checkpoint if it has none of this release, so that the next start need not replay its
    log. Raises what `recover` raises besides.
    """
    records = await store.runs()
    for first in range(0, len(records), RUNS_AT_ONCE):
        several = records[first : first + RUNS_AT_ONCE]
        settled = {rows.checkpoint.run: rows for rows in await store.settled_runs([record.id for record in several])}
        ended = await asyncio.to_thread(_ended_runs, several, settled)
        for record in several:
            try:
                run = ended.get(record.id) or await recover(store, record)
            except InvalidSpec as error:
                yield record, error
                continue
            if writes and run.is_over and record.id not in ended:
                await _keep_checkpoint(store, run)
            yield record, run


async def _keep_checkpoint(store: Store, run: LiveRun) -> None:
    try:
        await store.save_checkpoint(run.checkpoint_after(()))
    except StorageFull as error:  # a start goes on without it
        log.warning("run.checkpoint_not_kept", run=run.id, problem=str(error))


def _ended_runs(records: Sequence[RunRecord], settled: Mapping[RunId, SettledRun]) -> dict[RunId, LiveRun]:
    """Returns those of the runs that have ended and that their settled rows give completely.

    A run is left out if anything about it is unusual: `recover` reads it alone and says what is wrong. Raises Corrupt if a
    checkpoint is not what was written.
    """
    made: dict[RunId, LiveRun] = {}
    for record in records:
        if (rows := settled.get(record.id)) is None:
            continue
        content = content_of(rows.checkpoint)
        if content is None or content.state.phase is not Phase.ENDED or rows.newest.version != content.state.version:
            continue
        try:
            spec = _spec_of(record)
        except InvalidSpec:
            continue
        progress = Progress(content.state, rows.newest, rows.checkpoint.sequence, updated_s=content.updated_s)
        made[record.id] = LiveRun(record, spec, layout_for(spec), rows.first, progress, content.remembered)
    return made


async def recover(store: Store, record: RunRecord) -> LiveRun:
    """Rebuilds a run: calls the round machine's function `step` for each event after the run's newest checkpoint.

    Without a checkpoint, all events are replayed. Raises Corrupt if the stored spec does not match its recorded hash, or if the
    checkpoint or a model version is not what was written; InvalidSpec if this release does not allow the stored spec.
    """
    spec = await asyncio.to_thread(_spec_of, record)
    first = await store.version(record.id, ModelVersion(0))
    if first is None:
        raise Corrupt(what=f"run {record.id}", expected="its first model version", got="none")
    content, sequence = await _newest_checkpoint(store, record)
    if content is None:
        content = Content(first_state(record, spec, first), record.created_s, Remembered())
    state, updated_s, remembered, averaging = content.state, content.updated_s, content.remembered, None
    while page := await store.events(record.id, sequence, REPLAY_PAGE):
        for row in page:
            event = ev.event_from_facts(row.kind, dict(row.facts))
            state, effects = step(state, event)
            remembered.note(event, effects)
            sequence, updated_s = row.sequence, row.at_s
            averaging = averaging_after(averaging, state, effects)
    newest = await store.version(record.id, state.version)
    if newest is None:
        raise Corrupt(what=f"run {record.id}", expected=f"model version {state.version}", got="none")
    open_round, receipts = None, {}
    if state.phase is not Phase.ENDED:
        open_round = await store.round(record.id, state.round)
        receipts = {row.receipt.client: row for row in await store.receipts(record.id, state.round)}
    progress = Progress(state, newest, sequence, open_round, updated_s, averaging)
    return LiveRun(record, spec, layout_for(spec), first, progress, remembered, receipts)


def _spec_of(record: RunRecord) -> RunSpec:
    """Returns the stored spec of a run. Raises Corrupt if it is not what was written; InvalidSpec if it is not allowed here."""
    spec_sha256 = hashlib.sha256(record.spec_json).hexdigest()  # of the bytes: a later release may know more keys
    if spec_sha256 != record.spec_sha256:
        raise Corrupt(what=f"the stored spec of run {record.id}", expected=record.spec_sha256, got=spec_sha256)
    return parse_spec(record.spec_json, f"of run {record.id}")


async def _newest_checkpoint(store: Store, record: RunRecord) -> tuple[Content | None, int]:
    """Returns the content of a run's checkpoint and the number of its last event; None and 0 if there is none to use.

    Raises Corrupt if the checkpoint was changed, or if the log ends before it.
    """
    checkpoint = await store.checkpoint(record.id)
    if checkpoint is None or (content := content_of(checkpoint)) is None:
        return None, 0
    if not await store.events(record.id, checkpoint.sequence - 1, 1):
        expected = f"an event {checkpoint.sequence}, which its checkpoint has seen"
        raise Corrupt(what=f"the event log of run {record.id}", expected=expected, got="an earlier end")
    return content, checkpoint.sequence
