"""`pluralllm experiment run | table | report`: methods compared on survey data, in one process, for researchers."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json
from pluralllm.common.process.extras import need_experiment, need_report
from pluralllm.common.process.json_forms import METHODS

app = typer.Typer(no_args_is_help=True, help="Compare methods on survey data, in one process.")
PARTS = {"test": "unseen groups", "validation": "validation groups", "train": "training groups, withheld questions"}


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="The experiment, TOML.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: the file's name.")] = None,
    embedding_model_path: Annotated[Path | None, typer.Option(help="Local folder of the embedding model.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of embedded texts; default: cache in --out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes side by side; default: the cores, 1 on a GPU.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Play this method now (repeatable); others can follow.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few rounds of one seed: to see that all works.")] = False,
) -> None:
    """Run every method with every seed. What is done already is left alone, so a run that was broken off goes on."""
    need_experiment()
    from pluralllm.client.work.train import pick_device  # noqa: PLC0415 - torch, only here
    from pluralllm.common.process.logs import configure_logs  # noqa: PLC0415
    from pluralllm.experiment.runner import Plan, run_experiment  # noqa: PLC0415
    from pluralllm.experiment.spec import load_experiment  # noqa: PLC0415

    configure_logs(form="console", level="WARNING")
    loaded = load_experiment(spec)
    loaded = loaded.quick() if quick else loaded
    folder = out or Path(f"{spec.stem}-results{'-quick' if quick else ''}")
    chosen = str(pick_device(device))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    plan = Plan(
        experiment=loaded,
        out=folder,
        model_path=embedding_model_path,
        cache=cache or folder / "cache",
        device=chosen,
        jobs=jobs or (cores if chosen == "cpu" else 1),
        only=tuple(only or ()),
    )
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        run_experiment(plan, lambda what, done, of: bar.update(task, description=what, completed=done, total=of))
    typer.echo(f"{folder}: look at it with pluralllm experiment report {folder}")


@app.command("table")
def table_of(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    part: Annotated[str, typer.Option(help=f"Which groups: {', '.join(PARTS)}.")] = "test",
    context: Annotated[int, typer.Option(min=1, help="Number of context questions.")] = 20,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Of questions: answered, unanswered, withheld; repeatable. Default: the part's own score."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The table of methods: mean and worst alignment with 95 % intervals, fairness. Choose by validation, report test."""
    from pluralllm.experiment.results import QuestionKind, read_results  # noqa: PLC0415 - numpy, only here
    from pluralllm.experiment.summary import Selection, contexts_of, left_out, table  # noqa: PLC0415

    if part not in PARTS:
        raise InvalidArgument(field="--part", problem=f"is {part!r}, allowed: {', '.join(PARTS)}")
    kinds = {each.name.lower(): each for each in QuestionKind}
    if unknown := [word for word in kind or () if word not in kinds]:
        raise InvalidArgument(field="--kind", problem=f"is {unknown[0]!r}, allowed: {', '.join(kinds)}")
    results = read_results(folder)
    lines = table(results, Selection(part, context, tuple(kinds[word] for word in kind) if kind else None))
    if not lines and kind:
        problem = f"no such questions of {PARTS[part].split(',')[0]} were scored with {context} context questions"
        raise InvalidArgument(field="--kind", problem=problem)
    if not lines:
        sizes = ", ".join(str(size) for size in contexts_of(results))
        problem = f"no {PARTS[part]} were scored with {context} context questions; scored were sizes {sizes}"
        raise InvalidArgument(field="--context", problem=problem)
    columns = ("method", "seeds", "mean alignment", "SD of seeds", "worst", "in", "fairness", "CoV")
    missing = left_out(results, part, context)
    without = f", without {', '.join(missing)}: too few questions" if missing else ""
    title = f"{PARTS[part]}, {context} context questions{without}"
    screen = Table(*columns, box=None, title=title, title_justify="left")
    for line in lines:
        mean, worst = line.mean, line.worst
        screen.add_row(
            line.method,
            str(line.seeds),
            f"{mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f})",
            "-" if line.seed_deviation is None else f"{line.seed_deviation:.4f}",
            f"{worst.value:.4f} ({worst.low:.4f} to {worst.high:.4f})",
            line.worst_group,
            f"{line.fairness.value:.4f}",
            f"{line.variation.value:.4f}",
        )
    show(METHODS, {"methods": [asdict(line) for line in lines]}, as_json=as_json, screen=lambda _: screen)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the page and its figures; default: report in it.")] = None,
    main: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to draw in colour; repeatable. Default: the paper's comparison and validation's choice."
        ),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(min=0.0, max=1.0, help="Mean alignment to be reached; repeatable.")
    ] = None,
) -> None:
    """One HTML page with figures, tables and findings, that needs no network, and the figures as PNG files beside it."""
    need_report()
    from pluralllm.experiment.report.experiment import experiment_page  # noqa: PLC0415 - matplotlib, only here
    from pluralllm.experiment.report.page import write_page  # noqa: PLC0415

    page = experiment_page(folder, main or (), threshold or ())
    typer.echo(str(write_page(page, out or folder / "report")))
