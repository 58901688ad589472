"""Public survey layouts to a group's canonical questions."""

import ast
import csv
import difflib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

MAX_NAMES_TOLD = 8


def import_globalopinionqa(path: Path, group: str) -> tuple[Question, ...]:
    """One country of `Anthropic/llm_global_opinions` (arXiv 2306.16388) in its CSV layout.

    Rows are dropped when question or options are empty or the country's answers are empty or all zero. The same question with
    the same options, from several waves, becomes one: the mean of its distributions. Raises InvalidData.
    """
    waves: dict[tuple[str, tuple[str, ...]], list[list[float]]] = {}
    groups: set[str] = set()
    for line, row in _csv(path, {"question", "selections", "options"}):
        try:
            by_group, options = _selections(row["selections"]), ast.literal_eval(row["options"])
        except (ValueError, SyntaxError) as error:
            raise InvalidData(
                file=str(path), problems=f"  line {line}: selections or options cannot be read: {error}"
            ) from error
        groups |= by_group.keys()
        numbers = by_group.get(group)
        text, labels = row["question"].strip(), tuple(str(option).strip() for option in options)
        usable = text and all(labels) and len(labels) >= 2 and len(set(labels)) == len(labels)
        if not usable or not numbers or len(numbers) != len(labels) or sum(numbers) <= 0:
            continue
        waves.setdefault((text, labels), []).append([number / sum(numbers) for number in numbers])
    if group not in groups:
        raise _unknown(path, "group", group, groups)
    return tuple(_question(text, labels, _mean(found)) for (text, labels), found in waves.items())


def import_opinionqa(folder: Path, attribute: str, value: str) -> tuple[Question, ...]:
    """One demographic group of OpinionQA (Santurkar et al. 2023, arXiv 2303.17548), layout `human_resp/<wave>/`.

    Each wave has info.csv (key, question, references: a list of options; optional option_ordinal) and responses.csv (a
    column for each key, attribute columns such as POLPARTY, weights in WEIGHT_*). Raises InvalidData.
    """
    infos = sorted(folder.glob("*/info.csv")) or sorted(folder.glob("info.csv"))
    if not infos:
        raise InvalidData(
            file=str(folder), problems="  no info.csv here or one folder below; give the human_resp folder"
        )
    questions: dict[str, Question] = {}
    values: set[str] = set()
    for info in infos:
        answers = list(_csv(info.with_name("responses.csv"), {attribute}))
        values |= {row[attribute] for _, row in answers}
        mine = [row for _, row in answers if row[attribute] == value]
        weight_key = next((key for key in (mine[0] if mine else {}) if key.startswith("WEIGHT")), None)
        for line, row in _csv(info, {"key", "question", "references"}):
            try:
                options = tuple(str(option).strip() for option in ast.literal_eval(row["references"]))
                ordinal = ast.literal_eval(row["option_ordinal"]) if row.get("option_ordinal") else None
            except (ValueError, SyntaxError) as error:
                raise InvalidData(file=str(info), problems=f"  line {line}: options cannot be read: {error}") from error
            counts: Counter[str] = Counter()
            for answer in mine:
                weight = float(answer[weight_key] or 0) if weight_key else 1.0
                counts[answer.get(row["key"], "").strip()] += weight  # type: ignore[assignment]
            numbers = [float(counts[option]) for option in options]
            if len(set(options)) < len(options) or len(options) < 2 or sum(numbers) <= 0:
                continue
            scale = _ordinal_scale(ordinal, options)
            question = _question(row["question"].strip(), options, [number / sum(numbers) for number in numbers], scale)
            questions.setdefault(question.id, question)
    if value not in values:
        raise _unknown(folder, attribute, value, values)
    return tuple(questions.values())


def import_responses(path: Path, group: str | None, options: Path | None) -> tuple[Question, ...]:
    """One row for each respondent and question (CSV, JSONL or Parquet): question, answer and, if wanted, group, weight.

    Options stand in the order of first appearance, or as `options` says (JSON object: question -> list of options). Answers
    that are empty are left out. Raises InvalidData.
    """
    rows = table_rows(path, {"question", "answer"})
    given: dict[str, list[str]] = json.loads(options.read_text(encoding="utf-8")) if options is not None else {}
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    groups: set[str] = set()
    problems: list[str] = []
    for line, row in rows:
        groups.add(str(row.get("group") or ""))
        text, answer = str(row.get("question") or "").strip(), str(row.get("answer") or "").strip()
        if not text or not answer or (group is not None and str(row.get("group") or "") != group):
            continue
        weight = _weight(row.get("weight"))
        if weight is None:
            problems.append(f"  line {line}: weight {row.get('weight')!r} is not a number of 0 or more")
        elif text in given and answer not in given[text]:
            problems.append(f"  line {line}: answer {answer!r} is not among the options given for its question")
        else:
            counts[text][answer] = counts[text].get(answer, 0.0) + weight
    if problems:
        raise InvalidData(file=str(path), problems="\n".join(problems[:20]))
    if group is not None and group not in groups:
        raise _unknown(path, "group", group, groups)
    found = []
    for text, by_answer in counts.items():
        labels = tuple(given.get(text, by_answer))
        numbers = [by_answer.get(label, 0.0) for label in labels]
        if len(labels) >= 2 and sum(numbers) > 0:
            found.append(_question(text, labels, [number / sum(numbers) for number in numbers]))
    return tuple(found)


def _question(
    text: str, options: tuple[str, ...], shares: Sequence[float], scale: tuple[float | None, ...] | None = None
) -> Question:
    total = math.fsum(shares)
    return Question(text, options, tuple(share / total for share in shares), scale)


def _mean(distributions: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(distributions) for column in zip(*distributions, strict=True)]


def _selections(text: str) -> dict[str, list[float]]:
    """The text of a Python defaultdict: what stands between the outer braces is a literal."""
    found = ast.literal_eval(text[text.index("{") : text.rindex("}") + 1])
    return {str(name): [float(number) for number in numbers] for name, numbers in found.items()}


def _ordinal_scale(ordinal: Any, options: tuple[str, ...]) -> tuple[float | None, ...] | None:
    """Positions of the options; OpinionQA lists fewer of them than options when the last ones (refused) are off the scale."""
    if not isinstance(ordinal, list) or not ordinal:
        return None
    positions = [float(position) for position in ordinal[: len(options)]]
    return (*positions, *[None] * (len(options) - len(positions)))


def _weight(given: Any) -> float | None:
    if given in (None, ""):
        return 1.0
    try:
        weight = float(given)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None


def table_rows(path: Path, columns: Collection[str] = ()) -> Iterable[tuple[int, dict[str, Any]]]:
    """Numbered rows of CSV (which must have these columns), Parquet or JSONL. Raises InvalidData."""
    if path.suffix == ".csv":
        return list(_csv(path, columns))
    try:
        if path.suffix == ".parquet":
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise InvalidData(file=str(path), problems=f"  it cannot be read: {error}") from error
    return list(enumerate(rows, 1))


def _csv(path: Path, wanted: Collection[str]) -> Iterable[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            absent = sorted(set(wanted) - set(reader.fieldnames or ()))
            if absent:
                has = ", ".join(reader.fieldnames or ())
                raise InvalidData(file=str(path), problems=f"  no column {', '.join(absent)}; it has: {has}")
            return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InvalidData(file=str(path), problems=f"  it cannot be read: {error.strerror}") from error


def _unknown(path: Path, what: str, name: str, names: set[str]) -> InvalidData:
    near = (
        difflib.get_close_matches(name, sorted(names), n=MAX_NAMES_TOLD, cutoff=0.4) or sorted(names)[:MAX_NAMES_TOLD]
    )
    return InvalidData(file=str(path), problems=f"  no {what} {name!r}; near: {', '.join(near)} ({len(names)} in all)")
