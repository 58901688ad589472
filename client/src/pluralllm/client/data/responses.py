"""Imports single answers of respondents: long files (one row for each answer) and wide files (one column for each question).

Nothing is guessed: where a column or an answer may have two meanings, the import is refused, and the error names the option of
the command that says which one holds.
"""

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pluralllm.client.data.codebook import listed_options
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.import_report import ImportReport, QuestionReport
from pluralllm.client.data.importers import unknown_name
from pluralllm.client.data.survey_labels import FileLabels, Labels, file_labels
from pluralllm.client.data.survey_texts import missing_codes, text_of, weight_names, weight_of
from pluralllm.client.data.table import Table, bad_rows
from pluralllm.client.data.tables import checked_table, labelled
from pluralllm.client.data.tally import Answer, Weights, tally
from pluralllm.common.errors.tree import InvalidData
from pluralllm.common.text.several import shown
from pluralllm.common.words.questions import KEY_SEPARATOR, Question

SEPARATORS = (";", "|", ",")
MAX_LIST_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Reading:
    """The meaning of a file's columns and answers, as the partner states it."""

    question: str = "question"  # names of columns
    answer: str = "answer"
    group: str = "group"
    respondent: str = "respondent"
    weight: str | None = None  # None: the column "weight", if there is one and no other looks like a weight
    no_weight: bool = False
    wave: str = "wave"
    key: str | None = None  # name of a column; its value joins wordings and languages of one question in all groups
    wide: bool = False
    missing: frozenset[str] | None = None  # texts of missing answers; None: not stated
    labels: Labels = field(default_factory=Labels)
    multi: Literal["split", "keep", "refuse"] | None = None
    waves: Literal["pool", "apart"] | None = None
    options_order: Literal["sorted"] | None = None  # of options that no list and no label names; None: not stated
    encoding: str | None = None  # of a text file; None: found
    delimiter: str | None = None
    codes: bool = False  # whether answers of an SPSS or Stata file are its codes; otherwise they are the labels


@dataclass(frozen=True, slots=True)
class Responses:
    """The questions that an import has counted from single answers."""

    questions: tuple[CountedQuestion, ...]
    most_answered: int  # the most questions that one respondent has answered; 0: no row names its respondent
    report: ImportReport
    waves: tuple[str, ...] = ()  # whose questions are kept apart
    asked: tuple[Question, ...] | None = (
        None  # all questions of a wide file, if labels name every option; all shares equal
    )


@dataclass(frozen=True, slots=True)
class Given:
    """One answer of a file before its question's options are known; several texts if it is a list."""

    line: int
    texts: tuple[str, ...]
    weight: float
    respondent: str
    is_list: bool


def import_responses(
    path: Path, group: str | None, options: Path | None, max_weight: float | None = None, reading: Reading | None = None
) -> tuple[CountedQuestion, ...]:
    """Returns the questions of `count_responses`."""
    return count_responses(path, group, options, max_weight, reading).questions


def count_responses(
    path: Path, group: str | None, options: Path | None, max_weight: float | None = None, reading: Reading | None = None
) -> Responses:
    """Imports single answers, and counts them for each question.

    path: a table, as `table_rows` reads it. reading: the meaning of its columns; None: columns question and answer, and perhaps
    group, weight, respondent and wave. Several answers of one respondent to a question share the respondent's weight. Without
    the column respondent, each row is of another respondent.
    group: only rows of this group count. None means that all rows count.
    options: JSON file with an object that maps each question to its list of options. The result has all these questions, in
    this order, also those that nobody has answered. If it is None, the options of a question are those of its labels, or its
    answers in the order that `reading` states: two files of one survey then have the same questions.
    max_weight: heavier weights are lowered to it; None leaves them as they are. Rows with weights give counts only if it is set.
    Raises InvalidData if a file cannot be read, if a row's answer or weight is not allowed, if no row has this group, or if a
    column, an answer or the order of options may have two meanings.
    """
    reading = reading or Reading()
    of_question = {} if options is None else listed_options(options)
    table = _Table(path, reading, of_question)
    raw_answers = _given_answers(table, group)
    asked = [text for one in of_question for text in table.texts_apart(one)] if table.apart else list(of_question)
    answers: dict[str, list[Answer]] = {text: [] for text in [*asked, *raw_answers]}
    table.note_unlisted(raw_answers)
    for text, own in raw_answers.items():
        answers[text] = _answers_of(table, text, own)
    table.raise_problems()
    # A stated bound counts, also where no row has a weight: whether one has may depend on a single respondent.
    bound, questions, answered = Weights(table.has_weights or max_weight is not None, max_weight), [], Counter[str]()
    for text, own_answers in answers.items():
        listed = table.listed(text)
        labels = tuple(listed or sorted({answer.option for answer in own_answers}))
        if len(labels) < 2:
            table.drop("to a question with fewer than two options", len(own_answers))
            continue
        if not listed and reading.options_order is None:
            raise table.refusal(
                f"nothing says the order of the options of {text!r}; give --options FILE or --labels FILE, as the other"
                " groups do, or say --options-order sorted (a group in which nobody chose an option then has another question)"
            )
        question = tally(text, labels, own_answers, bound, key=table.key_of(text, labels))
        if question.respondents or (not (bound.exist and max_weight is None) and table.is_asked(text)):
            questions.append(question)
            table.report_question(text, own_answers, question.respondents or 0)
        answered.update({answer.respondent for answer in own_answers if answer.weight > 0} - {""})
    most = max((count for name, count in answered.items() if table.is_person(name)), default=0)
    waves = tuple(table.waves) if table.apart else ()
    return Responses(tuple(questions), most, table.finished_report(), waves, table.labelled_questions())


class _Table:
    """The rows of a file with the meaning of their columns, and what the report and the errors will say about them."""

    def __init__(self, path: Path, reading: Reading, of_question: Mapping[str, Sequence[str]]) -> None:
        self.path, self.reading, self.of_question = path, reading, of_question
        required = set() if reading.wide else {reading.question, reading.answer}
        table = checked_table(path, required, encoding=reading.encoding, delimiter=reading.delimiter)
        self.rows, self.titles = table.rows, table.titles
        self.columns = list(dict.fromkeys(name for _, row in self.rows for name in row))
        self.report = ImportReport(rows=len(self.rows))
        self.problems: list[tuple[int, str]] = []  # each with its line
        self.has_weights = False
        self.joined = 0  # answers that are an option which joins other options
        self.base: dict[str, str] = {}  # text of the question in the list of options, by text with its wave
        self.column_of: dict[str, str] = {}  # column of a wide file, by text
        self.keys: dict[str, str] = {}  # stated key, by text
        self._check_columns(required)
        self.question_columns = self._question_columns() if reading.wide else {}
        self.weight = self._weight_column()
        self.file_labels = self._read_labels(table)
        self.has_waves = reading.wave in self.columns and not reading.wide
        self.waves = (
            list(dict.fromkeys(text_of(row.get(reading.wave)) for _, row in self.rows)) if self.has_waves else []
        )
        self.apart = reading.waves == "apart" and len(self.waves) > 1

    def refusal(self, problem: str) -> InvalidData:
        """Returns the error for this file."""
        return InvalidData(file=str(self.path), problems=f"  {problem}")

    def _check_columns(self, required: set[str]) -> None:
        usual = Reading()
        if self.reading.wide and self.reading.key:
            raise self.refusal(
                "a row of --wide has no question, so no --key-column; give question_key in the private file"
            )
        named = {self.reading.weight, self.reading.key} - {None} | required
        for name in ("group", "respondent", "wave"):
            if getattr(self.reading, name) != getattr(usual, name):
                named.add(getattr(self.reading, name))
        if self.rows and (absent := sorted(str(name) for name in named - set(self.columns))):
            raise self.refusal(f"no column {', '.join(absent)}; it has: {', '.join(self.columns)}")

    def _question_columns(self) -> dict[str, str]:
        """Returns the texts of the questions of a wide file by column."""
        labels = self.reading.labels
        titles = {name: text_of(title) for name, title in self.titles.items()}
        columns = {
            name: labels.texts.get(name) or titles.get(name) or text_of(name)
            for name in labels.of_question
            if name in self.columns
        }
        by_text = {titles.get(name, ""): name for name in self.columns} | {text_of(name): name for name in self.columns}
        columns |= {by_text[text]: text for text in self.of_question if text in by_text}
        if not columns:
            raise self.refusal(
                "nothing says which columns are questions; give --labels FILE with the columns as keys, or --options FILE with"
                f" the columns' names as questions; columns: {shown(self.columns)}"
            )
        if len(set(columns.values())) < len(columns):
            raise self.refusal("two columns ask the same question; give them different texts in --labels FILE")
        self.column_of = {text: name for name, text in columns.items()}
        return columns

    def _read_labels(self, table: Table) -> FileLabels:
        """Returns the file's labels for answers. Elsewhere labels replace codes, but not in weights and names."""
        answers = self.question_columns if self.reading.wide else {self.reading.answer: ""}
        kept = {*answers, self.weight, self.reading.respondent}
        others = {name: labels for name, labels in table.labels.items() if name not in kept}
        if others:
            self.rows = tuple((line, labelled(row, others)) for line, row in self.rows)
        return FileLabels() if self.reading.codes else file_labels(table, answers, self.reading.missing or frozenset())

    def _weight_column(self) -> str | None:
        reading = self.reading
        if reading.no_weight or reading.weight is not None:
            return reading.weight
        taken = {*self.question_columns, reading.group, reading.respondent, reading.wave, reading.key}
        taken |= set() if reading.wide else {reading.question, reading.answer}
        alike = [name for name in weight_names(self.columns) if name not in taken]
        if alike not in ([], ["weight"]):
            raise self.refusal(
                f"column {shown(alike)} may hold the weights of respondents; say --weight COLUMN, or --no-weight"
            )
        return "weight" if alike else None

    def cells(self) -> Iterator[tuple[int, str, Any, dict[str, Any]]]:
        """Yields each answer of the file: its line, its question, the value, and the row."""
        for line, row in self.rows:
            if self.reading.wide:
                for column, text in self.question_columns.items():
                    yield line, text, row.get(column), row
            else:
                yield line, text_of(row.get(self.reading.question)), row.get(self.reading.answer), row

    def respondent(self, line: int, row: Mapping[str, Any]) -> str:
        """Returns the name of a row's respondent; a name that no person has for a row of a wide file without names."""
        name = text_of(row.get(self.reading.respondent))
        return name or (f"\x00wide {line}" if self.reading.wide else "")

    def is_person(self, respondent: str) -> bool:
        """Returns whether a name of a respondent may stand in several rows or cells."""
        return bool(respondent) and not respondent.startswith("\x00row")

    def with_wave(self, text: str, row: Mapping[str, Any]) -> str:
        """Returns the text of a question, with the row's wave if waves are kept apart."""
        if not self.apart:
            return text
        own = f"{text} ({text_of(row.get(self.reading.wave)) or 'no wave'})"
        self.base[own] = text
        return own

    def texts_apart(self, text: str) -> list[str]:
        """Returns the texts of a question in all waves."""
        return [self.with_wave(text, {self.reading.wave: wave}) for wave in self.waves]

    def listed(self, text: str) -> list[str]:
        """Returns the stated options of a question in order: those of the list, or those of its labels; empty for none."""
        base = self.base.get(text, text)
        if base in self.of_question:
            return list(self.of_question[base])
        if self.own_labels(text) and self.answer_column(text) not in self.file_labels.whole:
            return []  # labels of the ends of a scale say nothing about the answers between them
        labels, missing = self.labels(text), self.reading.missing or frozenset()
        kept = [label for code, label in labels.items() if not {code.casefold(), label.casefold()} & missing]
        return list(dict.fromkeys(kept))

    def note_key(self, line: int, text: str, row: Mapping[str, Any]) -> None:
        """Keeps the key that a row states for its question; a problem if an earlier row states another one."""
        stated = text_of(row.get(self.reading.key)) if self.reading.key else ""
        if stated and self.keys.setdefault(text, stated) != stated:
            self.problem(
                line, f"its question has the key {stated!r}, and in an earlier line {self.keys[text]!r}; mend one"
            )

    def key_of(self, text: str, options: Sequence[str]) -> str | None:
        """Returns the key that a question needs in the file; None for its own text and options.

        If waves are kept apart, the key is the one that the question has in a group with a single wave.
        """
        base = self.base.get(text, text)
        return self.keys.get(base, None if base == text else KEY_SEPARATOR.join([base, *options]))

    def labelled_questions(self) -> tuple[Question, ...] | None:
        """Returns the questions of a wide file, if labels alone say all their options; None for any other file."""
        listed = {text: tuple(self.listed(text)) for text in self.question_columns.values()}
        if self.of_question or not listed or min(map(len, listed.values())) < 2:
            return None
        return tuple(Question(text, options, (1 / len(options),) * len(options)) for text, options in listed.items())

    def is_asked(self, text: str) -> bool:
        """Returns whether the list of options has the question."""
        return self.base.get(text, text) in self.of_question

    def labels(self, text: str) -> Mapping[str, str]:
        """Returns the labels of a question by code: those that the partner gives, or those of the file."""
        base = self.base.get(text, text)
        labels = self.reading.labels.of(base, self.column_of.get(base, ""))
        return labels or self.file_labels.of_column.get(self.answer_column(text), {})

    def own_labels(self, text: str) -> Mapping[str, str]:
        """Returns the labels that the file has for the answers to a question; empty where the partner gives other ones."""
        base = self.base.get(text, text)
        if self.reading.labels.of(base, self.column_of.get(base, "")):
            return {}
        return self.file_labels.of_column.get(self.answer_column(text), {})

    def answer_column(self, text: str) -> str:
        """Returns the column with the answers to a question."""
        return self.column_of.get(self.base.get(text, text), "") if self.reading.wide else self.reading.answer

    def problem(self, line: int, text: str) -> None:
        """Keeps a problem of a line."""
        self.problems.append((line, text))

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts answers that are left out."""
        if count:
            self.report.dropped[reason] += count

    def raise_problems(self) -> None:
        """Raises InvalidData with the first problems, if there are any."""
        if self.problems:
            raise bad_rows(self.path, self.problems)

    def note_unlisted(self, answered: Collection[str]) -> None:
        """Adds to the report which questions only the list of options has, and which only the answers."""
        bases = {self.base.get(text, text) for text in answered}
        if self.of_question and (unlisted := bases - self.of_question.keys()):
            self.report.notes.append(f"{len(unlisted)} questions with answers are not in the list of options")
        if unanswered := self.of_question.keys() - bases:
            self.report.notes.append(f"{len(unanswered)} questions of the list of options have no answers")

    def report_question(self, text: str, answers: Sequence[Answer], respondents: int) -> None:
        """Adds an imported question to the report."""
        cells = Counter(answer.option for answer in answers if answer.weight > 0)
        self.report.questions.append(QuestionReport(text, respondents, min(cells.values(), default=0)))

    def finished_report(self) -> ImportReport:
        """Returns the report with the number of used answers and the columns that were not used."""
        reading = self.reading
        used = {reading.respondent, reading.group, self.weight, reading.key, *self.question_columns}
        used |= set() if reading.wide else {reading.question, reading.answer, reading.wave}
        self.report.unused_columns = [name for name in self.columns if name not in used]
        if self.joined:
            self.report.notes.append(
                f"{self.joined} answers are an option that joins other options; they count for it alone"
            )
        self.report.used = self.report.answers - self.report.dropped.total()
        return self.report


def _given_answers(table: _Table, group: str | None) -> dict[str, list[Given]]:
    """Returns the answers that count, by question, with labels in place of codes and without missing answers."""
    reading, raw_answers, groups = table.reading, dict[str, list[Given]](), set[str]()
    waves_of: dict[str, set[str]] = {}
    for line, text, value, row in table.cells():
        table.report.answers += 1
        own_group = text_of(row.get(reading.group))
        groups.add(own_group)
        if text:
            table.note_key(line, text, row)  # also in rows of other groups: this one may not have answered the question
        if group is not None and own_group != text_of(group):
            table.drop("of another group")
            continue
        if not text:
            table.drop("without a question")
            continue
        weight = 1.0
        if table.weight is not None:
            number, weight_text = weight_of(row.get(table.weight)), text_of(row.get(table.weight))
            table.has_weights = table.has_weights or bool(weight_text)
            if number is None:
                table.problem(line, f"weight {row.get(table.weight)!r} is not a number of 0 or more")
                continue
            weight = number
        waves_of.setdefault(text, set()).add(text_of(row.get(reading.wave)))
        of_wave = table.with_wave(text, row)
        texts = _texts(table, line, of_wave, value)
        if not texts or weight == 0:
            table.drop("of respondents with weight 0" if texts else "missing or empty")
            continue
        one = Given(line, texts, weight, table.respondent(line, row), isinstance(value, list | tuple))
        raw_answers.setdefault(of_wave, []).append(one)
    if group is not None and text_of(group) not in groups:
        if reading.group not in table.columns:
            raise table.refusal(f"no column {reading.group}; --group-column names one of {shown(table.columns)}")
        raise unknown_name(table.path, "group", group, groups)
    table.raise_problems()
    _check_missing(table, raw_answers)
    _check_waves(table, waves_of)
    return raw_answers


def _texts(table: _Table, line: int, question: str, value: Any) -> tuple[str, ...]:
    """Returns the texts of one answer, those of its labels where codes have labels; none for a missing answer."""
    if isinstance(value, dict) or (isinstance(value, list | tuple) and any(isinstance(v, list | dict) for v in value)):
        table.problem(line, "the answer is an object or a list of lists; give a text, a number, or a list of them")
        return ()
    raw = [text_of(one) for one in value] if isinstance(value, list | tuple) else [text_of(value)]
    labels, missing, texts = table.labels(question), table.reading.missing or frozenset(), []
    for code in dict.fromkeys(raw):
        label = labels.get(code, code)
        if code and not {code.casefold(), label.casefold()} & missing:
            texts.append(label)
    return tuple(dict.fromkeys(texts))


def _check_missing(table: _Table, raw_answers: Mapping[str, Sequence[Given]]) -> None:
    """Raises InvalidData if answers look like codes for missing ones, and nothing was stated about them."""
    if table.reading.missing is not None:
        return
    codes: list[str] = []
    for text, given in raw_answers.items():
        different = {answer for one in given for answer in one.texts}
        options = table.listed(text) if table.is_asked(text) else []
        if not table.is_asked(text):  # a label that nobody of this group has chosen would be an option all the same
            own = table.own_labels(text)
            different |= set(own.values())
            codes += missing_codes(list(own))
        codes += missing_codes(sorted(different), options)
    if codes:
        codes = list(dict.fromkeys(codes))
        raise table.refusal(
            f"answers {shown([repr(code) for code in codes])} look like codes for missing answers; say"
            f" --missing {','.join(codes[:8])} to leave them out, or --missing none to count them as options"
        )


def _check_waves(table: _Table, waves_of: Mapping[str, set[str]]) -> None:
    """Raises InvalidData if a question was asked in several waves, and nothing was stated about them."""
    several = [text for text, waves in waves_of.items() if table.has_waves and len(waves) > 1]
    if several and table.reading.waves is None:
        raise table.refusal(
            f"{len(several)} questions were asked in several waves (column {table.reading.wave}); say --waves pool to count all"
            " answers together, or --waves apart for one question for each wave"
        )
    if several:
        how = "kept apart" if table.apart else "counted together"
        table.report.notes.append(f"{len(several)} questions were asked in several waves, which are {how}")


def _answers_of(table: _Table, text: str, raw_answers: Sequence[Given]) -> list[Answer]:
    """Returns the answers to one question, each with one option. Keeps a problem for each answer that is not allowed."""
    listed = table.listed(text)
    single = {one.texts[0] for one in raw_answers if not one.is_list}
    options = (
        frozenset(listed) if listed else frozenset(single | {option for one in raw_answers for option in one.texts})
    )
    answers, split = [], 0
    for one in raw_answers:
        parts = one.texts if one.is_list else _parts(table, one, text, options, is_told=bool(listed))
        if one.is_list and len(parts) > 1 and table.reading.multi == "refuse":
            table.problem(one.line, f"a list of {len(parts)} answers, which --multi refuse does not allow")
        unlisted = [option for option in parts if listed and option not in options]
        if unlisted:
            table.problem(one.line, f"answer {unlisted[0]!r} is not among the options given for its question")
            continue
        split += len(parts) > 1
        respondent = one.respondent or (f"\x00row {one.line}" if len(parts) > 1 else "")
        answers += [Answer(option, one.weight, respondent) for option in parts]
    if split:
        table.report.notes.append(
            f"{split} answers to one question name several options; each shares its respondent's weight"
        )
    return answers


def _parts(table: _Table, one: Given, question: str, options: frozenset[str], *, is_told: bool) -> tuple[str, ...]:
    """Returns the options that the text of an answer lists, such as "A; B"; the text itself if it is one option."""
    multi, (text,) = table.reading.multi, one.texts
    parts = _joined(text, table.labels(question), options, table.reading.missing or frozenset())
    if not parts:
        return one.texts
    if multi == "keep" or (is_told and text in options):
        table.joined += 1
        return one.texts
    if multi == "split" or (is_told and multi is None):
        return parts
    why = "which --multi refuse does not allow" if multi else "or one option; say --multi split or keep"
    table.problem(one.line, f"answer {text!r} may be several answers, {why}")
    return one.texts


def _joined(text: str, labels: Mapping[str, str], options: frozenset[str], missing: frozenset[str]) -> tuple[str, ...]:
    """Returns the options that a text joins, as in "A; B" or "['A', 'B']"; none if it joins none or a part is no option.

    Parts that mean a missing answer do not count.
    """
    for codes in (_literal_list(text), *(text.split(separator) for separator in SEPARATORS)):
        texts = [text_of(code) for code in codes]
        present = [code for code in texts if code and code.casefold() not in missing]
        parts = tuple(dict.fromkeys(labels.get(code, code) for code in present))
        if len(texts) >= 2 and parts and set(parts) <= options:
            return parts
    return ()


def _literal_list(text: str) -> list[Any]:
    """Returns the items of a list that a program has written as a text; none if the text is no such list."""
    if not (text.startswith("[") and text.endswith("]")) or len(text) > MAX_LIST_CHARACTERS:
        return []
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    return list(items) if isinstance(items, list) else []
