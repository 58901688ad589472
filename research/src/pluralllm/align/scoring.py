"""Scores a file of questions, preferences or completions for one group, in batches of rows."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralllm.align.answers import check_text
from pluralllm.align.group_reward import GroupReward, identity_of
from pluralllm.align.rollouts import Scored
from pluralllm.client.data.preferences.ballots import UNREADABLE
from pluralllm.client.data.preferences.rows import candidates_of, ranked_pairs
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.predictor.group_predictor import PredictedAnswer
from pluralllm.common.predictor.metrics import Alignment
from pluralllm.common.process.files import is_special, keep_rights, make_folder, publish, storage_errors
from pluralllm.common.text.reading import Unreadable, byte_lines, json_value
from pluralllm.common.words.questions import Question

ROWS_AT_ONCE = 256
SHOWN_PROBLEMS = 3  # different ones, of a file without a row that can be scored
Seen = Callable[[int], None]  # reports progress: bytes of the source that have been scored


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the source file, with the question that it holds.

    A row that cannot be scored has no question; then `problem` gives the reason.
    """

    row: dict[str, Any]
    question: Question | None
    has_shares: bool = False
    problem: str = ""


def score_rows(reward: GroupReward, source: Path, out: Path, seen: Seen) -> dict[str, Any]:
    """Scores each row of `source` and writes the row to `out` with the fields `predicted_shares` and `spreads`.

    A row with a `completion` also gets a `reward`. Returns counts of the rows, and the alignment score if rows hold true shares;
    questions of the context are left out of it, because the predictor has read their answers.
    seen: is called with the number of bytes scored so far.
    Raises InvalidData if the source cannot be read, or if no row of it can be scored, and StorageFull if the disk is full.
    """
    counts = Counter(rows=0, not_scored=0, completions_without_reward=0, rows_of_context=0)
    alignment = Alignment()
    problems = Problems(source)

    def written(lines: Sequence[Line], answers: Sequence[PredictedAnswer | None]) -> Iterator[dict[str, Any]]:
        nonlocal alignment
        rewards, context_ids = _rewards(reward, lines), reward.context_of(reward.only_group)
        for line, answer, scored in zip(lines, answers, rewards, strict=True):
            counts["rows"] += 1
            row = dict(line.row)
            if answer is None or line.question is None:
                counts["not_scored"] += 1
                problems.note(line.problem)
                yield {**row, "predicted_shares": None, "spreads": None, "problem": line.problem}
                continue
            row |= {"predicted_shares": _numbers(answer.shares), "spreads": _numbers(answer.spreads)}
            if identity_of(line.question) in context_ids:
                counts["rows_of_context"] += 1
            elif line.has_shares:
                alignment = alignment.add(answer.shares, line.question.shares, line.question.scale)
            if "completion" in row:
                row["reward"] = None if scored is None else scored.reward
                counts["completions_without_reward"] += scored is None
            yield row

    _rewrite(reward, source, out, seen, written, lambda: problems.check(counts))
    scores = (alignment.score, alignment.score_base2) if alignment.questions else (None, None)
    return {"file": str(out), **counts, "alignment_score": scores[0], "alignment_score_base2": scores[1]}


def write_pairs(reward: GroupReward, source: Path, out: Path, margin: float, every: bool, seen: Seen) -> dict[str, Any]:
    """Writes pairs of options as rows with the fields prompt, chosen and rejected.

    Returns the path of the file, and the numbers of rows, of rows that could not be scored, and of pairs.
    margin: least difference between the predicted shares of the two options of a pair. every: whether all pairs of a
    question's options are compared, not only the best option with the worst.
    seen: is called with the number of bytes scored so far.
    Raises InvalidData if the source cannot be read, or if no row of it can be scored, and StorageFull if the disk is full.
    """
    counts = Counter(rows=0, not_scored=0, pairs=0)
    problems = Problems(source)

    def written(lines: Sequence[Line], answers: Sequence[PredictedAnswer | None]) -> Iterator[dict[str, Any]]:
        for line, answer in zip(lines, answers, strict=True):
            counts["rows"] += 1
            if answer is None or line.question is None:
                counts["not_scored"] += 1
                problems.note(line.problem)
                continue
            for record in ranked_pairs(line.question, answer.shares, margin, every=every):
                counts["pairs"] += 1
                yield record

    _rewrite(reward, source, out, seen, written, lambda: problems.check(counts))
    return {"file": str(out), **counts}


class Problems:
    """The first different problems of a file's rows, for a file in which no row can be scored."""

    def __init__(self, source: Path) -> None:
        self._source, self._shown = source, dict[str, None]()

    def note(self, problem: str) -> None:
        if len(self._shown) < SHOWN_PROBLEMS:
            self._shown[problem] = None

    def check(self, counts: Mapping[str, int]) -> None:
        """Raises InvalidData if no row can be scored: a file of another form would else leave with success and nothing done."""
        if counts["rows"] > counts["not_scored"]:
            return
        what = (
            "  the file has no rows"
            if not counts["rows"]
            else f"  none of {counts['rows']} rows can be scored, such as:"
        )
        raise InvalidData(
            file=str(self._source), problems="\n".join([what, *(f"  {problem}" for problem in self._shown)])
        )


def _rewrite(
    reward: GroupReward,
    source: Path,
    out: Path,
    seen: Seen,
    written: Callable[[Sequence[Line], Sequence[PredictedAnswer | None]], Iterator[dict[str, Any]]],
    check: Callable[[], None],
) -> None:
    """Reads the file `source` in batches of rows, and writes new rows to the file `out`.

    written: gets the rows of a batch and their predicted answers, and yields the rows to write. check: is called when all rows
    are written, and raises an error if they are of no use. If an error occurs, the file `out` stays as it was.
    """
    if out.is_dir() or is_special(out):
        what = "a folder" if out.is_dir() else "a device or a pipe"
        raise InvalidArgument(field="OUT", problem=f"{out} is {what}; give the name of a file")
    temporary = out.with_name(f".{out.name}.part")
    with storage_errors("the scores"):
        make_folder(out.parent, 0o755)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                keep_rights(file.fileno(), out)  # the rows of the source may have true shares
                for lines, done in _batches(source):
                    for row in written(lines, _answers(reward, lines)):
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    seen(done)
            check()
            publish(temporary, out)
        except BaseException:  # Ctrl-C as well
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _answers(reward: GroupReward, lines: Sequence[Line]) -> list[PredictedAnswer | None]:
    group = reward.only_group
    answers = reward.predict([(group, line.question) for line in lines if line.question is not None])
    return [None if line.question is None else answers[group, line.question] for line in lines]


def _rewards(reward: GroupReward, lines: Sequence[Line]) -> list[Scored | None]:
    asked = [line for line in lines if line.question is not None and "completion" in line.row]
    scored = reward.score(
        [line.question.text for line in asked if line.question is not None],
        [line.row["completion"] for line in asked],
        options=[line.question.options for line in asked if line.question is not None],
        scale=[line.question.scale for line in asked if line.question is not None],
    )
    by_line = dict(zip(map(id, asked), scored, strict=True))
    return [by_line.get(id(line)) for line in lines]


def _batches(source: Path) -> Iterator[tuple[list[Line], int]]:
    """Yields batches of rows, each with the number of bytes read so far. Raises InvalidData if the file cannot be read."""
    try:
        lines, done = byte_lines(source), 0
        while raw := list(islice(lines, ROWS_AT_ONCE)):
            done += sum(map(len, raw))
            yield [_line(line) for line in raw if line.strip()], done
    except Unreadable as error:
        raise InvalidData(file=str(source), problems=f"  {error.problem}") from error


def _line(raw: bytes) -> Line:
    try:
        row = json_value(raw)
    except ValueError as error:
        return Line({}, None, problem=f"not JSON ({error}); one object a line")
    if not isinstance(row, dict):
        return Line({}, None, problem="not a JSON object; one object a line")
    try:
        question, has_shares = candidates_of(row)
        if "completion" in row:
            check_text("completion", row["completion"])
    except UNREADABLE as error:
        return Line(row, None, problem=str(error))
    return Line(row, question, has_shares)


def _numbers(values: NDArray[np.floating]) -> list[float]:
    return [value if math.isfinite(value) else 0.0 for value in map(float, values)]
