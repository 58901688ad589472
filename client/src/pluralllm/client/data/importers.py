"""Imports the questions of one group, with the group's answers, from the file layouts of public surveys.

One respondent adds at most 1 to the counts of one question, if an importer sees single respondents. Counts of respondents with
weights are kept only if a largest weight is stated: heavier weights are lowered to it, and all are divided by it.
"""

import ast
import difflib
import fnmatch
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.import_report import ImportReport
from pluralllm.client.data.survey_texts import text_of, weight_names, weight_of
from pluralllm.client.data.tables import csv_rows
from pluralllm.client.data.tally import Answer, Weights, tally
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

MAX_NAMES_SHOWN = 8
# What reading a field with a Python literal, and using its value as a list, can raise.
UNREADABLE_LITERAL = (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError)


def import_globalopinionqa(
    path: Path, group: str, respondents: int | None = None, report: ImportReport | None = None
) -> tuple[Question, ...]:
    """Imports one country (`group`) of the data set `Anthropic/llm_global_opinions` (arXiv 2306.16388) from its CSV file.

    respondents: number of people behind each question, an assumption: the data set does not have it. None: the result has none.
    A row is left out if its question or an option is empty, or if the country has no answers to it. A row is also left out if
    it has fewer than two options, or if two of its options are equal. If several survey waves ask a question with the same
    options, the result has one such question. Its shares are the mean of the waves' shares.
    report: what was used and left out is added to it.
    Raises InvalidData if the file cannot be read, has another layout, or does not name the group.
    """
    questions = import_globalopinionqa_groups(path, (group,), report)[group]
    if respondents is None:
        return questions
    return tuple(CountedQuestion(q.text, q.options, q.shares, respondents=respondents) for q in questions)


def import_globalopinionqa_groups(
    path: Path, countries: Sequence[str], report: ImportReport | None = None
) -> dict[str, tuple[Question, ...]]:
    """Imports several countries from one reading of the file, by name; each as `import_globalopinionqa` imports it.

    report: one answer of it is a row of the file for one country.
    Raises InvalidData as `import_globalopinionqa` does; if several countries are unknown, the error names the first of them.
    """
    waves: dict[str, dict[tuple[str, tuple[str, ...]], list[list[float]]]] = {name: {} for name in countries}
    groups: set[str] = set()
    report = report or ImportReport()
    for line, row in csv_rows(path, {"question", "selections", "options"}):
        try:
            by_group, options = _selections(row["selections"]), ast.literal_eval(row["options"])
            labels = tuple(str(option).strip() for option in options)
        except UNREADABLE_LITERAL as error:
            raise InvalidData(
                file=str(path), problems=f"  line {line}: selections or options cannot be read: {error}"
            ) from error
        groups |= by_group.keys()
        report.rows += 1
        report.answers += len(countries)
        text = row["question"].strip()
        if not (text and all(labels) and len(labels) >= 2 and len(set(labels)) == len(labels)):
            report.dropped["rows without a question or two different options"] += len(countries)
            continue
        for name, own in waves.items():
            numbers = by_group.get(name)
            if numbers and len(numbers) == len(labels) and sum(numbers) > 0:
                own.setdefault((text, labels), []).append([number / sum(numbers) for number in numbers])
            else:
                report.dropped["rows without answers of the group"] += 1
    if unknown := [name for name in countries if name not in groups]:
        raise unknown_name(path, "group", unknown[0], groups)
    report.used = report.answers - report.dropped.total()
    if several := sum(len(asked) > 1 for own in waves.values() for asked in own.values()):
        report.notes.append(f"{several} questions were asked in several waves; their shares are the mean of the waves")
    return {
        name: tuple(_question(text, labels, _mean(distributions)) for (text, labels), distributions in own.items())
        for name, own in waves.items()
    }


def import_opinionqa(
    folder: Path,
    attribute: str,
    value: str,
    max_weight: float | None = None,
    weight: str | None = None,
    report: ImportReport | None = None,
) -> tuple[CountedQuestion, ...]:
    """Imports one demographic group of the data set OpinionQA (Santurkar et al. 2023, arXiv 2303.17548).

    folder: the folder human_resp, or one survey wave in it. Each wave has two files. info.csv has the columns key, question,
    references (a list of options) and perhaps option_ordinal. responses.csv has one column for each key, columns for attributes
    such as POLPARTY, and perhaps weights in a column WEIGHT_*.
    attribute: name of a column in responses.csv. value: only rows with this value in that column count.
    max_weight: heavier weights are lowered to it; None leaves them as they are, and a wave with weights then has no counts.
    weight: name of the column of weights, a pattern with *; empty: no weights. None: the column WEIGHT*, if there is only one.
    report: what was used and left out is added to it; one answer of it is a field of a respondent of the group.
    A question without an answer is left out, unless its counts are kept.
    Raises InvalidData if a file cannot be read, has another layout, or if no row has this value.
    """
    infos = sorted(folder.glob("*/info.csv")) or sorted(folder.glob("info.csv"))
    if not infos:
        raise InvalidData(
            file=str(folder), problems="  no info.csv here or one folder below; give the human_resp folder"
        )
    questions: dict[str, CountedQuestion] = {}
    values: set[str] = set()
    report = report or ImportReport()
    for info in infos:
        responses = info.with_name("responses.csv")
        answers = list(csv_rows(responses, {attribute}))
        values |= {row[attribute] for _, row in answers}
        group_rows = [(line, row) for line, row in answers if row[attribute] == value]
        asked = list(csv_rows(info, {"key", "question", "references"}))
        columns = set(answers[0][1] if answers else {}) - {row["key"] for _, row in asked} - {attribute}
        weight_key = _weight_column(responses, sorted(columns), weight)
        report.rows += len(group_rows)
        report.notes += [f"weights of {info.parent.name}: column {weight_key}"] if weight_key else []
        weights = [
            _response_weight(responses, line, row[weight_key]) if weight_key else 1.0 for line, row in group_rows
        ]
        for line, row in asked:
            options, scale = _options_and_scale(info, line, row)
            if len(set(options)) < len(options) or len(options) < 2:
                report.notes.append(f"{row['key']} is left out: it has fewer than two options, or two that are equal")
                continue
            by_text = {text_of(option): option for option in options}
            fields = [text_of(answer.get(row["key"])) for _, answer in group_rows]
            given_answers = [
                Answer(by_text[text], weight) for text, weight in zip(fields, weights, strict=True) if text in by_text
            ]
            _count_fields(report, fields, by_text)
            bound = Weights(weight_key is not None, max_weight)
            question = tally(row["question"].strip(), options, given_answers, bound, scale)
            # A later wave replaces a question that nobody of an earlier wave was asked.
            if (question.counts or question.respondents) and not _respondents(questions.get(question.id)):
                questions[question.id] = question
            elif question.respondents:
                report.notes.append(f"{row['key']} is left out: an earlier wave has the same question and options")
    if value not in values:
        raise unknown_name(folder, attribute, value, values)
    return tuple(questions.values())


def _options_and_scale(
    info: Path, line: int, row: dict[str, str]
) -> tuple[tuple[str, ...], tuple[float | None, ...] | None]:
    """Returns the options of a question of OpinionQA, and their positions. Raises InvalidData, which names the line."""
    try:
        options = tuple(str(option).strip() for option in ast.literal_eval(row["references"]))
        ordinal = ast.literal_eval(row["option_ordinal"]) if row.get("option_ordinal") else None
        return options, _ordinal_scale(ordinal, options)
    except UNREADABLE_LITERAL as error:
        raise InvalidData(file=str(info), problems=f"  line {line}: options cannot be read: {error}") from error


def _respondents(question: CountedQuestion | None) -> int:
    """Returns the number of respondents of a question; 0 for no question."""
    return 0 if question is None else question.respondents or 0


def _question(
    text: str, options: tuple[str, ...], shares: Sequence[float], scale: tuple[float | None, ...] | None = None
) -> Question:
    """Returns a question whose shares are scaled to the sum 1."""
    total = math.fsum(shares)
    return Question(text, options, tuple(share / total for share in shares), scale)


def _mean(distributions: Sequence[Sequence[float]]) -> list[float]:
    """Returns the mean of several distributions over the same options, option by option."""
    return [sum(column) / len(distributions) for column in zip(*distributions, strict=True)]


def _selections(text: str) -> dict[str, list[float]]:
    """Parses the column `selections`. Returns one list for each country: the share of respondents who chose each option.

    The data set writes the column as the text of a Python defaultdict. The text between the outer braces is a dict literal.
    """
    selections = ast.literal_eval(text[text.index("{") : text.rindex("}") + 1])
    return {str(name): [float(number) for number in numbers] for name, numbers in selections.items()}


def _ordinal_scale(ordinal: Any, options: tuple[str, ...]) -> tuple[float | None, ...] | None:
    """Returns the position of each option on the question's scale, or None if the question has no scale.

    OpinionQA lists fewer positions than options if the last options (such as "refused") are off the scale. Such options get the
    position None.
    """
    if not isinstance(ordinal, list) or not ordinal:
        return None
    positions = [float(position) for position in ordinal[: len(options)]]
    return (*positions, *[None] * (len(options) - len(positions)))


def _count_fields(report: ImportReport, fields: Sequence[str], options: Collection[str]) -> None:
    """Counts the fields of one question in the report: those that are used, empty, or none of the options."""
    used = sum(text in options for text in fields)
    report.answers += len(fields)
    report.used += used
    if empty := fields.count(""):
        report.dropped["missing or empty"] += empty
    if others := len(fields) - used - empty:
        report.dropped["not among the options of the question"] += others


def _weight_column(path: Path, columns: Sequence[str], pattern: str | None) -> str | None:
    """Returns the column of weights in a file of OpinionQA, or None. Raises InvalidData if several columns may be it, or none is.

    columns: names of columns that hold no answers.
    pattern: as the partner states it; None if nothing is stated, and empty for no weights.
    """
    if pattern == "" or not columns:
        return None
    alike = (
        weight_names(columns) if pattern is None else [name for name in columns if fnmatch.fnmatchcase(name, pattern)]
    )
    if len(alike) == 1 and (pattern is not None or alike[0].startswith("WEIGHT")):
        return alike[0]
    if not alike and pattern is None:
        return None
    found = f"columns {', '.join(alike)} may hold" if alike else f"no column {pattern!r}, which is to hold"
    raise InvalidData(
        file=str(path), problems=f"  {found} the weights of respondents; say --weight COLUMN, or --no-weight"
    )


def _response_weight(path: Path, line: int, text: str) -> float:
    """Returns the weight of a respondent of OpinionQA; 0 for an empty field. Raises InvalidData if it is no weight."""
    weight = weight_of(text.strip() or 0)
    if weight is None:
        raise InvalidData(file=str(path), problems=f"  line {line}: weight {text!r} is not a number of 0 or more")
    return weight


def unknown_name(path: Path, what: str, name: str, names: set[str]) -> InvalidData:
    """Returns the error for a name that does not occur in the file. The error lists similar names that occur.

    what: the kind of name, such as "group". names: all names that occur.
    """
    near = (
        difflib.get_close_matches(name, sorted(names), n=MAX_NAMES_SHOWN, cutoff=0.4) or sorted(names)[:MAX_NAMES_SHOWN]
    )
    return InvalidData(file=str(path), problems=f"  no {what} {name!r}; near: {', '.join(near)} ({len(names)} in all)")
