"""One private round of this client, from its keys to its shares: it joins the steps with the calls, the worker and the outbox.

step of the task        this client
1 keys                  sends its keys; the training starts beside the steps, with the seed of the round's secret
2 shares                deals to all members
3 update                takes the boxes; complains of a bad one, or masks the trained update and uploads it
4 confirmation          signs the sum
5 reveal                reveals its shares for this sum, then holds on until the coordinator ends the round

In a closing round nobody trains: the update is 0, and its tail has the score of the base version.

A step that is over when its message comes is no error: the client asks again and goes on with the step that it hears of. What a
restarted client does follows from the round's notebook (client.private_rounds.steps), so every step may be taken again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from pluralllm.client.daemon.evaluating import Evaluating
from pluralllm.client.daemon.making import Making
from pluralllm.client.daemon.work_under_way import JoinedRun
from pluralllm.client.disclosure.limits import is_closing
from pluralllm.client.disclosure.policy import RoundPrivacy
from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.keeping.history import History
from pluralllm.client.keeping.outbox import Entry, Outbox
from pluralllm.client.link.round_calls import RoundCalls
from pluralllm.client.link.tasks import Task
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds import steps
from pluralllm.client.private_rounds.holding import Holding
from pluralllm.client.private_rounds.lines import ComplaintLine, ConfirmLine, KeysLine, UpdateLine
from pluralllm.client.private_rounds.masking import masking_secrets
from pluralllm.client.private_rounds.membership import Myself, demand_of
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.client.private_rounds.notebooks import Notebooks
from pluralllm.client.private_rounds.own_factors import OwnFactors
from pluralllm.client.private_rounds.pins import load_pins
from pluralllm.client.private_rounds.revealed_sums import RevealedSums
from pluralllm.client.private_rounds.roster_watch import RosterWatch
from pluralllm.client.private_rounds.verification import Verification
from pluralllm.client.work.closing import untrained
from pluralllm.client.work.orders import TrainedUpdate
from pluralllm.client.work.worker_limits import WorkerLimits
from pluralllm.client.work.worker_process import Progress
from pluralllm.common.errors.private_rounds import (
    HiddenAmongTooFew,
    PeerKeyDiffers,
    RoundSecretsLost,
    TooFewKnown,
    WrongStep,
)
from pluralllm.common.errors.tree import InvalidConfig, RoundClosed
from pluralllm.common.private_rounds.round_terms import terms_of
from pluralllm.common.private_rounds.round_view import RoundView
from pluralllm.common.process.threads import to_its_end
from pluralllm.common.wire import round_steps as wire
from pluralllm.common.words.ids import ClientId, RoundNumber, RunId, TaskId
from pluralllm.common.words.names import TaskKind, TaskName
from pluralllm.common.words.noise import NoiseStatement

log = structlog.get_logger()

ASK_AGAIN_S = 2.0  # after a step that was over; usually a poll brings the next step before
UPLOAD_GRACE_S = 1.5  # for an upload whose round goes on to the next step at the same moment
HANDING_IN, HOLDING_ON, REVEALED = "handing in", "holding on", "revealed"

Result = TypeVar("Result")
Trained = tuple[TrainedUpdate, dict[str, float]]


class Heard:
    """The newest task that the polls have brought, and its step."""

    def __init__(self) -> None:
        self._task, self.phase, self._bell = "", 0, asyncio.Event()

    def hear(self, task: Task) -> bool:
        """Notes a task. Returns whether the task or its step is new."""
        is_new = (self._task, self.phase) != (task.name, task.phase)
        self._task, self.phase = task.name, task.phase
        if is_new:
            self._bell.set()
            self._bell = asyncio.Event()
        return is_new

    async def other_than(self, phase: int) -> None:
        """Waits until the step is another one."""
        while self.phase == phase:
            await self._bell.wait()


@dataclass(frozen=True, slots=True)
class Means:
    """All that the private rounds of a client use, the same for each round."""

    name: str
    federation: str  # its name; "" in plain text
    rules: RoundPrivacy
    pins: Path  # the file peers.toml
    peers: RosterWatch
    history: History
    notebooks: Notebooks
    sums: RevealedSums
    verification: Verification
    outbox: Outbox
    drafts: Drafts
    making: Making
    evaluating: Evaluating
    transport: Transport
    limits: WorkerLimits
    noise: Callable[[], NoiseStatement | None]
    fetch: Callable[[Task, JoinedRun], Coroutine[Any, Any, Path]]  # downloads the base version
    stage: Callable[[str], None]
    progress: Callable[[Task], Progress]


class PrivateRounds:
    """The private rounds of a client, one at a time."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.heard = Heard()
        self._refused: dict[str, str] | None = None  # the pins with which this client has refused a round

    async def play(self, task: Task, run: JoinedRun) -> None:
        """Takes part in a task's round until it is cancelled, because the coordinator ends a round. Raises what stops it."""
        playing = PrivateRound(self._means, self.heard, task, run)
        try:
            await playing.play()
        except (PeerKeyDiffers, TooFewKnown):
            self._refused = playing.pins  # the partner may have added others meanwhile
            raise

    def has_new_pins(self) -> bool:
        """Returns, once, whether the partner has changed its pins since they made this client refuse a round.

        Hello then takes the refusal back.
        """
        with contextlib.suppress(InvalidConfig):
            if self._refused is not None and load_pins(self._means.pins) != self._refused:
                self._refused = None
                return True
        return False

    def close_before(self, task: Task) -> None:
        """Ends the earlier rounds of a task's run. An evaluation comes after its round, a training belongs to its round."""
        last = task.round if task.kind is TaskKind.EVALUATE else RoundNumber(task.round - 1)
        for run, number in self._means.notebooks.open_rounds():
            if run == task.run and number <= last:
                self._close(run, number)

    async def close_ended(self) -> None:
        """Ends each round of which the coordinator says that it is closed. Call this while there is no work, before each poll.

        An answer without a task does not say so: a member also waits while its slot in a round that goes on is free, after a
        silence or after a restart of either side, and then needs its notebook again.
        """
        for run, number in self._means.notebooks.open_rounds():
            if await RoundCalls(self._means.transport).is_closed(self._task_of(run, number)):
                await asyncio.to_thread(self._close, run, number)

    def drop_result(self, task: Task) -> None:
        """Deletes the result of a task that is not wanted now, but for a masked update whose round is not closed.

        A member that has lost its slot may come back in the same round. It sends the masked file then: nothing is masked twice.
        """
        if (task.run, task.round) not in self._means.notebooks.open_rounds():
            self._means.outbox.drop(task.name)

    def _close(self, run: RunId, number: RoundNumber) -> None:
        self._means.notebooks.close(run, number)
        self._means.outbox.drop(self._task_of(run, number))

    def _task_of(self, run: RunId, number: RoundNumber) -> TaskId:
        return TaskId(str(TaskName(run, number, TaskKind.TRAIN, ClientId(self._means.name))))

    def close_run(self, run: RunId) -> None:
        """Ends all rounds of a run that is over."""
        self._means.notebooks.close_run(run)
        self._means.verification.forget(run)


class PrivateRound:
    """One private round, as one attempt of the daemon plays it."""

    def __init__(self, means: Means, heard: Heard, task: Task, run: JoinedRun) -> None:
        self._means, self._heard, self._task, self._run = means, heard, task, run
        self._calls = RoundCalls(means.transport)
        self._training: asyncio.Task[Trained] | None = None
        self._score: float | None = None  # of the base version, if it may go into the sum
        self._delivering: asyncio.Task[None] | None = None
        self._me: Myself | None = None
        self.pins: dict[str, str] = {}  # of the partner, as this round has read them

    async def play(self) -> None:
        """Takes each step that the coordinator asks for. Ends by an error, or when it is cancelled."""
        notebook = await to_its_end(self._open)
        checked = await self._means.verification.is_checked(self._task, self._run.spec)
        self._score = await self._means.evaluating.for_sum(self._task, self._run)
        try:
            done = 0
            while True:
                phase = self._heard.phase
                if phase == done or phase < wire.KEYS_PHASE:
                    await self._until_news(phase)
                elif await self._is_taken(notebook, phase, checked=checked):
                    done = phase
        finally:
            await self._end(self._delivering, self._training)

    def _open(self) -> Notebook:
        """Opens the round's notebook. Raises RoundSecretsLost if the round is closed for this client."""
        try:
            return self._means.notebooks.open(self._task.run, self._task.round)
        except RoundClosed as error:
            raise RoundSecretsLost(run=self._task.run, round=self._task.round) from error

    async def _is_taken(self, notebook: Notebook, phase: int, *, checked: bool) -> bool:
        """Takes a step. Returns whether it is taken; if the round is in another step by now, waits for the news of it."""
        try:
            await self._step(notebook, phase, checked=checked)
        except WrongStep as error:
            log.info("private.asks_again", run=self._task.run, round=self._task.round, step=phase, reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_AGAIN_S):
                    await self._heard.other_than(phase)
            return False
        log.info("private.step", run=self._task.run, round=self._task.round, step=phase)
        return True

    async def _step(self, notebook: Notebook, phase: int, *, checked: bool) -> None:
        means, task = self._means, self._task
        if phase > wire.UPDATE_PHASE:
            await self._end_delivery()
        view = await self._calls.view(task.name, phase)
        me = await self._myself(view, checked=checked)
        match phase:
            case wire.KEYS_PHASE:
                keys = await to_its_end(steps.send_keys, notebook, me, view)
                self._train(notebook, me)
                await self._calls.put(task.name, me.terms.sha256, keys)
            case wire.SHARES_PHASE:
                self._train(notebook, me)
                shares = await to_its_end(steps.send_shares, notebook, me, view)
                await self._calls.put(task.name, me.terms.sha256, shares)
            case wire.UPDATE_PHASE:
                await self._take_boxes(notebook, me, view)
            case wire.CONFIRMATION_PHASE:
                confirmation = await to_its_end(self._signed_sum, steps.confirm, notebook, me, view)
                await self._calls.put(task.name, me.terms.sha256, confirmation)
            case wire.REVEAL_PHASE:
                shown = await to_its_end(self._signed_sum, steps.reveal, notebook, me, view)
                await self._calls.put(task.name, me.terms.sha256, shown)
                means.stage(REVEALED)

    def _signed_sum(self, step: Callable[..., Result], notebook: Notebook, me: Myself, view: RoundView) -> Result:
        """Confirms a sum, or reveals for it. Returns the message.

        A member's complaint about a box takes its dealer out of the sum, also after the receipt. The step has checked that
        complaint; the receipt then proves nothing any more against a version without the update. Neither does it if the sum is
        smaller than this client has asked for.
        """
        has_receipt = self._has_receipt(notebook)
        is_left_out = has_receipt and all(update.name != me.name for update in view.updates)
        try:
            message = step(notebook, me, view, self._means.sums, has_receipt=has_receipt)
        except HiddenAmongTooFew:
            if is_left_out and steps.is_too_small(notebook, me, view):
                self._withdraw_receipt("the sum has fewer updates than this client asks for")
            raise
        if is_left_out:
            self._withdraw_receipt("a member complains of a box")
        return message

    def _withdraw_receipt(self, reason: str) -> None:
        log.warning("private.update_left_out", run=self._task.run, round=self._task.round, reason=reason)
        self._means.history.withdraw_receipt(self._task.run, self._task.round)

    async def _myself(self, view: RoundView, *, checked: bool) -> Myself:
        """Returns this client with its own knowledge of the terms. The round's head of the roster must be one that it has had."""
        if self._me is not None and self._me.terms.roster_head == view.terms.roster_head:
            return self._me
        means, task = self._means, self._task
        roster = await means.peers.follow(view.terms.roster_head)
        terms = terms_of(
            self._run.spec,
            federation=means.federation,
            run=task.run,
            number=task.round,
            spec_sha256=task.spec_sha256,
            base_version=task.base_version,
            base_digest=task.base_digest,
            base_record_sha256=task.base_record_sha256,
            roster_head=view.terms.roster_head,
        )
        pins = self.pins = await asyncio.to_thread(load_pins, means.pins)
        rules = means.rules
        self._me = Myself(
            name=means.name,
            key=means.peers.key,
            terms=terms,
            pins=pins,
            colluders=rules.colluders,
            hidden_among=rules.hidden_among,
            checked=checked,
            score_among=0
            if self._score is None
            else demand_of(roster, means.name, pins, colluders=rules.colluders, hidden_among=rules.hidden_among),
        )
        return self._me

    # Training and delivery

    def _train(self, notebook: Notebook, me: Myself) -> None:
        """Starts the training beside the steps, unless it has started, or nothing is to be masked any more."""
        is_over = any(notebook.line(kind) is not None for kind in (UpdateLine, ComplaintLine, ConfirmLine))
        if self._training is None and notebook.line(KeysLine) is not None and not is_over:
            self._training = self._started(self._trained(steps.training_seed(notebook, me)))

    async def _trained(self, seed: int) -> Trained:
        """Trains, but for a closing round, whose updates are 0."""
        means, task, run = self._means, self._task, self._run
        await asyncio.to_thread(means.history.check_repetition, task)
        if is_closing(run.spec, task):
            return await to_its_end(untrained, run.spec, means.drafts.delta), {}
        async with means.limits.task_time():
            weights = await means.fetch(task, run)
            on_progress = means.progress(task)
            await means.making.prepare(run, on_progress)
            trained = await means.making.update(task, weights, on_progress, seed)
        means.stage(HOLDING_ON)
        return trained

    async def _take_boxes(self, notebook: Notebook, me: Myself, view: RoundView) -> None:
        """Takes the boxes. Complains of a bad one, or begins to deliver the update."""
        if self._delivering is not None:
            return
        self._train(notebook, me)
        holding = await to_its_end(steps.hold, notebook, me, view)
        complaint = await to_its_end(steps.send_complaint, notebook, me, holding)
        if complaint is not None:
            await self._end(self._training)
            self._training = None
            await self._calls.put(self._task.name, me.terms.sha256, complaint)
        else:
            self._delivering = self._started(self._deliver(notebook, me, holding))

    async def _deliver(self, notebook: Notebook, me: Myself, holding: Holding) -> None:
        """Masks the update unless it is masked already, and uploads the one masked file until its receipt comes."""
        means, task = self._means, self._task
        if self._has_receipt(notebook):
            return
        if notebook.line(UpdateLine) is None:
            await self._mask(notebook, me, holding)
        line, waiting = notebook.needed(UpdateLine), await asyncio.to_thread(means.outbox.get, task.name)
        if waiting is None or waiting[0].digest != line.digest:
            log.error("private.update_lost", run=task.run, round=task.round, digest=line.digest)
            return  # nothing is masked twice; this client still confirms and reveals
        entry, manifest = waiting
        statement = await to_its_end(steps.send_update, notebook, me, holding, bytes.fromhex(entry.digest))
        means.stage(HANDING_IN)
        try:
            with means.history.handing_in(task, entry.digest, entry.examples):
                await means.transport.push_update(
                    task.name,
                    means.outbox.delta(task.name),
                    manifest,
                    entry.spec_sha256,
                    entry.base_digest,
                    entry.examples,
                    entry.metrics,
                    entry.noise,
                    statement.signature,
                )
        except (RoundClosed, WrongStep) as error:
            log.info("private.update_too_late", run=task.run, round=task.round, reason=str(error))
            return
        finally:
            means.stage(HOLDING_ON)
        means.drafts.keep_states(task.run)
        means.outbox.drop(task.name)
        log.info("update.committed", task=task.name, digest=entry.digest)

    async def _mask(self, notebook: Notebook, me: Myself, holding: Holding) -> None:
        """Masks the trained update, puts it durably into the outbox, and then writes the notebook's line."""
        means, task = self._means, self._task
        await asyncio.to_thread(means.outbox.drop, task.name)  # a file without a line: nobody has seen it
        self._train(notebook, me)
        assert self._training is not None
        trained = await asyncio.shield(self._training)
        factor = await self._factor(trained)
        secrets = await to_its_end(masking_secrets, notebook, me, holding)
        members = len(holding.dealers.members.names)
        score = self._score if means.name in holding.dealers.members.adding else None
        masked = await means.making.masked(
            self._run.spec, trained, members, secrets, factor, score, means.progress(task)
        )
        entry = Entry(
            task=task.name,
            run=task.run,
            spec_sha256=task.spec_sha256,
            base_digest=task.base_digest,
            digest=masked.digest,
            examples=1,  # the real number is in the masked tail
            metrics={},
            noise=means.noise(),
        )
        if score is not None:  # before the update can leave: a daemon that is killed here masks it again
            await means.evaluating.note_given(task)
        await to_its_end(means.outbox.put, entry, means.drafts.masked)
        await to_its_end(steps.send_update, notebook, me, holding, bytes.fromhex(masked.digest))
        means.drafts.delta.unlink(missing_ok=True)

    async def _factor(self, trained: Trained) -> float:
        """Returns the factor of the update's weight, which follows from this client's own distance and the members' mean."""
        means, task, aggregation = self._means, self._task, self._run.spec.aggregation
        if not aggregation.is_fair or is_closing(self._run.spec, task):
            return 1.0
        mean = await means.verification.mean_distance(task, self._run.spec)
        factors, (_, metrics) = OwnFactors(means.drafts, means.history), trained
        return await to_its_end(factors.factor, task, aggregation, metrics.get("base_distance"), mean)

    def _has_receipt(self, notebook: Notebook) -> bool:
        """Returns whether the coordinator has acknowledged this client's masked update."""
        line = notebook.line(UpdateLine)
        sent = self._means.history.seen(self._task.run).own_updates.get(self._task.round, ())
        return line is not None and any(one.digest == line.digest and one.acknowledged for one in sent)

    async def _end_delivery(self) -> None:
        """Ends the training and the upload, because the sum is fixed. An upload that ends at this moment gets its receipt."""
        if self._delivering is not None and not self._delivering.done():
            await asyncio.wait([self._delivering], timeout=UPLOAD_GRACE_S)
        await self._end(self._delivering, self._training)
        self._delivering = self._training = None

    # Tasks and threads

    async def _until_news(self, phase: int) -> None:
        """Waits for another step, or for an error of the training or the delivery, which it raises."""
        news = asyncio.create_task(self._heard.other_than(phase))
        running = [task for task in (self._training, self._delivering) if task is not None and not task.done()]
        try:
            await asyncio.wait([news, *running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(news)
        for task in (self._training, self._delivering):
            if task is not None and task.done():
                task.result()

    def _started(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Starts work beside the steps; `play` awaits it."""
        return asyncio.create_task(work)

    async def _end(self, *tasks: "asyncio.Task[Any] | None") -> None:
        """Cancels tasks and waits for their ends."""
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
