"""Reads from the database which blobs its rows name. Three queries for all runs, in one transaction."""

import json
from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from pluralllm.common.words.ids import Digest, RunId
from pluralllm.server.storage import schema as t
from pluralllm.server.storage.store import RoundBlobs, RoundOutcome, RunBlobs

NONE = "[]"  # no moments, as the table has it


async def named_blobs(connection: AsyncConnection, newest_rounds: int) -> Sequence[RunBlobs]:
    """Returns the blobs that the rows of each run name, those of receipts and rounds for its newest rounds only."""
    newest = sa.select(t.rounds.c.run, sa.func.max(t.rounds.c.round).label("last")).group_by(t.rounds.c.run).subquery()
    a_round, a_receipt, a_version = t.rounds.c, t.receipts.c, t.versions.c
    receipts = sa.select(a_receipt.run, a_receipt.round, a_receipt.digest).join(newest, a_receipt.run == newest.c.run)
    rounds = sa.select(
        a_round.run, a_round.round, a_round.outcome, a_round.base_version, a_round.version, a_round.rollouts
    )
    rounds = rounds.join(newest, a_round.run == newest.c.run).where(a_round.round > newest.c.last - newest_rounds)
    versions = sa.select(a_version.run, a_version.version, a_version.digest, a_version.moments, a_version.transcript)

    updates: defaultdict[tuple[str, int], set[Digest]] = defaultdict(set)
    for receipt in await connection.execute(receipts.where(a_receipt.round > newest.c.last - newest_rounds)):
        updates[receipt.run, receipt.round].add(receipt.digest)
    digests: defaultdict[str, dict[int, Digest]] = defaultdict(dict)  # of each run's versions, by number
    moments: defaultdict[str, dict[int, str]] = defaultdict(dict)
    transcripts: dict[tuple[str, int], Digest] = {}
    for version in await connection.execute(versions):
        digests[version.run][version.version], moments[version.run][version.version] = version.digest, version.moments
        if version.transcript:
            transcripts[version.run, version.version] = version.transcript
    made: defaultdict[str, list[RoundBlobs]] = defaultdict(list)
    for row in await connection.execute(rounds.order_by(a_round.run, a_round.round.desc())):
        is_open, is_closed = (row.outcome == outcome.value for outcome in (RoundOutcome.OPEN, RoundOutcome.CLOSED))
        others = (row.rollouts, transcripts.get((row.run, row.version)) if is_closed else None)
        named = updates[row.run, row.round] | {Digest(digest) for digest in others if digest}
        begins_with = moments[row.run].get(row.base_version, NONE) if is_closed else NONE
        made[row.run].append(RoundBlobs(is_open, frozenset(named), _set(begins_with)))
    return [
        RunBlobs(
            RunId(run),
            frozenset(digests[run].values()),
            _set(moments[run][max(moments[run])] if moments[run] else NONE),
            tuple(made[run]),
        )
        for run in digests.keys() | made.keys()
    ]


def _set(stored: str) -> frozenset[Digest]:
    """Returns the digests in a JSON list."""
    return frozenset(Digest(digest) for digest in json.loads(stored))
