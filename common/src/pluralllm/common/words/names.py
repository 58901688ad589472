"""Names of resources in messages, logs and specs. A name is a path of ids and numbers (aip.dev/122).

    members/MEMBER
    runs/RUN
    runs/RUN/rounds/NUMBER
    runs/RUN/rounds/NUMBER/tasks/KIND-CLIENT
    runs/RUN/models/VERSION

A resource has exactly one name: numbers have no leading zeros and at most nine digits. In a request, `-` in place of RUN means
the newest run, and `-` in place of VERSION means the run's current model version.
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
    """The kind of work that a task asks of a client: training, evaluating a model version, or scoring rollouts."""

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
    """The resource name of a member, of an invited member, or of a client: members/MEMBER."""

    member: ClientId

    def __str__(self) -> str:
        return f"members/{self.member}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a resource name. Raises InvalidArgument if the text is not members/MEMBER."""
        (member,) = _pieces(MEMBER_NAME, text, "name", "members/NAME")
        return cls(ClientId(member))


@dataclass(frozen=True, slots=True)
class RunName:
    """The resource name of a run: runs/RUN."""

    run: RunId  # NEWEST in some requests, never in an answer

    def __str__(self) -> str:
        return f"runs/{self.run}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a resource name. Raises InvalidArgument if the text is not runs/RUN."""
        (run,) = _pieces(RUN_NAME, text, "name", "runs/RUN")
        return cls(RunId(run))


@dataclass(frozen=True, slots=True)
class RoundName:
    """The resource name of a round: runs/RUN/rounds/NUMBER."""

    run: RunId  # NEWEST in some requests
    number: RoundNumber

    def __str__(self) -> str:
        return f"runs/{self.run}/rounds/{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a resource name. Raises InvalidArgument if the text is not runs/RUN/rounds/NUMBER."""
        run, number = _pieces(ROUND_NAME, text, "name", "runs/RUN/rounds/NUMBER")
        return cls(RunId(run), RoundNumber(int(number)))


@dataclass(frozen=True, slots=True)
class ModelName:
    """The resource name of a model version: runs/RUN/models/VERSION."""

    run: RunId  # NEWEST in some requests
    version: ModelVersion | None  # None is the run's current version, in some requests

    def __str__(self) -> str:
        return f"runs/{self.run}/models/{CURRENT if self.version is None else self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a resource name. Raises InvalidArgument if the text is not runs/RUN/models/VERSION."""
        run, version = _pieces(MODEL_NAME, text, "name", "runs/RUN/models/NUMBER")
        return cls(RunId(run), None if version == CURRENT else ModelVersion(int(version)))

    @classmethod
    def parse_short(cls, text: str) -> Self:
        """Reads RUN or RUN@VERSION, the short forms that people type in commands.

        RUN alone means the run's current version. Raises InvalidArgument if VERSION is not a number of at most 9 digits.
        """
        run, _, version = text.partition("@")
        if version not in ("", CURRENT) and re.fullmatch("[0-9]{1,9}", version) is None:
            raise InvalidArgument(field="version", problem=f"is {version!r}, must be a number of at most 9 digits")
        number = None if version in ("", CURRENT) else ModelVersion(int(version))
        return cls(RunId(run), number)


@dataclass(frozen=True, slots=True)
class TaskName:
    """The resource name of a task. A task that is handed out again keeps its name, because the work is the same."""

    run: RunId
    round: RoundNumber
    kind: TaskKind
    client: ClientId

    def __str__(self) -> str:
        return f"runs/{self.run}/rounds/{self.round}/tasks/{self.kind}-{self.client}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a resource name. Raises InvalidArgument if the text is not runs/RUN/rounds/NUMBER/tasks/KIND-CLIENT."""
        run, number, kind, client = _pieces(TASK_NAME, text, "task", "runs/RUN/rounds/N/tasks/KIND-CLIENT")
        return cls(RunId(run), RoundNumber(int(number)), TaskKind(kind), ClientId(client))


def _pieces(pattern: re.Pattern[str], text: str, field: str, allowed: str) -> tuple[str, ...]:
    """Returns the variable parts of a resource name: the groups of `pattern`.

    field: the request's field that has the name. allowed: the form that the name must have. Raises InvalidArgument, which names
    the field and the form, if the pattern does not match.
    """
    if (match := pattern.fullmatch(text)) is None:
        raise InvalidArgument(field=field, problem=f"{text!r} is not {allowed}")
    return match.groups()
