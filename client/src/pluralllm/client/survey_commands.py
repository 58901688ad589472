"""The commands `pluralllm-client data import` that read surveys: their options, and what they print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from pluralllm.client.data.codebook import keep_codebook, kept_apart, listed_questions
from pluralllm.client.data.counted_question import have_counts, is_countable
from pluralllm.client.data.import_report import ImportReport, write_report
from pluralllm.client.data.importers import import_globalopinionqa, import_opinionqa
from pluralllm.client.data.private_data import read_counted, write_group
from pluralllm.client.data.responses import Reading, count_responses
from pluralllm.client.data.survey_labels import Labels, read_labels
from pluralllm.client.data.survey_texts import text_of
from pluralllm.client.disclosure.policy import RespondentPrivacy
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.process.console import say
from pluralllm.common.words.questions import Question

STATE_MAX_WEIGHT = (
    "Before noise can be added, state in policy.toml how much one respondent weighs ([privacy] max_weight)."
)
ROUNDED_SHARES = (
    "The shares of this data set are rounded to hundredths. Noise protects one person in exact shares only, so use this"
    " import for trials."
)
NO_LIST = (
    "Before a release with noise, the list of all questions that were asked is needed: import again with --options FILE,"
    ' a JSON file such as {"Tea or coffee?": ["Tea", "Coffee"]}.'
)
Out = Annotated[Path, typer.Option("--out", help="The file to write: .jsonl or .parquet.")]
MaxWeight = Annotated[
    float | None,
    typer.Option(min=0.001, help="Heavier weights are lowered to it. Answers with weights keep counts only with this."),
]
Report = Annotated[
    Path | None, typer.Option(help="Write what was read, used and left out to this JSON file. It is private.")
]
KeyColumn = Annotated[
    str | None, typer.Option(help="The column whose value joins wordings and languages of one question, in all groups.")
]
OptionsOrder = Annotated[
    Literal["sorted"] | None,
    typer.Option(help="The order of options that neither --options nor --labels names: sorted by their texts."),
]
Encoding = Annotated[
    str | None, typer.Option(help="The encoding of a text file, such as cp1252. Default: it is found.")
]
Delimiter = Annotated[
    str | None, typer.Option(help="The character between the fields of a CSV file, or tab. Default: it is found.")
]


def globalopinionqa(
    source: Annotated[Path, typer.Argument(help="The file global_opinions.csv.")],
    group: Annotated[str, typer.Option(help="A country, spelled as in the file.")],
    out: Out,
    respondents: Annotated[
        int | None, typer.Option(min=1, help="The number of people behind each question, an assumption of yours.")
    ] = None,
    report: Report = None,
) -> None:
    """Import one country of Anthropic/llm_global_opinions."""
    read = ImportReport()
    questions = import_globalopinionqa(source, group, respondents, read)
    write_imported(out, questions, group, asked=questions if respondents else None)
    _show(read, report)
    if respondents:
        say(f"{respondents} respondents are an assumption: the data set does not have this number. {STATE_MAX_WEIGHT}")
        say(ROUNDED_SHARES)


def opinionqa(
    source: Annotated[Path, typer.Argument(help="The human_resp folder.")],
    attribute: Annotated[str, typer.Option(help="A column such as POLPARTY.")],
    value: Annotated[str, typer.Option(help="A value of that column, such as Democrat.")],
    out: Out,
    max_weight: MaxWeight = None,
    weight: Annotated[
        str | None,
        typer.Option(help="The column of respondents' weights; * stands for any characters, as in 'WEIGHT_W*'."),
    ] = None,
    no_weight: Annotated[bool, typer.Option("--no-weight", help="Every respondent has the weight 1.")] = False,
    report: Report = None,
) -> None:
    """Import one demographic group of OpinionQA."""
    if weight is not None and no_weight:
        raise InvalidArgument(field="--no-weight", problem="--weight is given, too; leave one of them out")
    read = ImportReport()
    questions = import_opinionqa(source, attribute, value, max_weight, "" if no_weight else weight, read)
    write_imported(out, questions, f"{attribute}={value}", asked=questions if have_counts(questions) else None)
    _show(read, report)


def responses(
    source: Annotated[
        Path, typer.Argument(help="A table: one row for each answer, or with --wide for each respondent.")
    ],
    out: Out,
    group: Annotated[str | None, typer.Option(help="Only rows with this value in the group column.")] = None,
    options: Annotated[
        Path | None,
        typer.Option(help="A JSON file: question -> list of options, in order; its unanswered questions are kept."),
    ] = None,
    max_weight: MaxWeight = None,
    question_column: Annotated[str, typer.Option(help="The column with the text of the question.")] = "question",
    answer_column: Annotated[str, typer.Option(help="The column with the answer.")] = "answer",
    group_column: Annotated[str, typer.Option(help="The column with the respondent's group.")] = "group",
    respondent_column: Annotated[str, typer.Option(help="The column that names the respondent.")] = "respondent",
    weight: Annotated[
        str | None, typer.Option(help="The column with the respondent's weight. Default: weight, if there is one.")
    ] = None,
    no_weight: Annotated[bool, typer.Option("--no-weight", help="Every respondent has the weight 1.")] = False,
    missing: Annotated[
        list[str] | None,
        typer.Option(help="Answers that mean a missing one, with commas between them, such as -1,99,NA; or none."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A JSON file with the label of each code, for all questions or for each question or column."),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Each row is a respondent; --labels or --options name the question columns.")
    ] = False,
    multi: Annotated[
        Literal["split", "keep", "refuse"] | None,
        typer.Option(help="Whether answers that name several options are split, kept or refused."),
    ] = None,
    waves: Annotated[
        Literal["pool", "apart"] | None,
        typer.Option(help="Whether the waves of one question are counted together or kept apart."),
    ] = None,
    wave_column: Annotated[str, typer.Option(help="The column that names the survey wave.")] = "wave",
    key_column: KeyColumn = None,
    options_order: OptionsOrder = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    codes: Annotated[
        bool, typer.Option("--codes", help="Answers of an SPSS or Stata file are its codes; by default, their labels.")
    ] = False,
    report: Report = None,
) -> None:
    """Import single answers of respondents, and count them into distributions."""
    if weight is not None and no_weight:
        raise InvalidArgument(field="--no-weight", problem="--weight is given, too; leave one of them out")
    reading = Reading(
        question_column, answer_column, group_column, respondent_column, weight, no_weight, wave_column, key_column, wide,
        None if missing is None else _missing_texts(missing), Labels() if labels is None else read_labels(labels),
        multi, waves, options_order, encoding, delimiter, codes,
    )  # fmt: skip
    counted = count_responses(source, group, options, max_weight, reading)
    asked = counted.asked if options is None else kept_apart(listed_questions(options), counted.waves)
    write_imported(out, counted.questions, group or "all rows", asked, counted.most_answered)
    _show(counted.report, report)
    if counted.most_answered:
        say(
            f"One respondent has answered {counted.most_answered} questions. If the survey lets nobody answer more, state the"
            " number in policy.toml ([privacy] questions_per_respondent): fewer questions need less noise."
        )


def _show(report: ImportReport, file: Path | None) -> None:
    """Prints the report of an import, and writes it to a file if the partner names one."""
    for line in report.lines():
        say(line)
    if file is not None:
        write_report(file, report)


def _missing_texts(listed: Sequence[str]) -> frozenset[str]:
    """Returns the texts of missing answers in lower case; none for "none". Raises InvalidArgument if "none" is one of several."""
    texts = frozenset(text_of(text).casefold() for one in listed for text in one.split(",")) - {""}
    if "none" not in texts:
        return texts
    if len(texts) > 1:
        raise InvalidArgument(field="--missing", problem="none stands alone: give either none or the codes")
    return frozenset()


def write_imported(
    out: Path, questions: Sequence[Question], what: str, asked: Sequence[Question] | None = None, most_answered: int = 0
) -> None:
    """Writes imported questions to a private file, with what a release needs beside it, and prints their number.

    what: name of the imported group or rows, for messages. asked: every question that was asked; None: unknown.
    most_answered: the most questions that one respondent has answered; 0: unknown.
    Raises InvalidArgument if `out` does not end in .jsonl or .parquet; InvalidData if there is no question.
    """
    if out.suffix not in {".jsonl", ".parquet"}:
        raise InvalidArgument(field="--out", problem=f"{out} must end in .jsonl or .parquet")
    if not questions:
        raise InvalidData(file=str(out), problems=f"  {what} has no usable question in the source")
    write_group(out, questions)
    keep_codebook(out, asked, most_answered)
    say(f"{len(questions)} questions of {what} in {out}{_note_on_counts(out, questions)}")
    if asked is None and have_counts(questions):
        say(NO_LIST)


def _note_on_counts(out: Path, questions: Sequence[Question]) -> str:
    """Returns what the partner should know about noise: how large it would be, or why there can be none."""
    unknown = sum(not is_countable(question) for question in questions)
    if unknown:
        return (
            f"; {unknown} without counts, so no noise can be added to them: weights need --max-weight, shares"
            " --respondents"
        )
    from pluralllm.client.privacy.forecast import forecast  # noqa: PLC0415 - numpy takes a moment

    usual = RespondentPrivacy()
    noise = forecast(read_counted(out), usual.respondents_epsilon, usual.delta)["noise_on_a_share"]
    return f"; a release with epsilon {usual.respondents_epsilon:g} adds noise of {noise or 0:g} to each share"
