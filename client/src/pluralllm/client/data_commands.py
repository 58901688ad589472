"""The commands `pluralllm-client data`: import, check, embed and invent private files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from pluralllm.client import privacy_commands
from pluralllm.client.data.answers import read_answers
from pluralllm.client.data.codebook import keep_codebook, listed_questions
from pluralllm.client.data.counted_question import have_counts, is_countable
from pluralllm.client.data.importers import count_responses, import_globalopinionqa, import_opinionqa
from pluralllm.client.data.preference_data import import_preferences, ranked_pairs
from pluralllm.client.data.private_data import Checked, check_file, read_counted, write_group
from pluralllm.client.disclosure.policy import RespondentPrivacy
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.process.console import Json, print_json, say, terminal
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import make_folder, write_private
from pluralllm.common.process.json_forms import DATA_CHECK
from pluralllm.common.words.questions import Question, is_held_out
from pluralllm.common.words.spec import Preset, RunSpec, load_spec

app = typer.Typer(no_args_is_help=True, help="Import, check or embed the private file.")
import_app = typer.Typer(no_args_is_help=True, help="Import a group's private file from the layout of a public survey.")
app.add_typer(import_app, name="import")

# The bounds of the invented survey, as sample_survey.py has them; importing that module here would load numpy.
MOST_GROUPS, MOST_QUESTIONS, USUAL_QUESTIONS = 64, 312, 240
PREFERENCES_PRESET: Preset = "default"  # serves groups of two camps: benchmarks/two_camps.py
STATE_MAX_WEIGHT = (
    "Before noise can be added, state in policy.toml how much one respondent weighs ([privacy] max_weight)."
)
ROUNDED_SHARES = (
    "The shares of this data set are rounded to hundredths. Noise protects one person in exact shares only, so use this"
    " import for trials."
)
Out = Annotated[Path, typer.Option("--out", help="The file to write: .jsonl or .parquet.")]
MaxWeight = Annotated[
    float | None,
    typer.Option(min=0.001, help="Heavier weights are lowered to it. Answers with weights keep counts only with this."),
]


@import_app.command("globalopinionqa")
def globalopinionqa(
    source: Annotated[Path, typer.Argument(help="The file global_opinions.csv.")],
    group: Annotated[str, typer.Option(help="A country, spelled as in the file.")],
    out: Out,
    respondents: Annotated[
        int | None, typer.Option(min=1, help="The number of people behind each question, an assumption of yours.")
    ] = None,
) -> None:
    """Import one country of Anthropic/llm_global_opinions."""
    questions = import_globalopinionqa(source, group, respondents)
    _write(out, questions, group, asked=questions if respondents else None)
    if respondents:
        say(f"{respondents} respondents are an assumption: the data set does not have this number. {STATE_MAX_WEIGHT}")
        say(ROUNDED_SHARES)


@import_app.command("opinionqa")
def opinionqa(
    source: Annotated[Path, typer.Argument(help="The human_resp folder.")],
    attribute: Annotated[str, typer.Option(help="A column such as POLPARTY.")],
    value: Annotated[str, typer.Option(help="A value of that column, such as Democrat.")],
    out: Out,
    max_weight: MaxWeight = None,
) -> None:
    """Import one demographic group of OpinionQA."""
    questions = import_opinionqa(source, attribute, value, max_weight)
    _write(out, questions, f"{attribute}={value}", asked=questions if have_counts(questions) else None)


@import_app.command("responses")
def responses(
    source: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet with question and answer columns.")],
    out: Out,
    group: Annotated[str | None, typer.Option(help="Only rows with this value in the group column.")] = None,
    options: Annotated[
        Path | None,
        typer.Option(help="A JSON file: question -> list of options, in order; its unanswered questions are kept."),
    ] = None,
    max_weight: MaxWeight = None,
) -> None:
    """Import single answers, one row for each respondent and question, and count them into distributions."""
    counted = count_responses(source, group, options, max_weight)
    asked = None if options is None else listed_questions(options)
    _write(out, counted.questions, group or "all rows", asked, counted.most_answered)
    if counted.most_answered:
        say(
            f"One respondent has answered {counted.most_answered} questions. If the survey lets nobody answer more, state the"
            " number in policy.toml ([privacy] questions_per_respondent): fewer questions need less noise."
        )


@import_app.command("preferences")
def preferences(
    source: Annotated[
        Path,
        typer.Argument(help="JSONL, Parquet or CSV: prompt with chosen and rejected, or with candidates and votes."),
    ],
    out: Out,
    group: Annotated[
        str | None, typer.Option(help="Only this group's rows, or its votes where votes are listed by group.")
    ] = None,
) -> None:
    """Import preferences between candidates from a data set of the Hugging Face Hub, counted into distributions."""
    _write(out, import_preferences(source, group), group or "all rows")
    say(
        f"Preset for a run on preferences: {PREFERENCES_PRESET} (the operator types pluralllm spec new --preset "
        f"{PREFERENCES_PRESET}). Its predictions follow each group, even if groups have opposite tastes."
    )


app.command("release")(privacy_commands.release_answers)


@app.command("pairs")
def pairs(
    file: Annotated[Path, typer.Argument(help="The private file.")],
    out: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    margin: Annotated[float, typer.Option(min=0, max=1, help="Smallest difference of the two shares.")] = 0.05,
) -> None:
    """Write the preferences in a private file as pairs (prompt, chosen, rejected): each question's best and worst option."""
    rows = [
        row for question in read_answers(file) for row in ranked_pairs(question, question.shares, margin, every=False)
    ]
    write_private(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    say(f"{len(rows)} pairs in {out}")


def _write(
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


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The private file.")],
    spec: Annotated[Path | None, typer.Option(help="A run spec to check the number of questions against.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=0.001, help="Show how much noise a release with this loss would add.")
    ] = None,
    delta: Annotated[float, typer.Option(min=1e-15, max=0.1, help="The chance that belongs to --epsilon.")] = 1e-6,
    questions_per_respondent: Annotated[
        int, typer.Option(min=0, help="For --epsilon: the most that one respondent has answered; 0 for all questions.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """List every problem with its line number, and count the usable questions. The exit code is 3 if there is a problem."""
    checked = check_file(file)
    facts = _facts(checked, load_spec(spec) if spec is not None else None)
    if epsilon is not None and not checked.problems:
        from pluralllm.client.privacy.forecast import forecast  # noqa: PLC0415 - numpy takes a moment

        facts |= forecast(read_counted(file), epsilon, delta, questions_per_respondent)
    problems = [*map(str, checked.problems), *([f"  {facts['shortage']}"] if facts["shortage"] else [])]
    if as_json:
        listed = [{"line": problem.line, "problem": problem.text} for problem in checked.problems]
        print_json(DATA_CHECK, {**facts, "problems": listed})
    else:
        table = Table("what", "count", box=None)
        table.add_row("problems", str(len(checked.problems)))
        for name, value in facts.items():
            if value is not None:
                table.add_row(name.replace("_", " "), str(value))
        terminal().print(table)
        for problem in problems:
            say(problem)
    if problems:
        raise typer.Exit(3)


def _facts(checked: Checked, spec: RunSpec | None) -> dict[str, Any]:
    """Returns the counts of a checked file by name; the counts that depend on a run spec are None if `spec` is None."""
    questions = checked.questions
    facts: dict[str, Any] = {
        "lines": checked.lines,
        "usable_questions": len(questions),
        "unanswered_questions": checked.unanswered,
        "options": sum(len(question.options) for question in questions),
        "ordinal_questions": sum(question.scale is not None for question in questions),
        **dict.fromkeys(("training_questions", "evaluation_questions", "episode_needs", "shortage")),
        **dict.fromkeys(("noise_on_a_share", "distance_of_noised_answers")),
    }
    if spec is not None:
        held = sum(is_held_out(question.id, spec.evaluation.holdout_share) for question in questions)
        episodes = spec.training.episodes
        needed = episodes.min_context + episodes.min_targets
        facts |= {"training_questions": len(questions) - held, "evaluation_questions": held, "episode_needs": needed}
        if len(questions) - held < needed:
            facts["shortage"] = f"{len(questions) - held} training questions, an episode needs {needed}; add questions"
    return facts


@app.command()
def embed(
    file: Annotated[Path, typer.Argument(help="The private file.")],
    spec: Annotated[Path, typer.Option(help="The run spec that names the embedding model.")],
    cache: Annotated[Path, typer.Option(help="The daemon's cache_dir, which is state_dir/cache by default.")],
    embedding_model_path: Annotated[Path | None, typer.Option(help="A local folder with the model.")] = None,
    device: Annotated[str, typer.Option(help="The device to use: auto, cuda, cuda:N, mps or cpu.")] = "auto",
) -> None:
    """Embed a private file beforehand, so that the daemon does not have to embed the file when it starts."""
    need_torch()
    from pluralllm.client.work.train import pick_device  # noqa: PLC0415 - torch, only here
    from pluralllm.common.predictor.embedding import Embedder  # noqa: PLC0415

    questions = read_answers(file)
    embedder = Embedder(load_spec(spec).embedding, embedding_model_path, cache, pick_device(device))
    try:
        embedder.check_probes()
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=terminal(stderr=True)) as bar:
            task = bar.add_task("embedding")
            embedded = embedder.embed_questions(
                questions, lambda done, total: bar.update(task, completed=done, total=total)
            )
    finally:
        embedder.close()
    points, dimension = sum(len(rows) for rows in embedded), embedded[0].shape[1]
    say(f"{len(questions)} questions, {points} vectors of {dimension} numbers")
    for note in embedder.notes():
        say(f"note: {note}", err=True)


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="The folder to write to, one file for each group.")],
    groups: Annotated[int, typer.Option(min=2, max=MOST_GROUPS, help="The number of groups.")] = 8,
    questions: Annotated[
        int, typer.Option(min=2, max=MOST_QUESTIONS, help="The number of questions for each group.")
    ] = USUAL_QUESTIONS,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the random answers.")] = 0,
) -> None:
    """Write the private files of an invented survey, for demonstrations."""
    from pluralllm.client.data.sample_survey import RESPONDENTS, sample_groups, with_counts  # noqa: PLC0415 - numpy takes a moment

    make_folder(out, 0o755)
    for name, answered in sample_groups(groups, questions, seed).items():
        path = out / f"{name.lower().replace(' ', '-')}.jsonl"
        counted = [with_counts(question, RESPONDENTS) for question in answered]
        write_group(path, counted)
        keep_codebook(path, counted)
        say(f"{len(answered)} questions of {name} in {path}, each answered by {RESPONDENTS} invented people")
