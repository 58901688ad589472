"""The commands `pluralllm-client data`: import, check, embed and invent private files."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from pluralllm.client import plugin_command, preference_command, privacy_commands, survey_commands
from pluralllm.client.data.answers import read_answers
from pluralllm.client.data.codebook import keep_codebook, listed_questions
from pluralllm.client.data.overlap import overlap
from pluralllm.client.data.preferences.rows import ranked_pairs
from pluralllm.client.data.private_data import Checked, check_file, read_counted, write_group
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, print_json, say, terminal
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import make_folder, write_private
from pluralllm.common.process.json_forms import DATA_CHECK
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.process.plugins import check_allowed
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec
from pluralllm.common.words.usual_embedding import load_spec

if TYPE_CHECKING:
    from pluralllm.client.work.embedding_pool import Workers

app = typer.Typer(no_args_is_help=True, help="Import, check or embed the private file.")
import_app = typer.Typer(no_args_is_help=True, help="Import a group's private file from the layout of a public survey.")
app.add_typer(import_app, name="import")

AllowEmbedder = Annotated[
    str | None,
    typer.Option(
        help="A package whose code may make the vectors here, NAME or NAME==VERSION, for a run spec that names one."
        " The key allowed_embedders of the policy.toml beside the cache folder counts, too."
    ),
]

# The bounds of the invented survey, as sample_survey.py has them; importing that module here would load numpy.
MOST_GROUPS, MOST_QUESTIONS, USUAL_QUESTIONS = 64, 312, 240
QUESTIONS_AT_ONCE = 4096  # whose vectors are in memory together after `embed` has made them
DIFFERENTLY_WRITTEN = (
    "{count} questions are in {file} with another order or spelling of their options: in a run of the format {formats}"
    " another group may train on those that this file withholds; import with --options {file}"
)
WRITTEN_TWICE = (
    "{count} questions are another one of the file in another order or spelling: a prediction of one may have the answers to the"
    " other in its context; merge them, or give both one question_key if they are wordings of one question"
)
import_app.command("globalopinionqa")(survey_commands.globalopinionqa)
import_app.command("opinionqa")(survey_commands.opinionqa)
import_app.command("responses")(survey_commands.responses)
import_app.command("preferences")(preference_command.preferences)
import_app.command("plugin")(plugin_command.plugin)
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
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for vectors. Embeds the texts as --spec says, and lists what the model cannot see."),
    ] = None,
    embedding_model_path: Annotated[Path | None, typer.Option(help="A local folder with the model.")] = None,
    device: Annotated[str, typer.Option(help="For --cache: auto, cuda, cuda:N, mps or cpu.")] = "auto",
    allow_embedder: AllowEmbedder = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The other groups' questions, as JSON: question -> options. Counts how many the file shares."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List every problem with its line number, and count the usable questions. The exit code is 3 if there is a problem."""
    if cache is not None and spec is None:
        raise InvalidArgument(field="--cache", problem="needs --spec, which names the embedding model")
    checked = check_file(file)
    run = None if spec is None else load_spec(spec)
    facts = _facts(checked, run, against)
    if epsilon is not None and not checked.problems:
        from pluralllm.client.privacy.forecast import forecast  # noqa: PLC0415 - numpy takes a moment

        facts |= forecast(read_counted(file), epsilon, delta, questions_per_respondent)
    notes: tuple[str, ...] | None = None
    if cache is not None and run is not None and checked.questions:
        need_torch()
        _allow_embedder(run, cache, allow_embedder)
        _, notes = _keep_embedded(checked.questions, run, cache, embedding_model_path, device, workers=None)
    problems = [*map(str, checked.problems), *([f"  {facts['shortage']}"] if facts["shortage"] else [])]
    remarks = []
    if facts["differently_written"]:
        formats = "run/1 or run/2" if run is None else run.format.removeprefix("pluralllm.")
        text = DIFFERENTLY_WRITTEN.format(count=facts["differently_written"], file=against, formats=formats)
        if run is not None and not run.held_out.by_key:
            problems.append(f"  {text}")
        elif run is None:
            remarks.append(text)
    if facts["written_twice"]:
        remarks.append(WRITTEN_TWICE.format(count=facts["written_twice"]))
    if as_json:
        listed = [{"line": problem.line, "problem": problem.text} for problem in checked.problems]
        print_json(DATA_CHECK, {**facts, "problems": listed, "embedding_notes": None if notes is None else list(notes)})
    else:
        _print_counts({"problems": len(checked.problems), **facts})
        for problem in problems:
            say(problem)
        for note in (*remarks, *(notes or ())):
            say(f"note: {note}")
    if problems:
        raise typer.Exit(3)


def _print_counts(counts: Mapping[str, Any]) -> None:
    table = Table("what", "count", box=None)
    for name, value in counts.items():
        if value is not None:
            table.add_row(name.replace("_", " "), str(value))
    terminal().print(table)


def _facts(checked: Checked, spec: RunSpec | None, against: Path | None) -> dict[str, Any]:
    """Returns the counts of a checked file by name. Counts that depend on a run spec or a list `against` are None without it."""
    questions = checked.questions
    unstated = [question for question in questions if question.stated_key is None]
    facts: dict[str, Any] = {
        "lines": checked.lines,
        "usable_questions": len(questions),
        "unanswered_questions": checked.unanswered,
        "options": sum(len(question.options) for question in questions),
        "ordinal_questions": sum(question.scale is not None for question in questions),
        "written_twice": len(unstated) - len({question.key for question in unstated}),
        **dict.fromkeys(("training_questions", "evaluation_questions", "episode_needs", "shortage")),
        **dict.fromkeys(("shared_questions", "differently_written", "noise_on_a_share", "distance_of_noised_answers")),
    }
    if against is not None:
        found = overlap(questions, listed_questions(against))
        facts |= {"shared_questions": found.shared, "differently_written": found.apart}
    if spec is not None:
        held = sum(map(spec.held_out.includes, questions))
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
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes that embed side by side on --device.")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Devices that embed side by side, one process on each, for example cuda:0,cuda:1."),
    ] = None,
    allow_embedder: AllowEmbedder = None,
) -> None:
    """Embed a private file beforehand, so that the daemon does not have to embed the file when it starts.

    The cache keeps each batch, so the same command continues one that was killed.
    """
    need_torch()
    from pluralllm.client.work.embedding_pool import Workers  # noqa: PLC0415 - torch, only here

    side_by_side = Workers.parse(workers, devices, device)
    questions, run = read_answers(file), load_spec(spec)
    _allow_embedder(run, cache, allow_embedder)
    vectors, notes = _keep_embedded(questions, run, cache, embedding_model_path, device, side_by_side)
    say(f"{len(questions)} questions, {vectors} vectors of {run.embedding.dimension} numbers")
    for note in notes:
        say(f"note: {note}", err=True)


def _allow_embedder(spec: RunSpec, cache: Path, allowed: str | None) -> None:
    """Checks that the partner allows the code of the spec's embedder, if it is another package's, as for a task of the run.

    Raises InvalidArgument otherwise.
    """
    from pluralllm.client.disclosure.policy import load_policy  # noqa: PLC0415 - only for a run spec

    policy_file = cache.absolute().parent / "policy.toml"  # the cache is state_dir/cache by default
    packages = load_policy(policy_file).allowed_embedders if policy_file.is_file() else ()
    check_allowed(spec.embedding.plugin, (*packages, *([] if allowed is None else [allowed])), "--allow-embedder")


def _keep_embedded(
    questions: Sequence[Question],
    spec: RunSpec,
    cache: Path,
    model_path: Path | None,
    device: str,
    workers: "Workers | None",
) -> tuple[int, tuple[str, ...]]:
    """Embeds questions into the cache, with a progress bar on stderr. The memory does not grow with the vectors.

    workers: None: this process embeds.
    Returns the number of vectors, and a sentence about each kind of thing that the model could not see.
    """
    from pluralllm.client.work.embedding_pool import check_room, cut, fill  # noqa: PLC0415 - torch, only here
    from pluralllm.client.work.train import pick_device  # noqa: PLC0415
    from pluralllm.common.predictor.embedding import Embedder  # noqa: PLC0415

    configure_logs(form="console", level="WARNING")
    vectors = 0
    with contextlib.closing(Embedder(spec.embedding, model_path, cache, pick_device(device))) as embedder:
        pieces = cut(embedder.texts_of(questions))
        check_room(embedder, pieces)
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=terminal(stderr=True)) as bar:
            task = bar.add_task("embedding")
            fill(embedder, pieces, workers, lambda done, total: bar.update(task, completed=done, total=total))
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            embedded = embedder.embed_questions(questions[start : start + QUESTIONS_AT_ONCE], lambda _done, _all: None)
            vectors += sum(map(len, embedded))
        return vectors, embedder.notes()


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
