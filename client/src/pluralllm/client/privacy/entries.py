"""The entries of the privacy ledger, the hash chain that joins them, and what follows from them. It touches no file.

A ledger is JSON lines. A charge says what a release tells about one respondent; it is written before any noise is drawn. Released
says that the noised answers of a charge are in their file. Each entry holds the SHA-256 of the line before it.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pluralllm.common.errors.tree import LedgerBroken
from pluralllm.common.words.questions import Question, folded

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Charge(BaseModel):
    """The privacy loss of a release, which counts from the moment that the entry is durable, whatever happens afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["charge"] = "charge"
    sequence: int
    time: str
    population: str
    data: str  # absolute path of the private file
    questions: tuple[Sha256, ...]  # their names, sorted
    rho_of_question: Annotated[float, Field(gt=0)]  # 1 / (2 sigma^2), for a respondent who adds at most 1 to a question
    sigma: float  # standard deviation of the noise on a count, for the partner to read
    previous: Sha256 | Literal[""]


class Released(BaseModel):
    """The noised answers of a charge are in a file. Only from now on any other process may open the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["released"] = "released"
    sequence: int
    time: str
    charge: int  # sequence of the charge
    data: str  # as in the charge
    data_sha256: Sha256  # content of the private file from which the answers are
    file: str  # name of the noised file, in the ledger's folder
    sha256: Sha256  # content of the noised file
    previous: Sha256 | Literal[""]


Entry = Charge | Released
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def question_name(question: Question) -> str:
    """Returns the name of a question in the ledger: the SHA-256 of its text and its sorted options.

    Another order of the options or another width of white space does not make another question: otherwise the same answers could
    be released under several names, and the mean of the noise would tell them.
    """
    texts = [folded(question.text), *sorted(folded(option) for option in question.options)]
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()


def line_of(entry: Entry) -> bytes:
    """Returns the line of an entry, with its end."""
    return json.dumps(entry.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode() + b"\n"


def whole_lines(content: bytes) -> bytes:
    """Returns a ledger's content without a last line that has no end: its writing was interrupted, and nothing followed."""
    return content[: content.rfind(b"\n") + 1]


def entries_of(content: bytes, file: str) -> tuple[Entry, ...]:
    """Returns the entries of a ledger. content: whole lines. file: the ledger's name, for the error.

    Raises LedgerBroken if a line is no entry, or if it does not follow the line before it.
    """
    entries: list[Entry] = []
    previous = ""
    for number, line in enumerate(content.splitlines(keepends=True)):
        try:
            entry = _ENTRY.validate_json(line)
        except ValidationError as error:
            raise LedgerBroken(file=file, problem=f"line {number + 1} is no entry") from error
        if entry.sequence != number or entry.previous != previous or line_of(entry) != line:
            raise LedgerBroken(file=file, problem=f"line {number + 1} does not follow the line before it")
        if isinstance(entry, Released) and charge_of(entries, entry) is None:
            raise LedgerBroken(file=file, problem=f"line {number + 1} has no charge")
        entries.append(entry)
        previous = head_of(line)
    return tuple(entries)


def head_of(line: bytes) -> str:
    """Returns the hash of a line, which the next line holds; "" for no line."""
    return hashlib.sha256(line).hexdigest() if line else ""


def charge_of(entries: Sequence[Entry], released: Released) -> Charge | None:
    """Returns the charge that a release belongs to; None if there is none for the same private file."""
    number = released.charge
    charge = entries[number] if 0 <= number < len(entries) else None
    return charge if isinstance(charge, Charge) and charge.data == released.data else None


def totals_of(entries: Sequence[Entry]) -> dict[str, float]:
    """Returns the rho of each question over all charges, also of those whose release did not happen.

    One ledger belongs to one population: a person may be in every private file of it, so the charges of all files add up.
    """
    totals: dict[str, float] = defaultdict(float)
    for entry in entries:
        if isinstance(entry, Charge):
            for name in entry.questions:
                totals[name] += entry.rho_of_question
    return dict(totals)


def latest_release(entries: Sequence[Entry], data: str) -> Released | None:
    """Returns the newest release of a private file; None if there is none."""
    return next((entry for entry in reversed(entries) if isinstance(entry, Released) and entry.data == data), None)


def open_charge(entries: Sequence[Entry], data: str) -> Charge | None:
    """Returns the newest charge of a private file if its answers were not released; None otherwise."""
    newest = next((entry for entry in reversed(entries) if entry.data == data), None)
    return newest if isinstance(newest, Charge) else None


def population_of(entries: Sequence[Entry]) -> str | None:
    """Returns the population whose respondents the ledger is about; None for an empty ledger."""
    return next((entry.population for entry in entries if isinstance(entry, Charge)), None)
