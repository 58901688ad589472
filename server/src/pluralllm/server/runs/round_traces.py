"""Reports the spans of a round when its state changes. The work inside the round reports its own spans."""

from pluralllm.common.process.tracing import Fact, round_context, tell, tell_round
from pluralllm.server.rounds import events as ev
from pluralllm.server.storage.store import RoundRecord, RunRecord


def trace_key(run: RunRecord, number: int) -> str:
    """A name for a round that is unique in the world: two federations may have runs of the same name."""
    return f"{run.id}@{run.created_s!r}/{run.spec_sha256}/{number}"


def trace_step(run: RunRecord, record: RoundRecord | None, event: ev.Event, effects: tuple[ev.Effect, ...]) -> None:
    """Reports the spans that an event completes. `record` is the row of the round that is open or has just ended."""
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
