"""Converts an event and its effects into database rows, which the store then makes durable.

The module is pure: it does no input or output.
"""

from dataclasses import replace

from pluralllm.common.trust.version_record import VersionRecord
from pluralllm.common.words.ids import RoundNumber
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import Run
from pluralllm.server.storage.store import (
    Change,
    EvaluationRecord,
    ReceiptRecord,
    RoundMessage,
    RoundOutcome,
    RoundRecord,
    RunRecord,
)


def change_of(
    record: RunRecord,
    after: Run,
    sequence: int,
    event: ev.Event,
    effects: tuple[ev.Effect, ...],
    open_round: RoundRecord | None,
    newest: VersionRecord,
    body: bytes = b"",
) -> Change:
    """Returns the database rows that the store must write for one event of a run.

    `record` is the run's row. `after` is the run's state after the event, and `sequence` is the event's number in the run.
    `open_round` is the row of the newest round before the event (None before the first round). `newest` is the row of the run's
    current model version. `body` is the message that a member of a private round has sent, if the event is its arrival.
    """
    change = Change(run=record.id, sequence=sequence, event=event)
    round_row = open_round
    for effect in effects:
        match effect:
            case ev.OpenRound(number, base, cohort, rollouts):
                at_s = event.at_s
                round_row = RoundRecord(
                    record.id, number, RoundOutcome.OPEN, "", base, None, cohort, at_s, at_s, rollouts
                )
            case ev.RecordReceipt(number, receipt):
                row = ReceiptRecord(record.id, number, receipt, event.at_s)
                change = replace(change, receipts=(*change.receipts, row))
            case ev.WithdrawReceipt(number, client):
                change = replace(change, withdrawn=(*change.withdrawn, (number, client)))
            case ev.RecordEvaluation(score):
                change = replace(change, evaluations=(EvaluationRecord(record.id, score, event.at_s),))
            case ev.Publish(number, version, digest, receipts, moments, weights, scales, transcript, tail):
                link = VersionRecord(
                    run=record.id,
                    version=version,
                    round=number,
                    digest=digest,
                    spec_sha256=record.spec_sha256,
                    parent_sha256=newest.record_sha256,
                    updates=tuple((receipt.client, receipt.digest, receipt.examples) for receipt in receipts),
                    created_s=event.at_s,
                    moments=moments,
                    weights=weights,
                    scales=scales,
                    transcript=transcript,
                )
                change = replace(change, versions=(link,))
                round_row = _closed(round_row, RoundOutcome.CLOSED, event.at_s, version=version, tail=tail)
            case ev.Abandon(_, reason):
                round_row = _closed(round_row, RoundOutcome.ABANDONED, event.at_s, reason=reason)
            case ev.Average() | ev.EndRun() | ev.FixMembers() | ev.FixDealers() | ev.FixSum():
                pass
            case ev.RecordMessage(number, round_step, client, digest):
                message = RoundMessage(record.id, number, round_step, client, digest, body)
                change = replace(change, messages=(*change.messages, message))
    ends = any(isinstance(effect, ev.Publish | ev.Abandon) for effect in effects)
    if ends and after.private is not None:  # with its messages a private round could be unmasked again
        change = replace(change, messages=(), ended=(RoundNumber(after.round),))
    is_open = round_row is not None and round_row.outcome is RoundOutcome.OPEN and round_row.round == after.round
    # The cohort of an open round only grows. Most events leave it as it is, and equal tuples are compared fast.
    if round_row is not None and is_open and after.slots and after.cohort != round_row.cohort:
        round_row = replace(round_row, cohort=after.cohort, updated_s=event.at_s)
    return change if round_row is None or round_row == open_round else replace(change, rounds=(round_row,))


def _closed(row: RoundRecord | None, outcome: RoundOutcome, at_s: float, **facts: object) -> RoundRecord:
    if row is None:
        raise AssertionError("a round ends that was never opened")  # the round machine never does this
    return replace(row, outcome=outcome, updated_s=at_s, **facts)  # type: ignore[arg-type]
