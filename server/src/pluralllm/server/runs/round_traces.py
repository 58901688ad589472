"""Reports the OpenTelemetry spans of a round when the state of the round changes.

Other modules report the spans of single steps within a round, such as the averaging.
"""

from pluralllm.common.process.tracing import Fact, round_context, tell, tell_round
from pluralllm.server.rounds import events as ev
from pluralllm.server.storage.store import RoundRecord, RunRecord


def trace_key(run: RunRecord, number: int) -> str:
    """Returns a unique name for a round: no other round of any run or federation has the name.

    The run's name alone is not enough, because two federations may have runs with equal names.
    """
    return f"{run.id}@{run.created_s!r}/{run.spec_sha256}/{number}"


def trace_step(run: RunRecord, record: RoundRecord | None, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
    """Reports the OpenTelemetry spans that end with an event: the delivery of an update, or a whole round.

    `record` is the row of the round that is open or has just ended; None before the first round. `effects` are the effects that
    followed from the event.
    """
    if record is None:
        return
    key = trace_key(run, record.round)
    facts: dict[str, Fact] = {"run": run.id, "round": record.round}
    for effect in effects:
        match effect:
            case ev.RecordReceipt(receipt=receipt):
                tell("delivery", round_context(key), record.created_s, event.at_s, client=receipt.client)
            case ev.Publish(version=version, receipts=receipts):
                facts |= {"outcome": "published", "version": version, "updates": len(receipts)}
                tell_round(key, record.created_s, event.at_s, **facts)
            case ev.Abandon():
                tell_round(key, record.created_s, event.at_s, **facts, outcome="abandoned")
            case _:
                pass
