"""Names of resources in messages, logs and specs: paths of ids and numbers (aip.dev/122).

    members/MEMBER
    runs/RUN
    runs/RUN/rounds/NUMBER
    runs/RUN/rounds/NUMBER/tasks/KIND-CLIENT
    runs/RUN/models/VERSION

A resource has exactly one name: numbers have no leading zeros and at most nine digits. A request may write `-` for the newest
run or for a run's current model version.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.ids import ID, ClientId, ModelVersion, RoundNumber, RunId

NUMBER = "0|[1-9][0-9]{0,8}"
NEWEST = RunId("-")  # in a request, the newest run
CURRENT = "-"  # in a request, the current version of a run


class TaskKind(StrEnum):
    """The work that a task asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    REWARD = "reward"


MEMBER_NAME = re.compile(f"members/({ID})")
RUN_NAME = re.compile(f"runs/({ID}|{NEWEST})")
ROUND_NAME = re.compile(f"{RUN_NAME.pattern}/rounds/({NUMBER})")
MODEL_NAME = re.compile(f"{RUN_NAME.pattern}/models/({NUMBER}|{CURRENT})")
TASK_NAME = re.compile(f"runs/({ID})/rounds/({NUMBER})/tasks/({'|'.join(TaskKind)})-({ID})")
# For specs: the name must mean one version for ever, so that no `-` is allowed.
FIXED_MODEL_PATTERN = f"^runs/{ID}/models/({NUMBER})$"


@dataclass(frozen=True, slots=True)
class MemberName:
    """The name of a member, an invited member or a client."""

    member: ClientId

    def __str__(self) -> str:
        return f"members/{self.member}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a whole name. Raises InvalidArgument."""
        (member,) = _pieces(MEMBER_NAME, text, "name", "members/NAME")
        return cls(ClientId(member))


@dataclass(frozen=True, slots=True)
class RunName:
    """The name of a run."""

    run: RunId  # NEWEST in some requests, never in an answer

    def __str__(self) -> str:
        return f"runs/{self.run}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a whole name. Raises InvalidArgument."""
        (run,) = _pieces(RUN_NAME, text, "name", "runs/RUN")
        return cls(RunId(run))


@dataclass(frozen=True, slots=True)
class RoundName:
    """The name of a round."""

    run: RunId  # NEWEST in some requests
    number: RoundNumber

    def __str__(self) -> str:
        return f"runs/{self.run}/rounds/{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a whole name. Raises InvalidArgument."""
        run, number = _pieces(ROUND_NAME, text, "name", "runs/RUN/rounds/NUMBER")
        return cls(RunId(run), RoundNumber(int(number)))


@dataclass(frozen=True, slots=True)
class ModelName:
    """The name of a model version."""

    run: RunId  # NEWEST in some requests
    version: ModelVersion | None  # None is the run's current version, in some requests

    def __str__(self) -> str:
        return f"runs/{self.run}/models/{CURRENT if self.version is None else self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a whole name. Raises InvalidArgument."""
        run, version = _pieces(MODEL_NAME, text, "name", "runs/RUN/models/NUMBER")
        return cls(RunId(run), None if version == CURRENT else ModelVersion(int(version)))

    @classmethod
    def parse_short(cls, text: str) -> Self:
        """Reads RUN or RUN@VERSION, the forms that people type. Raises InvalidArgument."""
        run, _, version = text.partition("@")
        if version not in ("", CURRENT) and re.fullmatch("[0-9]{1,9}", version) is None:
            raise InvalidArgument(field="version", problem=f"is {version!r}, must be a number of at most 9 digits")
        number = None if version in ("", CURRENT) else ModelVersion(int(version))
        return cls(RunId(run), number)


@dataclass(frozen=True, slots=True)
class TaskName:
    """The name of a task: the same name is the same work, however often it is handed out."""

    run: RunId
    round: RoundNumber
    kind: TaskKind
    client: ClientId

    def __str__(self) -> str:
        return f"runs/{self.run}/rounds/{self.round}/tasks/{self.kind}-{self.client}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a whole name. Raises InvalidArgument."""
        run, number, kind, client = _pieces(TASK_NAME, text, "task", "runs/RUN/rounds/N/tasks/KIND-CLIENT")
        return cls(RunId(run), RoundNumber(int(number)), TaskKind(kind), ClientId(client))


def _pieces(pattern: re.Pattern[str], text: str, field: str, allowed: str) -> tuple[str, ...]:
    """Returns the variable pieces of a name."""
    if (match := pattern.fullmatch(text)) is None:
        raise InvalidArgument(field=field, problem=f"{text!r} is not {allowed}")
    return match.groups()
