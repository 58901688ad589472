"""Imports the questions of one group, with the group's answers, from the file layouts of public surveys.

One respondent adds at most 1 to the counts of one question, if an importer sees single respondents. Counts of respondents with
weights are kept only if a largest weight is stated: heavier weights are lowered to it, and all are divided by it.
"""

import ast
import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralllm.client.data.codebook import listed_options
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.tables import csv_rows, table_rows
from pluralllm.client.data.tally import Answer, Weights, tally
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.words.questions import Question

MAX_NAMES_SHOWN = 8
# What reading a field with a Python literal, and using its value as a list, can raise.
UNREADABLE_LITERAL = (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError)


def import_globalopinionqa(path: Path, group: str, respondents: int | None = None) -> tuple[Question, ...]:
    """Imports one country (`group`) of the data set `Anthropic/llm_global_opinions` (arXiv 2306.16388) from its CSV file.

    respondents: number of people behind each question, an assumption: the data set does not have it. None: the result has none.
    A row is left out if its question or an option is empty, or if the country has no answers to it. A row is also left out if
    it has fewer than two options, or if two of its options are equal. If several survey waves ask a question with the same
    options, the result has one such question. Its shares are the mean of the waves' shares.
    Raises InvalidData if the file cannot be read, has another layout, or does not name the group.
    """
    questions = import_globalopinionqa_groups(path, (group,))[group]
    if respondents is None:
        return questions
    return tuple(CountedQuestion(q.text, q.options, q.shares, respondents=respondents) for q in questions)


def import_globalopinionqa_groups(path: Path, countries: Sequence[str]) -> dict[str, tuple[Question, ...]]:
    """Imports several countries from one reading of the file, by name; each as `import_globalopinionqa` imports it.

    Raises InvalidData as `import_globalopinionqa` does; if several countries are unknown, the error names the first of them.
    """
    waves: dict[str, dict[tuple[str, tuple[str, ...]], list[list[float]]]] = {name: {} for name in countries}
    groups: set[str] = set()
    for line, row in csv_rows(path, {"question", "selections", "options"}):
        try:
            by_group, options = _selections(row["selections"]), ast.literal_eval(row["options"])
            labels = tuple(str(option).strip() for option in options)
        except UNREADABLE_LITERAL as error:
            raise InvalidData(
                file=str(path), problems=f"  line {line}: selections or options cannot be read: {error}"
            ) from error
        groups |= by_group.keys()
        text = row["question"].strip()
        if not (text and all(labels) and len(labels) >= 2 and len(set(labels)) == len(labels)):
            continue
        for name, own in waves.items():
            numbers = by_group.get(name)
            if numbers and len(numbers) == len(labels) and sum(numbers) > 0:
                own.setdefault((text, labels), []).append([number / sum(numbers) for number in numbers])
    if unknown := [name for name in countries if name not in groups]:
        raise _unknown(path, "group", unknown[0], groups)
    return {
        name: tuple(_question(text, labels, _mean(distributions)) for (text, labels), distributions in own.items())
        for name, own in waves.items()
    }


def import_opinionqa(
    folder: Path, attribute: str, value: str, max_weight: float | None = None
) -> tuple[CountedQuestion, ...]:
    """Imports one demographic group of the data set OpinionQA (Santurkar et al. 2023, arXiv 2303.17548).

    folder: the folder human_resp, or one survey wave in it. Each wave has two files. info.csv has the columns key, question,
    references (a list of options) and perhaps option_ordinal. responses.csv has one column for each key, columns for attributes
    such as POLPARTY, and perhaps weights in a column WEIGHT_*.
    attribute: name of a column in responses.csv. value: only rows with this value in that column count.
    max_weight: heavier weights are lowered to it; None leaves them as they are, and a wave with weights then has no counts.
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
    for info in infos:
        responses = info.with_name("responses.csv")
        answers = list(csv_rows(responses, {attribute}))
        values |= {row[attribute] for _, row in answers}
        group_rows = [(line, row) for line, row in answers if row[attribute] == value]
        weight_key = next((key for key in (group_rows[0][1] if group_rows else {}) if key.startswith("WEIGHT")), None)
        weights = [
            _response_weight(responses, line, row[weight_key]) if weight_key else 1.0 for line, row in group_rows
        ]
        for line, row in csv_rows(info, {"key", "question", "references"}):
            try:
                options = tuple(str(option).strip() for option in ast.literal_eval(row["references"]))
                ordinal = ast.literal_eval(row["option_ordinal"]) if row.get("option_ordinal") else None
                scale = _ordinal_scale(ordinal, options)
            except UNREADABLE_LITERAL as error:
                raise InvalidData(file=str(info), problems=f"  line {line}: options cannot be read: {error}") from error
            if len(set(options)) < len(options) or len(options) < 2:
                continue
            given_answers = [
                Answer(answer[row["key"]].strip(), weight)
                for (_, answer), weight in zip(group_rows, weights, strict=True)
                if answer.get(row["key"], "").strip() in options
            ]
            bound = Weights(weight_key is not None, max_weight)
            question = tally(row["question"].strip(), options, given_answers, bound, scale)
            # A later wave replaces a question that nobody of an earlier wave was asked.
            if (question.counts or question.respondents) and not _respondents(questions.get(question.id)):
                questions[question.id] = question
    if value not in values:
        raise _unknown(folder, attribute, value, values)
    return tuple(questions.values())


@dataclass(frozen=True, slots=True)
class Responses:
    """The questions that an import has counted from single answers."""

    questions: tuple[CountedQuestion, ...]
    most_answered: int  # the most questions that one respondent has answered; 0: no row names its respondent


def import_responses(
    path: Path, group: str | None, options: Path | None, max_weight: float | None = None
) -> tuple[CountedQuestion, ...]:
    """Returns the questions of `count_responses`."""
    return count_responses(path, group, options, max_weight).questions


def count_responses(path: Path, group: str | None, options: Path | None, max_weight: float | None = None) -> Responses:
    """Imports single answers (one row for each respondent and question), and counts them for each question.

    path: CSV, JSONL or Parquet with the fields question and answer, and perhaps the fields group, weight and respondent. Several
    answers of one respondent to a question share the respondent's weight. Without the field respondent, each row counts as the
    answer of another respondent.
    group: only rows of this group count. None means that all rows count.
    options: JSON file with an object that maps each question to its list of options. The result has all these questions, in
    this order, also those that nobody has answered. If it is None, the options of a question are its answers in order of their
    first appearance.
    max_weight: heavier weights are lowered to it; None leaves them as they are. Rows with weights give counts only if it is set.
    Rows with an empty answer are left out.
    Raises InvalidData if a file cannot be read, if a row's answer or weight is not allowed, or if no row has this group.
    """
    rows = table_rows(path, {"question", "answer"})
    of_question = {} if options is None else listed_options(options)
    answers: dict[str, list[Answer]] = {text: [] for text in of_question}
    groups: set[str] = set()
    problems: list[str] = []
    has_weights = False
    for line, row in rows:
        groups.add(str(row.get("group") or ""))
        text, option = str(row.get("question") or "").strip(), str(row.get("answer") or "").strip()
        if not text or not option or (group is not None and str(row.get("group") or "") != group):
            continue
        weight, has_weights = _weight(row.get("weight")), has_weights or row.get("weight") not in (None, "")
        if weight is None:
            problems.append(f"  line {line}: weight {row.get('weight')!r} is not a number of 0 or more")
        elif text in of_question and option not in of_question[text]:
            problems.append(f"  line {line}: answer {option!r} is not among the options given for its question")
        else:
            answers.setdefault(text, []).append(Answer(option, weight, _text_of(row.get("respondent"))))
    if problems:
        raise InvalidData(file=str(path), problems="\n".join(problems[:20]))
    if group is not None and group not in groups:
        raise _unknown(path, "group", group, groups)
    # A stated bound counts, also where no row has a weight: whether one has may depend on a single respondent.
    bound, questions, answered = Weights(has_weights or max_weight is not None, max_weight), [], Counter[str]()
    for text, given_answers in answers.items():
        labels = tuple(of_question.get(text) or dict.fromkeys(answer.option for answer in given_answers))
        if len(labels) >= 2:
            question = tally(text, labels, given_answers, bound)
            questions += [question] if question.respondents or (question.counts and text in of_question) else []
            answered.update({answer.respondent for answer in given_answers if answer.weight > 0} - {""})
    return Responses(tuple(questions), max(answered.values(), default=0))


def _text_of(value: Any) -> str:
    """Returns the text of a field; empty for an empty field. A number, also 0, is a text of its own."""
    return "" if value is None else str(value).strip()


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


def _response_weight(path: Path, line: int, text: str) -> float:
    """Returns the weight of a respondent of OpinionQA; 0 for an empty field. Raises InvalidData if it is no weight."""
    weight = _weight(text.strip() or 0)
    if weight is None:
        raise InvalidData(file=str(path), problems=f"  line {line}: weight {text!r} is not a number of 0 or more")
    return weight


def _weight(value: Any) -> float | None:
    """Returns the weight in a row's field: 1 for an empty field, and None for a value that is negative or not a number."""
    if value in (None, ""):
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None


def _unknown(path: Path, what: str, name: str, names: set[str]) -> InvalidData:
    """Returns the error for a name that does not occur in the file. The error lists similar names that occur.

    what: the kind of name, such as "group". names: all names that occur.
    """
    near = (
        difflib.get_close_matches(name, sorted(names), n=MAX_NAMES_SHOWN, cutoff=0.4) or sorted(names)[:MAX_NAMES_SHOWN]
    )
    return InvalidData(file=str(path), problems=f"  no {what} {name!r}; near: {', '.join(near)} ({len(names)} in all)")
