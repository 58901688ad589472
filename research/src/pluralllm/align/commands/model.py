"""`pluralllm model pull | export | serve`: published versions, as files and for other programs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress

from pluralllm.align.commands.scoring import Cache, Device, ModelFolder, ModelPath, contexts_of
from pluralllm.align.model_card import model_card
from pluralllm.align.model_folder import CARD, CONFIG, PROVENANCE, model_config, provenance, write_json
from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.output import show
from pluralllm.common.process.console import Json
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.json_forms import EXPORTED_MODEL, MODEL
from pluralllm.common.words.ids import ModelVersion
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.spec import parse_spec

MAX_ROUNDS = 100_000

app = typer.Typer(no_args_is_help=True, help="Published model versions.")
Model = Annotated[str, typer.Argument(help="RUN or RUN@VERSION; without a version the current one.")]
Folder = Annotated[Path, typer.Argument(help="Where to; made if it is not there.")]


@app.command()
def pull(model: Model, folder: Folder, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Fetch a model version: model.safetensors, run_spec.json, provenance.json. A broken try is resumed."""
    name = ModelName.parse_short(model)
    with _bar(quiet=as_json) as on_bytes:
        record, spec_json = remote(coordinator).pull_model(name, folder, on_bytes)
    write_durably(folder / "run_spec.json", spec_json)
    write_durably(folder / PROVENANCE, json.dumps(record, indent=2).encode())
    show(MODEL, {**record, "folder": str(folder)}, as_json=as_json, screen=lambda found: f"{found['name']} in {folder}")


@app.command()
def export(model: Model, folder: Folder, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """The same as a Hugging Face folder, for PluralPredictor.from_pretrained: with a model card, scores and lineage."""
    name = ModelName.parse_short(model)
    there = remote(coordinator)
    with _bar(quiet=as_json) as on_bytes:
        record, spec_json = there.pull_model(name, folder, on_bytes)
    run = ModelName.parse(record["name"]).run
    spec = parse_spec(spec_json, f"of run {run}")
    lineage = [there.model_record(ModelName(run, ModelVersion(number)))[0] for number in range(record["version"] + 1)]
    scores = [score for score in there.evaluations(run) if score["version"] == record["version"]]
    origin = provenance(spec, record, lineage, there.rounds(run, MAX_ROUNDS), scores)
    write_durably(folder / PROVENANCE, write_json(origin))
    write_durably(folder / CARD, model_card(origin).encode())
    # Last: a folder without it is no model yet.
    write_durably(folder / CONFIG, write_json(model_config(spec, run, record["version"], record["digest"])))
    facts = {key: origin[key] for key in ("run", "version", "participants", "updates", "fairness_index")}
    show(
        EXPORTED_MODEL,
        {**facts, "folder": str(folder)},
        as_json=as_json,
        screen=lambda found: (
            f"{found['run']}@{found['version']} in {folder}: PluralPredictor.from_pretrained({str(folder)!r})"
        ),
    )


@app.command()
def serve(
    model: ModelFolder,
    context: Annotated[
        list[str], typer.Option(help="GROUP=FILE, the group's answered questions; repeatable.", show_default=False)
    ],
    listen: Annotated[str, typer.Option(help="Loopback address; port 0 takes a free one.")] = "127.0.0.1:7445",
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
) -> None:
    """Score for other programs by gRPC (pluralllm.v1.ScoringService), on this machine only, until interrupted."""
    need_torch("align")
    from pluralllm.align.group_reward import DEFAULT_CACHE, GroupReward  # noqa: PLC0415 - torch, only here
    from pluralllm.align.scoring_service import serve_scores  # noqa: PLC0415

    reward = GroupReward(
        model,
        contexts_of(context),
        embedding_model_path=embedding_model_path,
        cache=cache or DEFAULT_CACHE,
        device=device,
    )
    serve_scores(reward, listen, lambda address: typer.echo(f"serving scores on {address}"))


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    disable = quiet or not console.is_terminal
    with Progress(*Progress.get_default_columns(), DownloadColumn(), disable=disable, console=console) as bar:
        task = bar.add_task("model.safetensors", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
