"""Decides what follows the end of a round or of an evaluation, in plain and in private rounds alike."""

from dataclasses import replace

from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import WITH_OPEN_ROUND, Outcome, Phase, Run

Step = tuple[Run, tuple[ev.Effect, ...]]


def advance(run: Run, at_s: float) -> Step:
    """Returns the state and effects that follow the end of a round or an evaluation.

    An evaluation opens if it is due. Otherwise the run waits for its next round or, after the last round, ends. A closing round
    comes after the evaluation of the last version, and no evaluation comes after it: its version is the same model.
    """
    last = run.round >= run.rounds
    due = run.rewards is None and not run.is_closing and (last or run.round % run.policy.evaluate_every == 0)
    if due and run.evaluated != run.version:
        return open_evaluation(run, at_s), ()
    waiting = replace(run.cleared(), phase=Phase.WAITING, since_s=at_s)
    if waiting.waits_to_close and run.version > 0:
        return replace(waiting, deadline_s=at_s + run.policy.deadline_s), ()
    return complete(waiting, at_s) if last else (waiting, ())


def complete(run: Run, at_s: float, without: str = "") -> Step:
    """Ends a run whose rounds are done. without: the reason why it has no closing scores; "" if it has them or wants none."""
    reason = f"{run.rounds} rounds done"
    return end(run, at_s, Outcome.COMPLETED, f"{reason}, without closing scores: {without}" if without else reason)


def abandon(run: Run, at_s: float, reason: str) -> Step:
    """Ends the open round without a new version. The run goes on, but for its closing round: it has done its work then."""
    if run.is_closing:
        return complete(run, at_s, reason)
    advanced, effects = advance(run, at_s)
    return advanced, (ev.Abandon(run.round, reason), *effects)


def open_evaluation(run: Run, at_s: float) -> Run:
    """Returns the run in which the evaluation of the current version begins."""
    deadline_s = at_s + run.policy.evaluation_deadline_s
    return replace(run.cleared(), phase=Phase.EVALUATING, since_s=at_s, deadline_s=deadline_s)


def end(run: Run, at_s: float, outcome: Outcome, reason: str) -> Step:
    """Ends the run, and abandons its round if one is open."""
    ended = replace(run.cleared(), phase=Phase.ENDED, since_s=at_s, outcome=outcome, reason=reason, paused=False)
    effect = ev.EndRun(outcome.value, reason)
    if run.phase in WITH_OPEN_ROUND:
        return ended, (ev.Abandon(run.round, reason), effect)
    return ended, (effect,)
