"""The report of an import: what was read, what was used, and what was left out and why. It stays on the partner's machine."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralllm.common.process.files import write_private

MAX_NOTES_SHOWN = 8
SCHEMA = "pluralllm.import-report/1"


@dataclass(frozen=True, slots=True)
class QuestionReport:
    """The respondents behind one imported question."""

    question: str
    respondents: int
    smallest_cell: (
        int  # fewest answers to one of its options, options that nobody has chosen left out; 0 if nobody answered
    )


@dataclass(slots=True)
class ImportReport:
    """The counts of one import. `dropped` counts answers by reason; an answer is a row, or a cell of a row of a wide file."""

    rows: int = 0
    answers: int = 0  # read; the sum of `used` and of all of `dropped`
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unused_columns: list[str] = field(default_factory=list)
    questions: list[QuestionReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Returns the report as lines for the terminal. No line has a question or an answer."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        lines = [f"{self.rows} rows read, {self.used} answers used, {self.dropped.total()} left out"]
        lines[0] += f" ({reasons})" if reasons else ""
        answered = sorted(question.respondents for question in self.questions if question.respondents)
        if answered:
            least = min(question.smallest_cell for question in self.questions if question.respondents)
            middle = answered[len(answered) // 2]
            lines.append(
                f"respondents per question: {answered[0]} to {answered[-1]}, median {middle}; smallest cell: {least}"
            )
        if self.unused_columns:
            lines.append(f"columns not used: {', '.join(self.unused_columns)}")
        rest = len(self.notes) - MAX_NOTES_SHOWN
        more = [f"and {rest} more notes; --report FILE has them all"] if rest > 0 else []
        return lines + self.notes[:MAX_NOTES_SHOWN] + more

    def to_json(self) -> dict[str, Any]:
        """Returns the report as an object for a JSON file, with the respondents of each question."""
        answered = [question.smallest_cell for question in self.questions if question.respondents]
        return {
            "schema": SCHEMA,
            "rows": self.rows,
            "answers": self.answers,
            "used": self.used,
            "dropped": dict(sorted(self.dropped.items())),
            "unused_columns": self.unused_columns,
            "smallest_cell": min(answered, default=0),
            "questions": [
                {"question": one.question, "respondents": one.respondents, "smallest_cell": one.smallest_cell}
                for one in self.questions
            ],
            "notes": self.notes,
        }


def write_report(path: Path, report: ImportReport) -> None:
    """Writes a report as a JSON file that only its owner can read, because it has numbers of respondents."""
    write_private(path, json.dumps(report.to_json(), ensure_ascii=False, indent=1).encode() + b"\n")
