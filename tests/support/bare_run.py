"""Runs without a coordinator and without files: an inbox and a store are all that they need."""

from collections.abc import Sequence

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import ClientId, Digest, GroupName, ModelVersion, RoundNumber, RunId
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.inbox import Inbox
from pluralllm.server.runs.live_run import LiveRun, Progress, first_state
from pluralllm.server.storage.store import RunRecord, Store


async def bare_run(store: Store, spec: RunSpec, name: str = "r") -> LiveRun:
    """Creates a run in the store, and returns it. Its first model version is a digest without a file."""
    record = RunRecord(RunId(name), spec.canonical_json(), spec.sha256(), 0.0)
    first = VersionRecord(record.id, ModelVersion(0), RoundNumber(0), Digest("0" * 64), record.spec_sha256, "", (), 0.0)
    await store.create_run(record, first)
    return LiveRun(record, spec, layout_for(spec), first, Progress(first_state(record, spec, first), first))


async def evaluate_first_version(inbox: Inbox, run: LiveRun, clients: Sequence[ClientId], at_s: float = 1.0) -> None:
    """Starts a run, in which all clients then evaluate version 0. The run waits for its first round."""
    seen = ev.ClientsSeen(at_s, tuple(clients), ())
    for event in (ev.RunStarted(at_s), seen, seen):
        await inbox.put(run, event)
    for client in clients:
        score = ev.Score(client, GroupName(client), GroupRole.TRAIN, ModelVersion(0), 0.5, 0.5, None, 9)
        await inbox.put(run, ev.EvaluationArrived(at_s, score))
