"""The checks of what a run's records say about its versions: enough updates are in each, and at the end none is missing."""

import asyncio
import hashlib

import structlog

from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.disclosure.limits import check_updates_behind
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.keeping.history import History
from pluralllm.client.link.tasks import RunOver
from pluralllm.client.link.transport import Transport
from pluralllm.common.errors.tree import HistoryDiverged, PluralError, PolicyForbids, RecordInvalid
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.spec import RunSpec, parse_spec

log = structlog.get_logger()

END_CHECK_S = 30.0  # for the records of a run that has ended


def check_cohorts(policy: Policy, history: History, run: RunId, spec: RunSpec) -> None:
    """Checks how many updates are in each model version of the run that this client has seen, before it gives another one.

    Raises PolicyForbids if there are too few: the coordinator did not do what its run spec says.
    """
    for version, seen in history.seen(run).versions.items():
        if seen.updates is not None:  # a release that kept hashes only has noted the others
            check_updates_behind(policy, spec, version, seen.updates)


async def check_end(
    policy: Policy, history: History, transport: Transport, over: RunOver, run: JoinedRun | None
) -> None:
    """Logs an error if the last versions of a run lack an acknowledged update, or were made from too few updates.

    run: the run that has ended; None if its spec must be fetched.
    """
    if not history.has_seen(over.run):
        return
    try:
        async with asyncio.timeout(END_CHECK_S):
            spec_json = await transport.run_spec(over.run) if run is None else run.spec_json
            spec, sha256 = parse_spec(spec_json, f"of run {over.run}"), hashlib.sha256(spec_json).hexdigest()
            await history.follow_to_end(over, spec, Digest(sha256), transport.version_records)
            check_cohorts(policy, history, over.run, spec)
    except (RecordInvalid, HistoryDiverged, PolicyForbids) as error:
        log.error("history.contradicted", run=over.run, problem=str(error))
    except (PluralError, TimeoutError) as error:
        log.warning("history.not_checked", run=over.run, problem=str(error) or "no answer in time")
