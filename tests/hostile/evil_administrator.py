"""An administrator who creates runs in order to read one partner's answers from its scores, and the attack's arithmetic."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from support.coordinator_harness import Served
from support.session_folder import embeddings

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.client.disclosure.policy import Policy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link.transport import Transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.commands import Command, OrderT, ResultT
from pluralllm.client.work.orders import Evaluate, Prepared
from pluralllm.client.work.worker_process import Progress, WorkerProcess
from pluralllm.common.predictor.metrics import js_distance
from pluralllm.common.words.questions import Question
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole, RunSpec
from pluralllm.v1 import operations_pb2
from pluralllm.v1 import resources_pb2 as rpb

Answers = NDArray[np.float64]  # (Q, K): the shares of Q questions, padded with 0 to K options
LIMIT_S = 60.0
STEPS = 250


class MeasuringWorker(WorkerProcess):
    """A worker that notes its orders, and answers each evaluation with the same measurement, after some time."""

    def __init__(self, measured: MeasuredScores, takes_s: float = 0.0) -> None:
        super().__init__()
        self.orders: list[object] = []
        self._asked = asyncio.Event()
        self._measured, self._takes_s = measured, takes_s

    async def start(self) -> None:
        """Starts nothing."""

    async def stop(self) -> None:
        """Stops nothing."""

    async def first(self, kind: type[OrderT]) -> OrderT:
        """Waits for the first order of a kind, and returns it."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for order in self.orders:
                    if isinstance(order, kind):
                        return order
                self._asked.clear()
                await self._asked.wait()

    async def ask(self, command: Command[OrderT, ResultT], order: OrderT, on_progress: Progress) -> ResultT:
        self.orders.append(order)
        self._asked.set()
        result: object = Prepared(240, "cpu")
        if isinstance(order, Evaluate):
            await asyncio.sleep(self._takes_s)
            result = self._measured
        assert isinstance(result, command.result)
        return result


@contextlib.asynccontextmanager
async def victim(
    folder: Path,
    questions: Sequence[Question],
    served: Served,
    *,
    policy: Policy | None = None,
    model: Path | None = None,
    worker: WorkerProcess | None = None,
) -> AsyncIterator[None]:
    """Runs the daemon of the member ann until the block ends.

    policy: the default is the policy that `join` writes. model: folder of the embedding model. worker: the default is a real
    one.
    """
    (folder / "state").mkdir(parents=True, exist_ok=True)
    write_group(folder / "answers.jsonl", questions)
    identity = await served.member("ann", MemberRole.CLIENT, "G", GroupRole.TRAIN)
    config = ClientConfig(
        data=folder / "answers.jsonl",
        state_dir=folder / "state",
        identity=identity.folder,
        coordinator=served.address,
        cache_dir=embeddings(),
        embedding_model_path=model,
        threads=1,
    )
    partner, policy, stop = load_partner(config), policy or Policy(), asyncio.Event()
    assert partner.identity is not None
    transport = Transport.of_member(partner.identity)
    worker = worker or WorkerProcess()
    daemon = Daemon(config, partner, policy, PrivateFile(config.data, config.state_dir), transport, worker)
    running = asyncio.create_task(daemon.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(running, return_exceptions=True)
        await transport.close()


async def asked(served: Served, name: str, spec: RunSpec) -> rpb.GroupEvaluation | str:
    """Creates a run, waits for the partner's scores of its first version or for the reason of its refusal, and ends the run."""
    await served.create(name, spec)
    answer: rpb.GroupEvaluation | str | None = None
    async with asyncio.timeout(LIMIT_S):
        while answer is None:
            rings = served.parts.run_bell.rings
            request = operations_pb2.ListEvaluationsRequest(parent=f"runs/{name}")
            for evaluation in (await served.operations.ListEvaluations(request, timeout=10)).evaluations:
                answer = evaluation
            for person in (await served.run(name)).participants:
                if person.client == "ann" and ":" in person.reason:
                    answer = person.reason.removeprefix("takes no part: ")
            if answer is None:
                await served.parts.run_bell.wait(rings, 0.05)
    await served.operations.CancelRun(operations_pb2.CancelRunRequest(name=f"runs/{name}"), timeout=10)
    return answer


def padded(shares: Sequence[Sequence[float]]) -> Answers:
    """Returns the shares of questions with unequal numbers of options as one array."""
    rows = np.zeros((len(shares), max(map(len, shares))))
    for row, values in zip(rows, shares, strict=True):
        row[: len(values)] = values
    return rows


def mean_distance(guess: Answers, truth: Sequence[Question]) -> float:
    """Returns the mean Jensen-Shannon distance between guessed and true answers."""
    pairs = ((row[: len(question.shares)], question.shares) for row, question in zip(guess, truth, strict=True))
    return float(np.mean([js_distance(row, shares) for row, shares in pairs]))


def read_answers(predictions: NDArray[np.float64], scores: Sequence[float], prior: Answers, error: float) -> Answers:
    """Returns the answers that explain the scores best, starting from the answers of other groups.

    Shapes: M models, Q questions, K options; predictions (M, Q, K), scores (M,), prior (Q, K) -> (Q, K). A score is 1 - the mean
    distance between a model's predictions and the answers. error: standard deviation of the scores' errors.
    """
    options = torch.tensor(prior > 0)
    start = torch.log(torch.tensor(prior) + 1e-3).masked_fill(~options, -1e9)
    guess, models, seen = start.clone().requires_grad_(True), torch.tensor(predictions), torch.tensor(list(scores))
    optimizer = torch.optim.Adam([guess], lr=0.05)
    for _ in range(STEPS):
        shares = torch.softmax(guess, -1)
        middle = (models + shares) / 2 + 1e-12
        terms = torch.xlogy(models, models) + torch.xlogy(shares, shares + 1e-12) - (models + shares) * middle.log()
        explained = 1 - (terms.sum(-1).clamp_min(1e-9) / 2).sqrt().mean(1)
        misfit = (((explained - seen) / error) ** 2).sum() / 2 + ((guess - start)[options] ** 2).sum() / 20
        optimizer.zero_grad()
        misfit.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    answers: Answers = torch.softmax(guess.detach(), -1).numpy()
    return answers


def rounding_error(step: float) -> float:
    """Returns the standard deviation of the errors of numbers that are rounded to multiples of `step`."""
    return step / math.sqrt(12)
