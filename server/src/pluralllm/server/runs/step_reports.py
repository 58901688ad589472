"""Reports the durable steps of runs to the log, to the metrics and to the traces.

The reports are side effects: whatever happens to one of them, the step stands, and its effects and the other reports follow.
"""

from collections.abc import Callable

import structlog

from pluralllm.server.process.instruments import note_step
from pluralllm.server.rounds import events as ev
from pluralllm.server.runs.live_run import LiveRun, Step
from pluralllm.server.runs.round_traces import trace_step

log = structlog.get_logger()


def report_step(run: LiveRun, step: Step) -> None:
    """Makes all reports of one step. An error of a report is logged and goes no further."""
    for report in REPORTS:
        try:
            report(run, step)
        except Exception:
            log.exception("run.step_not_reported", run=run.id, report=report.__name__)


def _log_event(run: LiveRun, step: Step) -> None:
    facts = ev.event_to_facts(step.event)
    facts.pop("at_s")
    names = [type(effect).__name__ for effect in step.effects]
    kind = ev.event_kind(step.event)
    log.info("run.event", run=run.id, sequence=step.after.sequence, kind=kind, effects=names, **facts)


def _log_shortened(run: LiveRun, step: Step) -> None:
    """Logs each update that is shortened before it is averaged, because it is much longer than the others of its round.

    A rule that shortens half of the updates of every round makes no news.
    """
    if run.spec.aggregation.rule == "median_norm_clip":
        return
    for effect in step.effects:
        if not isinstance(effect, ev.Average) or not effect.scales:
            continue
        for receipt, scale in zip(effect.receipts, effect.scales, strict=True):
            if scale < 1:
                facts = {"client": receipt.client, "delta_l2": receipt.norm, "scale": scale}
                log.warning("update.shortened", run=run.id, round=effect.round, **facts)


def _count(_: LiveRun, step: Step) -> None:
    note_step(step.before.state, step.after.state, step.event, step.effects)


def _trace(run: LiveRun, step: Step) -> None:
    trace_step(run.record, step.after.open_round or step.before.open_round, step.event, step.effects)


REPORTS: tuple[Callable[[LiveRun, Step], None], ...] = (_log_event, _log_shortened, _count, _trace)
