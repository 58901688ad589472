"""The daemon's loop: poll for a task, fetch the model, check the policy, work, store the result, upload the result.

Polling goes on during the work. Each poll renews the task's lease, and the work stops at once when the coordinator no longer
needs the task's result.
"""

import asyncio
import contextlib
import functools
import hashlib
import time
from operator import attrgetter
from pathlib import Path

import structlog

from pluralllm.client.daemon.comparing import Comparing
from pluralllm.client.daemon.evaluating import Evaluating
from pluralllm.client.daemon.making import Making
from pluralllm.client.daemon.models import Models, history_of
from pluralllm.client.daemon.pace import Backoff, Pace
from pluralllm.client.daemon.polling import Polling
from pluralllm.client.daemon.private_round import HANDING_IN, REVEALED, Means, PrivateRounds
from pluralllm.client.daemon.progress import ProgressReports
from pluralllm.client.daemon.reactions import ENDS, Outcome, outcome_of
from pluralllm.client.daemon.renewal import Renewal
from pluralllm.client.daemon.seen_runs import check_cohorts, check_end
from pluralllm.client.daemon.work_orders import WorkOrders
from pluralllm.client.daemon.work_under_way import JoinedRun, Work, account_of, peers_of
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.budgets import Budgets
from pluralllm.client.disclosure.consents import Consents
from pluralllm.client.disclosure.differences import differences_of_task
from pluralllm.client.disclosure.held_share import HeldShare
from pluralllm.client.disclosure.limits import check_task
from pluralllm.client.disclosure.outgoing import check_rewards_context, reported_failure
from pluralllm.client.disclosure.own_scores import OWN_SCORES, OwnScoresFolder
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.disclosure.seeds import load_seeds
from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.keeping.outbox import Entry, Outbox
from pluralllm.client.keeping.working_folders import mend_folders
from pluralllm.client.link.tasks import Answer, Introduction, RunOver, Task, Wait
from pluralllm.client.link.transport import Transport
from pluralllm.client.privacy.declaration import Declaration
from pluralllm.client.private_rounds.notebooks import Notebooks
from pluralllm.client.private_rounds.pins import pins_file
from pluralllm.client.private_rounds.revealed_sums import RevealedSums
from pluralllm.client.private_rounds.verification import Knowledge, Verification
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.process.instruments import TASKS
from pluralllm.client.work.orders import Rewards, TrainedUpdate
from pluralllm.client.work.worker_limits import WorkerLimits
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.grpc_status import CLIENT_STOPPED
from pluralllm.common.errors.tree import (
    AnswerInvalid,
    PluralError,
    SpecMismatch,
)
from pluralllm.common.predictor.architecture import version_layout
from pluralllm.common.process.clock import SystemClock
from pluralllm.common.process.pulse import Pulse
from pluralllm.common.process.tracing import context_of, span
from pluralllm.common.process.watched_tasks import WatchedTasks
from pluralllm.common.words.ids import Digest, RunId
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.not_reported import NotReported
from pluralllm.common.words.spec import RunSpec

log = structlog.get_logger()

STOP_GRACE_S = 8.0  # a push under way may take this long when the daemon stops
STOP_REPORT_S = 5.0  # longest time for the report that this client stops
HAND_IN_GRACE_S = 1.5
KEPT_RUNS = 100  # run specs in memory: a coordinator may name any number of runs, which this client then refuses


class Daemon:
    """The client of one group: takes tasks from the coordinator and returns their results."""

    def __init__(
        self,
        config: ClientConfig,
        partner: Partner,
        policy: Policy,
        data: PrivateFile,
        transport: Transport,
        worker: WorkerProcess,
    ) -> None:
        self._config, self._partner = config, partner
        self._renewal = Renewal(partner.identity, transport, config.standby)
        self._policy = policy
        self._consents = Consents(config.state_dir.absolute())
        self._data = data
        self._declaration = Declaration(account_of(policy, config))
        self._coordinator_release = ""
        self._peers = peers_of(config, partner, policy, transport)
        self._transport, self._worker = transport, worker
        self._state = config.state_dir.absolute()
        self._outbox = Outbox(self._state / "outbox")
        self._history, self._audit = history_of(config, partner, transport)
        self._unfinished = self._history.open_runs()  # an earlier process took part in these
        self._models = Models(self._state / "models", self._history, transport)
        self._drafts = Drafts(self._state / "drafts")
        disclosure = self._state / "disclosure"
        seeds = load_seeds(disclosure, shared=config.shared_seeds)
        orders = WorkOrders(config, partner, self._state, self._drafts, seeds, data)
        self._making = Making(worker, orders, policy)
        self._budgets = Budgets(disclosure / "runs", policy)
        self._budgets.open_for(self._unfinished)
        self._held_share = HeldShare(disclosure / "share.json")
        self._limits = worker.limits = WorkerLimits.of(policy)
        own = OwnScoresFolder(self._state / OWN_SCORES)
        self._evaluating = Evaluating(policy, data, self._budgets, own, self._making, self._history, self._limits)
        self._comparing = Comparing(policy, data, transport)
        self._work: Work | None = None
        self._runs: dict[RunId, JoinedRun] = {}
        self._pace, self.pulse, self._stop = Pace(), Pulse(), asyncio.Event()
        self._error: PluralError | None = None  # that ends the daemon
        self.tasks = WatchedTasks(SystemClock(), self._end_with)
        self._private = PrivateRounds(self._means())

    @property
    def is_working(self) -> bool:
        """Whether the daemon works on a task now."""
        return self._work is not None and not self._work.doing.done()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs the daemon until `stop` is set.

        If the configuration sets exit_when_run_over, the daemon also ends when a run ends.
        Raises an error that `reactions.ENDS` lists, such as SessionReplaced or CertificateRevoked, or BackgroundFailed.
        """
        self._stop = stop
        await self._worker.start()
        polling = self.tasks.keep("polling", self._poll)
        renewing = self.tasks.keep("the renewal of the certificate", self._renewal.keep)
        try:
            await stop.wait()
        finally:
            for task in (polling, renewing):
                task.cancel()
            await asyncio.gather(polling, renewing, return_exceptions=True)
            await self._finish()
            await self.tasks.stop()
        if self._error is not None:
            raise self._error

    async def _poll(self) -> None:
        """Polls until the daemon must end. An error that is not final ends this attempt only, and `tasks` makes another one."""
        try:
            await Polling(self, self._renewal, self._pace, self.pulse).run()
        except ENDS as error:
            self._end_with(error)
        else:
            self._stop.set()

    def _end_with(self, error: PluralError) -> None:
        log.error("client.ends", reason=error.reason, problem=str(error))
        self._error = self._error or error
        self._stop.set()

    async def _finish(self) -> None:
        """Ends the daemon's work: waits a short time for an upload under way, and stops any other work.

        If work is stopped, the coordinator gets a report about the stop.
        """
        if self._work is not None and self.is_working:
            if self._work.stage == HANDING_IN:
                await asyncio.wait([self._work.doing], timeout=STOP_GRACE_S)
            if not self._work.doing.done():
                await self._drop_work("the client stops")
                with contextlib.suppress(PluralError, TimeoutError):
                    name, message = self._work.task.name, "stopped by its owner"
                    async with asyncio.timeout(
                        STOP_REPORT_S
                    ):  # over all calls that the coordinator refuses as too many
                        await self._transport.report_failure(name, CLIENT_STOPPED, message, permanent=False)
        await self._worker.stop()
        log.info("client.stopped", sent_bytes=self._transport.traffic.sent_bytes)

    # The talk with the coordinator

    @property
    def coordinator(self) -> str:
        """The address that new calls go to."""
        return self._transport.address

    async def greet(self) -> None:
        """Opens a session, with this client's peer key. Logs if the two clocks differ much, or if the roster has diverged."""
        member, data, declaration = self._partner, self._data, self._declaration
        # While the client works, the statement stays the one about the answers that it works with.
        noise = declaration.said if self.is_working else await asyncio.to_thread(declaration.say)
        claim = self._peers.claim(self._renewal.identity)
        said = Introduction(member.group, member.role, data.questions, data.changed_s, noise, claim)
        greeting = await self._transport.hello(said)
        self._coordinator_release = greeting.release
        log.info("client.connected", coordinator=self.coordinator, questions=data.questions)
        self._pace.log_clock(greeting.server_s - time.time())
        await self._peers.look(greeting.roster_head, is_registered=True)
        await self._renewal.note_addresses(greeting.addresses)

    async def ask(self) -> Answer:
        """Polls, and compares the head of the audit log with the heads before. Without work, it first ends closed rounds."""
        await asyncio.to_thread(mend_folders, self._state)
        held = self._work.task.name if self._work is not None and self.is_working else None
        if held is None:
            await self._private.close_ended()
        following = {*self._runs, *self._unfinished, *(entry.run for entry in self._outbox.pending())}
        answer = await self._transport.poll(held, sorted(following), self._private.heard.phase if held else 0)
        await self._audit.look(self._transport.audit_head)
        return answer

    async def must_greet(self) -> bool:
        """Returns whether Hello must say something new, or take back a refusal. While the client works, the answer is no.

        The private file, the loss of privacy or the pins have changed, the partner has consented to the run, or a new day has a
        new budget of runs.
        """
        if self.is_working:
            return False
        has_new_data = self._data.has_changed() and await asyncio.to_thread(self._data.look)
        runs = self._consents.newly_covered()
        for run in runs:
            log.info("consent.given", run=run)
        has_new_noise = await asyncio.to_thread(self._declaration.look)
        has_new_pins = await asyncio.to_thread(self._private.has_new_pins)
        return self._budgets.may_ask_again() or has_new_data or has_new_noise or has_new_pins or bool(runs)

    async def take(self, answer: Answer) -> float | None:
        """Acts on the coordinator's answer to one poll.

        Returns the pause before the next poll in seconds; None if the daemon must end.
        """
        now_s = time.monotonic()
        match answer:
            case Task():
                is_new = self._work is None or self._work.doing.done() or self._work.task.name != answer.name
                is_news = self._private.heard.hear(answer)
                if is_new:
                    await self._begin(answer)
                return self._pace.before_next_poll(0.0, now_s, is_new_task=is_new or is_news)
            case Wait(after_s, reason):
                if self._work is not None and not self._work.doing.done():
                    await self._drop_work(reason)
                self._pace.log_reason(reason)
                return self._pace.before_next_poll(after_s, now_s, is_new_task=False)
            case RunOver():
                await self._leave(answer)
                return None if self._config.exit_when_run_over else 0.0

    async def _begin(self, task: Task) -> None:
        if self.is_working:
            await self._drop_work("the coordinator has another task")
        if self._data.has_changed():
            return  # the next round reads the file, and Hello says what has changed
        log.info("task.received", task=task.name, kind=task.kind, base_version=task.base_version)
        self._pace.forget_reason()
        self._work = Work(task, self.tasks.spawn("a task", self._do(task)))

    async def _leave(self, over: RunOver) -> None:
        if self._work is not None and self._work.task.run == over.run:
            await self._drop_work(f"the run is {over.outcome}")
        await check_end(self._policy, self._history, self._transport, over, self._runs.get(over.run))
        self._outbox.drop_run(over.run)
        self._drafts.drop_run(over.run)
        self._runs.pop(over.run, None)
        self._private.close_run(over.run)
        self._history.close(over.run)
        self._consents.forget(over.run)
        self._unfinished.discard(over.run)
        log.info(
            "run.over", run=over.run, outcome=over.outcome, reason=over.reason, version=over.version, digest=over.digest
        )

    async def _drop_work(self, reason: str) -> None:
        """Stops the work on the current task. If the result is being uploaded, the upload first gets a short time to end.

        This time is needed because the coordinator may end the task at the moment when it has received the whole result.
        reason: why the work stops, for the log.
        """
        assert self._work is not None
        if self._work.stage == HANDING_IN:
            await asyncio.wait([self._work.doing], timeout=HAND_IN_GRACE_S)
        if self.is_working and self._work.stage == REVEALED:
            TASKS.labels(self._work.task.kind, "done").inc()
            self._work.doing.cancel()
        elif self.is_working:
            log.info("task.dropped", task=self._work.task.name, reason=reason)
            self._work.doing.cancel()
        await asyncio.gather(self._work.doing, return_exceptions=True)

    # One task

    async def _do(self, task: Task) -> None:
        """Works on a task until it is done, dropped, failed or refused. The loop that polls cancels work that nobody needs."""
        backoff = Backoff()
        await asyncio.sleep(self._pace.before_try(task.name))
        while True:
            if await self._try(task) is not Outcome.INTERRUPTED:
                return
            await asyncio.sleep(backoff.wait_s())

    async def _try(self, task: Task) -> Outcome | None:
        """Works on a task once. Returns what becomes of the task after an error; None if the task is done."""
        with span(task.kind, context_of(task.traceparent), task=task.name, client=self._partner.name):
            try:
                run = await self._joined_run(task)
                await asyncio.to_thread(self._private.close_before, task)
                await asyncio.to_thread(self._admit, task, run.spec)
                await self._comparing.compare(task)
                if task.kind is TaskKind.EVALUATE:
                    await self._evaluate(task, run)
                elif run.spec.private_rounds is not None:
                    await self._history.follow(task, run.spec, self._transport.version_records)
                    await self._private.play(task, run)
                else:
                    await self._deliver(task, run)
            except Exception as error:
                if not isinstance(error, PluralError):
                    log.exception("task.broken", task=task.name)
                await self._end_try(task, error, outcome := outcome_of(error))
                return outcome
            TASKS.labels(task.kind, "done").inc()
            return None

    async def _end_try(self, task: Task, error: Exception, outcome: Outcome) -> None:
        match outcome:
            case Outcome.DROPPED:
                self._private.drop_result(task)
                log.info("task.dropped", task=task.name, reason=str(error))
                TASKS.labels(task.kind, "dropped").inc()
            case Outcome.INTERRUPTED:
                log.warning("task.interrupted", task=task.name, reason=str(error))
                TASKS.labels(task.kind, "interrupted").inc()
            case Outcome.FAILED:
                self._pace.note_failed_try(task.name)
                await self._give_up(task, error, permanent=False)
            case Outcome.REFUSED:  # otherwise the next try of this task uses its finished update
                self._private.drop_result(task)
                await self._give_up(task, error, permanent=True)

    def _admit(self, task: Task, spec: RunSpec) -> None:
        """Checks that this client works on a task, before anything is fetched or computed. Raises the reason if it does not."""
        self._data.check()
        for follow in (self._drafts.follow, self._outbox.follow, self._budgets.follow):
            follow(noised=self._data.is_noised)
        check_task(self._policy, self._partner.group, self._partner.role, spec, task)
        self._peers.check(spec)
        check_cohorts(self._policy, self._history, task.run, spec)
        self._declaration.check(spec.privacy, task.run)
        check_rewards_context(self._policy, spec, self._data.questions)
        differences = differences_of_task(self._policy, self._partner.group, self._partner.role, spec, task.kind)
        self._consents.demand(task.run, spec, (*differences, *self._held_share.differences(self._policy, spec)))
        self._budgets.join(task.run, task.spec_sha256)
        self._held_share.fix(spec)

    async def _give_up(self, task: Task, error: Exception, *, permanent: bool) -> None:
        reason, message = reported_failure(error)
        TASKS.labels(task.kind, "failed").inc()
        if isinstance(error, AnswerInvalid):
            self._pace.log_broken_protocol(error, self.coordinator)
        log.error("task.failed", task=task.name, reason=reason, problem=str(error), permanent=permanent)
        self._stage(HANDING_IN)
        with contextlib.suppress(PluralError):
            await self._transport.report_failure(task.name, reason, message, permanent=permanent)

    async def _joined_run(self, task: Task) -> JoinedRun:
        """Returns the run that a task belongs to. The run spec is fetched once for each run.

        Raises SpecMismatch if the run spec's hash differs from the hash that the task states.
        """
        run = self._runs.get(task.run)
        if run is None:
            spec_json = await self._transport.run_spec(task.run)
            run = self._runs[task.run] = JoinedRun.of(task.run, spec_json, self._coordinator_release)
            if len(self._runs) > KEPT_RUNS:  # the oldest spec is fetched again when it is needed
                self._runs.pop(next(iter(self._runs)))
        spec_sha256 = Digest(hashlib.sha256(run.spec_json).hexdigest())
        if spec_sha256 != task.spec_sha256:
            self._runs.pop(task.run)
            raise SpecMismatch(run=task.run, asked=task.spec_sha256[:12], stored=spec_sha256[:12])
        return run

    async def _deliver(self, task: Task, run: JoinedRun) -> None:
        """Makes an update or rewards, stores the result in the outbox, and uploads it until its receipt comes."""
        waiting = await asyncio.to_thread(self._outbox.get, task.name)
        if waiting is None or waiting[0].base_digest != task.base_digest:
            await asyncio.to_thread(self._history.check_repetition, task)
            async with self._limits.task_time():
                base = await self._fetch(task, run.spec)
                entry = await self._produce(task, run, base)
            await asyncio.to_thread(self._outbox.put, entry, self._drafts.delta)
            waiting = await asyncio.to_thread(self._outbox.get, task.name)
            assert waiting is not None
        entry, manifest = waiting
        self._stage(HANDING_IN)
        noted = self._history.handing_in(task, entry.digest, entry.examples)
        with span("hand in"), noted if task.kind is TaskKind.TRAIN else contextlib.nullcontext():
            await self._transport.push_update(
                task.name,
                self._outbox.delta(task.name),
                manifest,
                entry.spec_sha256,
                entry.base_digest,
                entry.examples,
                entry.metrics,
                entry.noise,
            )
        self._drafts.keep_states(task.run)
        self._outbox.drop(task.name)
        log.info("update.committed", task=task.name, digest=entry.digest, examples=entry.examples, **entry.metrics)

    async def _produce(self, task: Task, run: JoinedRun, weights: Path) -> Entry:
        """Lets the worker process make an update or rewards, and returns the outbox entry that describes the result.

        weights: file of the model version that the task starts from. The worker writes the result to the draft file
        (`Drafts.delta`).
        """
        on_progress = self._progress(task)
        result: TrainedUpdate | Rewards
        metrics: dict[str, float] = {}
        await self._making.prepare(run, on_progress)
        if task.kind is TaskKind.REWARD:
            rollouts = await self._transport.rollouts(task.name)
            result = await self._making.rewards(task, run.spec, weights, rollouts, on_progress)
        else:
            result, metrics = await self._making.update(task, weights, on_progress)
        first = self._history.seen(task.run).first_examples  # the weight stays, whatever becomes of the private file
        if first not in (None, result.examples):
            log.warning("update.keeps_weight", task=task.name, examples=first, examples_now=result.examples)
        return Entry(
            task=task.name,
            run=task.run,
            spec_sha256=task.spec_sha256,
            base_digest=task.base_digest,
            digest=result.digest,
            examples=result.examples if first is None else first,
            metrics=metrics,
            noise=self._declaration.said,
        )

    async def _evaluate(self, task: Task, run: JoinedRun) -> None:
        """Reports the scores of a model version: those reported before, new ones, or the reason why there are none."""
        fetch = functools.partial(self._fetch, task, run.spec)
        scores = await self._evaluating.answer(task, run, fetch, self._progress(task))
        self._stage(HANDING_IN)
        await self._transport.report_scores(task.name, scores)
        if isinstance(scores, NotReported):
            key = await asyncio.to_thread(self._budgets.key_behind, task.run, scores)
            limit = attrgetter(key)(self._policy)
            log.warning("evaluation.not_reported", task=task.name, reason=scores, key=key, limit=limit)
        else:
            log.info("evaluation.reported", task=task.name, alignment_score=scores.alignment_score)

    async def _fetch(self, task: Task, spec: RunSpec) -> Path:
        self._stage("fetching")
        with span("fetch"):
            path = await self._models.fetch(task, version_layout(spec, task.base_version).size_bytes, spec)
        # Again, because the base version may be new.
        await asyncio.to_thread(check_cohorts, self._policy, self._history, task.run, spec)
        return path

    def _means(self) -> Means:
        """Returns all that the private rounds of this client use."""
        state, config, identity = self._state, self._config, self._partner.identity
        federation, rules = "" if identity is None else identity.membership.federation, self._policy.private_rounds
        pins = pins_file(config.policy, state)
        knowledge = Knowledge(state, federation, self._history, self._peers, pins, rules.colluders, rules.verify_share)
        return Means(
            name=self._partner.name,
            federation=federation,
            rules=rules,
            pins=pins,
            peers=self._peers,
            history=self._history,
            notebooks=Notebooks(state / "private", self._history),
            sums=RevealedSums(state / "history"),
            verification=Verification(knowledge, self._transport),
            outbox=self._outbox,
            drafts=self._drafts,
            making=self._making,
            evaluating=self._evaluating,
            transport=self._transport,
            limits=self._limits,
            noise=lambda: self._declaration.said,
            fetch=lambda task, run: self._fetch(task, run.spec),
            stage=self._stage,
            progress=self._progress,
        )

    def _progress(self, task: Task) -> ProgressReports:
        report = functools.partial(self._transport.report_progress, task.name)
        return ProgressReports(report, self._stage, self.tasks.spawn)

    def _stage(self, stage: str) -> None:
        if self._work is not None:
            self._work.stage = stage
