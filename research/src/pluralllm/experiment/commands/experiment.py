"""The commands `pluralllm experiment run`, `table` and `report`, which compare training methods on survey data in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, say, terminal
from pluralllm.common.process.extras import need_experiment, need_ray, need_report
from pluralllm.common.process.json_forms import METHODS
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, LEAST_CONTEXT_GAIN, gain_text

if TYPE_CHECKING:
    from pluralllm.experiment.details import Details
    from pluralllm.experiment.engines.units import RayOptions
    from pluralllm.experiment.runner import Plan
    from pluralllm.experiment.summary import Line

app = typer.Typer(no_args_is_help=True, help="Compares methods on survey data, in one process.")
ENGINES = ("processes", "ray")
EngineName = Annotated[str, typer.Option("--engine", help=f"Engine that plays the methods: {' or '.join(ENGINES)}.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="For --engine ray: address of a cluster, ray://HOST:10001. Default: this machine's cores alone."),
]
GpusPerUnit = Annotated[
    float, typer.Option(min=0.0, help="For --engine ray: share of a GPU for a method with a seed, for example 0.25.")
]
Mixed = Annotated[
    bool, typer.Option("--mixed", help="For --engine ray: accept workers of other versions; the results say so.")
]
ShardText = Annotated[
    str,
    typer.Option(
        metavar="INDEX/COUNT", help="Part of the work for this machine: 0/16 to 15/16. The shards make all results."
    ),
]
EmbeddingWorkers = Annotated[
    int | None, typer.Option(min=1, help="Number of processes that embed the texts on --device; default: 1.")
]
EmbeddingDevices = Annotated[
    str | None, typer.Option(help="Devices that embed the texts, one process on each, for example cuda:0,cuda:1.")
]
EmbeddingOnRay = Annotated[
    bool,
    typer.Option(
        "--embedding-on-ray",
        help="For --engine ray: embed the texts on the cluster; its machines have the folder --embedding-model-path.",
    ),
]
PARTS = {"test": "unseen groups", "validation": "validation groups", "train": "training groups, withheld questions"}


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="The experiment as a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: the experiment file's name.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Public file of all groups, in place of data.file in the experiment file.")
    ] = None,
    embedding_model_path: Annotated[Path | None, typer.Option(help="Local folder of the embedding model.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of embedded texts; default: cache in --out.")] = None,
    device: Annotated[str, typer.Option(help="Device for torch: auto, cuda, cuda:N, mps or cpu.")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes side by side; default: the number of cores, 1 on a GPU."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a method to play now, repeatable; a later call plays the others.")
    ] = None,
    shard: ShardText = "0/1",
    engine: EngineName = ENGINES[0],
    ray_address: RayAddress = None,
    gpus_per_unit: GpusPerUnit = 0.0,
    mixed: Mixed = False,
    embedding_workers: EmbeddingWorkers = None,
    embedding_devices: EmbeddingDevices = None,
    embedding_on_ray: EmbeddingOnRay = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Play a few rounds of one seed, to see that everything works.")
    ] = False,
) -> None:
    """Plays every method with every seed and writes the results to a folder.

    Results that the folder already holds stay as they are, so the same command continues an interrupted experiment.
    """
    need_experiment()
    on_ray = _ray_options(engine, ray_address, gpus_per_unit, is_mixed=mixed, embeds=embedding_on_ray)
    _check_one_place(embedding_on_ray, embedding_workers, embedding_devices)
    from pluralllm.client.work.embedding_pool import Workers  # noqa: PLC0415 - torch, only here
    from pluralllm.client.work.train import pick_device  # noqa: PLC0415
    from pluralllm.common.process.logs import configure_logs  # noqa: PLC0415
    from pluralllm.experiment.engines.units import Shard  # noqa: PLC0415
    from pluralllm.experiment.runner import Plan, usual_jobs  # noqa: PLC0415
    from pluralllm.experiment.spec import load_experiment  # noqa: PLC0415

    configure_logs(form="console", level="WARNING")
    loaded = load_experiment(spec)
    loaded = loaded if data is None else loaded.on_file(data)
    loaded = loaded.quick() if quick else loaded
    folder = out or Path(f"{spec.stem}-results{'-quick' if quick else ''}")
    chosen = str(pick_device(device))
    plan = Plan(
        experiment=loaded,
        out=folder,
        model_path=embedding_model_path,
        cache=cache or folder / "cache",
        device=chosen,
        jobs=jobs or usual_jobs("cpu" if on_ray else chosen),
        only=tuple(only or ()),
        shard=Shard.parse(shard),
        ray=on_ray,
        embedding=Workers.parse(embedding_workers, embedding_devices, chosen, prefix="--embedding-"),
    )
    _run_with_progress(plan)
    say(f"{folder}: look at it with pluralllm experiment report {folder}")


def _run_with_progress(plan: "Plan") -> None:
    """Runs the experiment, and shows a progress line on stderr when it is a terminal."""
    from pluralllm.experiment.runner import run_experiment  # noqa: PLC0415 - torch

    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        run_experiment(plan, lambda what, done, total: bar.update(task, description=what, completed=done, total=total))


def _check_one_place(on_ray: bool, workers: int | None, devices: str | None) -> None:
    """Checks that the options do not embed both on the cluster and on this machine. Raises InvalidArgument."""
    if on_ray and (workers or devices):
        problem = "embeds on the cluster; leave out --embedding-workers and --embedding-devices"
        raise InvalidArgument(field="--embedding-on-ray", problem=problem)


def _ray_options(
    engine: str, address: str | None, gpus_per_unit: float, *, is_mixed: bool, embeds: bool = False
) -> "RayOptions | None":
    """Returns the options of the engine `ray`; None for the engine `processes`.

    Raises InvalidArgument for an unknown engine, or an option that the engine does not have; ExtraMissing without Ray.
    """
    if engine not in ENGINES:
        raise InvalidArgument(field="--engine", problem=f"is {engine!r}, allowed: {', '.join(ENGINES)}")
    if engine == "ray":
        need_ray()
        from pluralllm.experiment.engines.units import RayOptions  # noqa: PLC0415 - torch

        return RayOptions(address, gpus_per_unit, is_mixed, embeds)
    typed = {
        "--ray-address": address,
        "--gpus-per-unit": gpus_per_unit,
        "--mixed": is_mixed,
        "--embedding-on-ray": embeds,
    }
    if unused := [name for name, value in typed.items() if value]:
        raise InvalidArgument(field=unused[0], problem="is for --engine ray, and the engine is processes")
    return None


@app.command("table")
def table_of(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    groups: Annotated[
        str | None,
        typer.Option("--part", help=f"Groups to score: {', '.join(PARTS)}. Default: the first of these with scores."),
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Number of context questions for each group.")] = 20,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind of questions: answered, unanswered, withheld; repeatable. Default: the part's own score."
        ),
    ] = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Show what each method costs, in the place of the fairness figures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prints a table of methods: mean and worst alignment with 95 % intervals, context gain, and fairness or costs.

    Choose a method by the validation groups, and report the test groups.
    """
    from pluralllm.experiment.details import details_of  # noqa: PLC0415 - numpy, only here
    from pluralllm.experiment.results import QuestionKind, read_results  # noqa: PLC0415
    from pluralllm.experiment.summary import Selection, contexts_of, left_out, over_how_many, table  # noqa: PLC0415

    if groups is not None and groups not in PARTS:
        raise InvalidArgument(field="--part", problem=f"is {groups!r}, allowed: {', '.join(PARTS)}")
    kinds = {question_kind.name.lower(): question_kind for question_kind in QuestionKind}
    if unknown := [word for word in kind or () if word not in kinds]:
        raise InvalidArgument(field="--kind", problem=f"is {unknown[0]!r}, allowed: {', '.join(kinds)}")
    results = read_results(folder)
    groups = groups or next(
        part for part in PARTS if any(one.part == part for result in results for one in result.scores)
    )
    selection = Selection(groups, context, tuple(kinds[word] for word in kind) if kind else None)
    lines = table(results, selection)
    if not lines and kind:
        problem = f"no such questions of {PARTS[groups].split(',')[0]} were scored with {context} context questions"
        raise InvalidArgument(field="--kind", problem=problem)
    if not lines:
        sizes = ", ".join(str(size) for size in contexts_of(results))
        problem = f"no {PARTS[groups]} were scored with {context} context questions; scored were sizes {sizes}"
        raise InvalidArgument(field="--context", problem=problem)
    names = ", ".join(left_out(results, groups, context))
    without = f", without {names}: too few questions" if names else ""
    title = f"{PARTS[groups]}, means {over_how_many(lines)}, {context} context questions{without}"
    details = details_of(results, selection)
    methods = [asdict(line) | details[line.method].plain() for line in lines]
    show(METHODS, {"methods": methods}, as_json=as_json, screen=lambda _: _methods_screen(lines, title, costs))
    if not as_json:
        _show_details(lines, details)


def _methods_screen(lines: "Sequence[Line]", title: str, costs: bool) -> Table:
    """Returns the table of methods. costs: whether its last columns are costs instead of fairness."""
    last = ("training groups", "rounds", "bytes moved", "seconds") if costs else ("fairness", "CoV")
    columns = ("method", "seeds", "mean alignment", "SD of seeds", "worst", "in", "context gain", *last)
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
            gain_text(line.context_gain),
            *(_costs(line) if costs else (f"{line.fairness.value:.4f}", f"{line.variation.value:.4f}")),
        )
    return screen


def _show_details(lines: "Sequence[Line]", details: "Mapping[str, Details]") -> None:
    """Prints what the means hide, and the methods whose predictions do not depend on the group."""
    terminal().print(_details_screen({line.method: details[line.method] for line in lines}))
    if blind := [line.method for line in lines if line.ignores_context]:
        say(f"{IGNORES_CONTEXT} (context gain below {LEAST_CONTEXT_GAIN}): {', '.join(blind)}")


def _costs(line: "Line") -> tuple[str, ...]:
    numbers = (line.training_groups, line.cost.get("rounds"), line.cost.get("moved_bytes"), line.cost.get("seconds"))
    return tuple("-" if not number else f"{number:,.0f}" for number in numbers)


def _details_screen(details: "Mapping[str, Details]") -> Table:
    """Returns the table of each method's alignment by number of options, and of its calibration."""
    from pluralllm.experiment.by_options import CLASSES  # noqa: PLC0415 - numpy, only here

    names = [name for name, _ in CLASSES if any(name in one.by_options for one in details.values())]
    columns = ("method", *(f"{name} options" for name in names), "error / expected")
    screen = Table(*columns, box=None, title="\nalignment by number of options, and calibration", title_justify="left")
    for method, one in details.items():
        cells = (f"{one.by_options[name].alignment:.3f}" if name in one.by_options else "-" for name in names)
        screen.add_row(method, *cells, "-" if one.calibration is None else f"{one.calibration:.2f}")
    return screen


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and its figures; default: FOLDER/report.")
    ] = None,
    main: Annotated[
        list[str] | None,
        typer.Option(
            help="A method to draw in colour; repeatable. Default: the paper's comparison and the best in validation."
        ),
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0, max=1.0, help="Mean alignment to reach; the page shows when each method does. Repeatable."
        ),
    ] = None,
) -> None:
    """Writes one HTML page with figures, tables and findings, and the figures as PNG files beside it.

    The page needs no network.
    """
    need_report()
    from pluralllm.experiment.report.experiment import experiment_page  # noqa: PLC0415 - matplotlib, only here
    from pluralllm.experiment.report.page import write_page  # noqa: PLC0415

    page = experiment_page(folder, main or (), threshold or ())
    say(str(write_page(page, out or folder / "report")))
