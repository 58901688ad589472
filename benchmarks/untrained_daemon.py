"""A client's real daemon whose training is made up: it hands in a delta in which all values are equal. walls.py starts it.

Everything else is the daemon's own: policy, history, outbox, private rounds with their notebook, masking, and the check of each
version. --deltas names a folder with a file NAME.ROUND for updates that are not made up, in the layout of the run's model.
"""

import argparse
import asyncio
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any, cast

from echo_client import write_constant

from pluralllm.client.daemon.daemon import Daemon
from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.policy import Policy, RoundPrivacy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.link.transport import Transport
from pluralllm.client.private_rounds import verification
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import EVALUATE, MASK, PREPARE, Mask, Prepared, Train, TrainedUpdate
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.weights.chunks import manifest_of

QUESTIONS, EXAMPLES = 60, 40
LIMIT_S = 1800.0


class Worker:
    """A worker without a model. It masks as the real one does, in a thread of this process."""

    def __init__(self, name: str, deltas: Path | None) -> None:
        self._name, self._deltas = name, deltas
        self._number = sum(name.encode()) % 100
        self.limits: Any = None

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ask(self, command: Any, order: Any, on_progress: Any) -> Any:
        """Obeys an order as the worker process does."""
        del on_progress
        if command is PREPARE:
            return Prepared(QUESTIONS, "cpu")
        if command is EVALUATE:
            return MeasuredScores(0.7, 0.4, QUESTIONS, QUESTIONS, 0.02)
        if command is MASK:
            return await asyncio.to_thread(mask_update, cast(Mask, order), lambda _done, _total: None)
        return await asyncio.to_thread(self._update, cast(Train, order))

    def _update(self, order: Train) -> TrainedUpdate:
        given = None if self._deltas is None else self._deltas / f"{self._name}.{order.round_number}"
        if given is not None:
            shutil.copyfile(given, order.out)
            manifest = manifest_of(order.out)
        else:
            manifest = write_constant(order.base, order.out, (order.round_number + self._number / 100) * 1e-6)
        return TrainedUpdate(manifest.digest, EXAMPLES, MeasuredTraining(1.0, 0.3, QUESTIONS, QUESTIONS), 0)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identity", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="For the state; it may hold peers.toml in state.")
    parser.add_argument("--deltas", type=Path)
    parser.add_argument(
        "--verify-share", type=float, help="As in the policy, for versions of any size; default: small ones always."
    )
    chosen = parser.parse_args()
    if chosen.verify_share is not None:
        verification.ALWAYS_BYTES = 0
    configure_logs(form="json", level="WARNING")
    data, state = chosen.folder / "answers.jsonl", chosen.folder / "state"
    write_group(data, next(iter(sample_groups(2, QUESTIONS, 0).values())))
    config = ClientConfig(data=data, state_dir=state, identity=chosen.identity, exit_when_run_over=True)
    partner = load_partner(config)
    assert partner.identity is not None
    policy = Policy(
        min_questions_behind=1,
        max_evaluations_of_run=1000,
        max_scores_per_question=1000,
        allowed_presets=("*",),
        allowed_embedding_models=("*",),
        private_rounds=RoundPrivacy(rounds="allowed", verify_share=chosen.verify_share),
    )
    transport = Transport.of_member(partner.identity)
    worker = Worker(partner.name, chosen.deltas)
    daemon = Daemon(config, partner, policy, PrivateFile(data, state), transport, cast(Any, worker))
    async with asyncio.timeout(LIMIT_S):
        await daemon.run(asyncio.Event())
    await transport.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"peak_mb": usage.ru_maxrss / 1024, "cpu_s": time.process_time()}
    traffic = {"sent": transport.traffic.sent_bytes, "received": transport.traffic.received_bytes}
    print(json.dumps({**facts, **traffic}))


if __name__ == "__main__":
    asyncio.run(main())
