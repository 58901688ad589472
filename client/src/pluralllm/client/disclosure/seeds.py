"""The seeds of this client's random choices: which questions a training draws, and which an evaluation has as its context.

A coordinator that knew the seeds could repeat a training and read the answers from the update. Each seed therefore depends on a
secret that never leaves this machine. The secret is in the state directory, so the same work has the same bits after a restart.
"""

import hmac
import json
import secrets
from pathlib import Path
from typing import Protocol

from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.files import make_folder, write_durably
from pluralllm.common.words.ids import Digest, RunId, TaskId

SECRET_BYTES = 32
SEED_BYTES = 8  # torch takes seeds of 64 bits


class Seeds(Protocol):
    """The seeds of one client's work. `proposed` is the seed that the coordinator knows."""

    def of_training(self, run: RunId, task: TaskId, proposed: int) -> int:
        """Returns the seed of a task that trains: it draws the task's questions and the dropout."""

    def of_contexts(self, run: RunId, proposed: int) -> int:
        """Returns the seed of all contexts of a run, so that the scores of the run's versions can be compared."""

    def of_rewards(self, model: Digest, proposed: int) -> int:
        """Returns the seed of the context of a model's rewards: no run draws another context for the same model."""


class SharedSeeds:
    """The seeds that the coordinator proposes, unchanged. For tests that compare whole runs bit by bit, and for nothing else."""

    def of_training(self, run: RunId, task: TaskId, proposed: int) -> int:  # noqa: ARG002 - as in Seeds
        return proposed

    def of_contexts(self, run: RunId, proposed: int) -> int:  # noqa: ARG002 - as in Seeds
        return proposed

    def of_rewards(self, model: Digest, proposed: int) -> int:  # noqa: ARG002 - as in Seeds
        return proposed


class SecretSeeds:
    """Seeds that nobody can compute without this client's secret. A training that is repeated draws the same questions.

    Source: HMAC-SHA256, RFC 2104.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "SecretSeeds(...)"

    def of_training(self, run: RunId, task: TaskId, proposed: int) -> int:  # noqa: ARG002 - as in Seeds
        return self._seed("training", run, task)  # the proposed seed left in would draw anew at each repetition

    def of_contexts(self, run: RunId, proposed: int) -> int:
        return self._seed("contexts", run, proposed)

    def of_rewards(self, model: Digest, proposed: int) -> int:  # noqa: ARG002 - as in Seeds
        return self._seed("rewards", model)

    def _seed(self, *names: str | int) -> int:
        return int.from_bytes(hmac.digest(self._secret, json.dumps(names).encode(), "sha256")[:SEED_BYTES])


def load_seeds(folder: Path, *, shared: bool) -> Seeds:
    """Returns the seeds of the client with this state folder. The first call makes the secret, durably.

    folder: folder of the secret. shared: whether the client uses the coordinator's seeds, as its configuration may say.
    Raises InvalidConfig if the file with the secret has another length, because a guessable secret protects nothing.
    """
    if shared:
        return SharedSeeds()
    make_folder(folder)
    path = folder / "secret"
    if not path.is_file():
        write_durably(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        problems = (
            f"  it has {len(secret)} bytes, not {SECRET_BYTES}; restore it, or delete it: the client makes a new one"
        )
        raise InvalidConfig(file=str(path), problems=problems)
    return SecretSeeds(secret)
