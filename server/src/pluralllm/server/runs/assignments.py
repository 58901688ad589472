"""Gives clients leases on the tasks of their slots, and ends the leases of clients that have no slot any more.

The round machine decides who has a slot. Most steps change the slot of one client, so a step costs a look at that client. All
clients of a run are looked at only if the slots, the round or the phase have changed, or if the numbers of leases and of slots
differ: after an effect that was interrupted, or while a client still works for another run.
"""

from pluralllm.common.process.clock import Clock
from pluralllm.common.words.ids import ClientId
from pluralllm.server.rounds import events as ev
from pluralllm.server.rounds.state import EXCHANGING, Phase, Run
from pluralllm.server.runs.bell import ClientBells
from pluralllm.server.runs.leases import Leases
from pluralllm.server.runs.live_run import LiveRun, Step

WITH_TASKS = (Phase.COLLECTING, Phase.EVALUATING, *EXCHANGING)


class Assignments:
    """Makes the leases of all clients agree with the slots of all runs."""

    def __init__(self, leases: Leases, client_bells: ClientBells, clock: Clock) -> None:
        self._leases, self._client_bells, self._clock = leases, client_bells, clock

    def follow(self, run: LiveRun, step: Step) -> None:
        """Makes the leases agree with one step of the run. The run may be further already: steps share transactions."""
        if change_slots(step):
            self.settle(run)
            if step.after.state.is_private_round and step.before.state.phase is not step.after.state.phase:
                for member in self._leases.held_in(run.id):  # the same task goes on with its next step
                    self._client_bells.ring(member)
        elif (client := _delivering(step.event)) is not None:
            lease = self._leases.of(client)
            if lease is not None and lease.run == run.id and not run.state.is_active(client):
                self.release(client)

    def check(self, run: LiveRun) -> None:
        """Makes the leases agree with the run's slots if their numbers differ."""
        state = run.state
        if self._leases.count_in(run.id) != (state.active_count if state.phase in WITH_TASKS else 0):
            self.settle(run)

    def settle(self, run: LiveRun) -> None:
        """Makes the leases agree with the run's slots, whatever has become of earlier effects.

        A client that has a task in the run gets a lease on the task. A client that has no task in the run loses its lease in the
        run.
        """
        active = set(run.state.active) if run.state.phase in WITH_TASKS else set()
        for client, lease in self._leases.held_in(run.id).items():
            if client not in active or lease.task != run.task_name(client):
                self.release(client)
        for client in sorted(active):
            if self._leases.of(client) is None:
                self._leases.grant(client, run.id, run.task_name(client), self._clock.now_s())
                self._client_bells.ring(client)

    def release(self, client: ClientId) -> None:
        """Ends the client's lease and makes the server answer the client's open poll."""
        self._leases.release(client)
        self._client_bells.ring(client)


def change_slots(step: Step) -> bool:
    """Returns whether a step has changed which clients have slots or tasks, apart from a client that has delivered."""
    before, after = step.before.state, step.after.state
    return _tasks(before) != _tasks(after) or before.cohort != after.cohort or before.away != after.away


def _tasks(state: Run) -> tuple[Phase, int]:
    return state.phase, state.round


def _delivering(event: ev.Event) -> ClientId | None:
    """Returns the client that has delivered its update or its scores; None for an event of another kind."""
    match event:
        case ev.UpdateArrived():
            return event.receipt.client
        case ev.EvaluationArrived():
            return event.score.client
        case _:
            return None
