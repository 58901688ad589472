"""Clients without torch: the real daemon, transport, outbox and identity, and a worker that invents its updates.

`python -m drill.client HOME...` plays all clients in one process. It starts at once and waits until each client has joined. The
file HOME/plan.json says how a worker behaves in a round; in a round that is not in the file the worker delivers its update.
"""

import asyncio
import hashlib
import json
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import structlog
from drill.private_clients import RecordingTransport, cheat, file_there, mask, seed_of
from support.fixed_data import FixedData
from support.open_policy import open_policy

from pluralllm.client.daemon import pace
from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.policy import RoundPrivacy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link import transport
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.commands import Command, OrderT, ResultT
from pluralllm.client.work.orders import Evaluate, Mask, Prepare, Prepared, Reward, Rewards, Train, TrainedUpdate
from pluralllm.client.work.worker_process import Progress, WorkerProcess
from pluralllm.common.errors.tree import PluralError, WorkerDied
from pluralllm.common.predictor.architecture import parameters
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.rewards.rollout_batch import count_candidates, read_rollouts
from pluralllm.common.weights.layout import layout_of, rewards_layout, write_weights
from pluralllm.common.weights.update_format import update_format, write_update
from pluralllm.common.words.spec import RunSpec, parse_spec

QUESTIONS = 50
JOIN_LIMIT_S = 60.0
# Members pin each key that they see first: the drills are about what dies, and tests/private about who lies.
PRIVATE = RoundPrivacy(hidden_among=2, trust="first_use")
# Clients reconnect quickly, so that they find a restarted coordinator at once.
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))
log = structlog.get_logger()


class Behaviour(StrEnum):
    """The behaviour of one worker in one round."""

    WAIT = "wait"  # wait for the file HOME/go-ROUND, then deliver
    DIE = "die"  # die the first time, deliver the next time
    SEND_NOISE = "send_noise"  # an update that is not finite, every time


class ScriptedWorker(WorkerProcess):
    """A worker whose updates follow from the task's seed, which is one for each run, round and client.

    In a private round the task's seed is a secret of the round, and the updates follow from the client's name and the round.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._home = home
        self._plan = plan_of(home)
        self._spec: RunSpec | None = None
        self._died_in: set[int] = set()

    async def start(self) -> None:
        """Does nothing, because there is no process to start."""

    async def stop(self) -> None:
        """Does nothing, because there is no process to stop."""

    async def ask(self, command: Command[OrderT, ResultT], order: OrderT, on_progress: Progress) -> ResultT:
        result = await self.answer(order)
        assert isinstance(result, command.result)
        return result

    async def answer(self, order: object) -> object:
        """Returns the result of one order."""
        match order:
            case Prepare():
                self._spec = parse_spec(order.spec_json.encode(), "of the drill")
                return Prepared(QUESTIONS, "cpu")
            case Evaluate():
                return MeasuredScores(0.7, 0.8, QUESTIONS, QUESTIONS, 0.02)
            case Reward():
                return await self._reward(order.out, order.rollouts_json.encode())
            case Train():
                return await self._train(order.out, order.seed, order.round_number)
            case Mask():
                return await asyncio.to_thread(mask, self._home, order)
        raise AssertionError(f"{order} is not an order")

    async def _reward(self, out: Path, rollouts: bytes) -> Rewards:
        """Returns rewards that follow from the batch and the client's name.

        The first prompt of a batch is the number of the file that the worker waits for.
        """
        batch = read_rollouts(rollouts, 1000)
        await file_there(self._home / f"go-{batch[0].prompt}")
        seed = int.from_bytes(hashlib.sha256(rollouts + self._home.name.encode()).digest()[:8])
        shares = np.random.default_rng(seed).random(count_candidates(batch)).astype(np.float32)
        manifest = write_weights(out, rewards_layout(shares.size), [shares])
        return Rewards(manifest.digest, QUESTIONS)

    async def _train(self, out: Path, seed: int, number: int) -> TrainedUpdate:
        assert self._spec is not None
        behaviour = self._plan.get(number)
        if behaviour == Behaviour.DIE and number not in self._died_in:
            self._died_in.add(number)
            raise WorkerDied(problem="the plan says so")
        if behaviour == Behaviour.WAIT:
            await file_there(self._home / f"go-{number}")
        shapes = parameters(self._spec.predictor, self._spec.embedding.dimension)
        layout = layout_of((parameter.name, parameter.shape) for parameter in shapes)
        if self._spec.private_rounds is not None:
            seed = seed_of(self._home.name, number)
        rng = np.random.default_rng(seed)
        delta = rng.normal(0, 0.01, layout.values).astype(np.float32)
        if behaviour == Behaviour.SEND_NOISE:
            delta[0] = np.nan
        manifest, _ = write_update(out, update_format(layout, self._spec.updates.encoding), delta, rng)
        measured = MeasuredTraining(1.0, 0.5, QUESTIONS, QUESTIONS)
        return TrainedUpdate(manifest.digest, QUESTIONS, measured, gpu_memory_bytes=0)


def plan_of(home: Path) -> dict[int, str]:
    """Returns the plan of a client: how it behaves, cheats or holds back a message, by round."""
    path = home / "plan.json"
    plan = json.loads(path.read_text()) if path.exists() else {}
    return {int(number): way for number, way in plan.items()}


async def play(
    home: Path,
    transport_of: type[RecordingTransport] = RecordingTransport,
    worker_of: type[ScriptedWorker] = ScriptedWorker,
) -> None:
    """Runs one client until its run or its membership is over."""
    config = load_config(ClientConfig, home / "client.toml", {})
    async with asyncio.timeout(JOIN_LIMIT_S):
        await file_there(config.identity_folder / "credentials.pem")
    partner = load_partner(config)
    with structlog.contextvars.bound_contextvars(client=partner.name), DirectoryLock(config.state_dir):
        assert partner.identity is not None
        connection = transport_of.of_member(partner.identity, config.standby)
        connection.home, connection.holding = home, plan_of(home)
        policy = open_policy(allow_rewards=True, private_rounds=PRIVATE)
        try:
            await Daemon(config, partner, policy, FixedData(QUESTIONS), connection, worker_of(home)).run(
                asyncio.Event()
            )
        except PluralError as error:
            log.info("client.ended", reason=str(error))
        finally:
            await connection.close()


async def play_all(homes: list[Path]) -> None:
    await asyncio.gather(*(play(home) for home in homes))


def hurry() -> None:
    """Shortens the waits between attempts, so that clients find a restarted coordinator at once."""
    pace.LAST_BACKOFF_S = transport.LAST_RETRY_S = 0.3
    transport.RETRY_JITTER_S = 0.1
    transport.OPTIONS = (*transport.OPTIONS, *RECONNECT)  # type: ignore[assignment]


def main() -> None:
    """Runs the clients whose folders the command line names."""
    configure_logs(form="json", level="DEBUG")
    hurry()
    homes = [Path(home) for home in sys.argv[1:]]
    cheat({home.name: plan_of(home) for home in homes})
    asyncio.run(play_all(homes))


if __name__ == "__main__":
    main()
