"""The commands `pluralllm run ...`, which create and steer runs."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pluralllm.cli.arguments import RunArgument, status_view
from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.new_spec import new_spec
from pluralllm.cli.output import show
from pluralllm.cli.spec_commands import PlainRounds
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.process.console import Json, say
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.json_forms import RUN
from pluralllm.common.process.plugins import installed_version
from pluralllm.common.words.context_gain import check_context_gain, mean_gain
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.names import ModelName
from pluralllm.common.words.predictors import SUMS_SHOW
from pluralllm.common.words.reward_weights import RewardOptions
from pluralllm.common.words.spec import RunSpec, load_spec_values, parse_spec, spec_values
from pluralllm.common.words.usual_embedding import with_usual_embedding
from pluralllm.operator.default_rounds import with_default_rounds

if TYPE_CHECKING:
    from pluralllm.operator.remote import Remote

# No `-`: what it stands for changes with the command, so that the same line typed again would archive another run.
NamedRun = Annotated[str, typer.Argument(help="The run's own name.")]

run_app = typer.Typer(no_args_is_help=True, help="Creates and steers runs.")


@run_app.command("create")
def create(
    run: Annotated[str, typer.Argument(help="Name of the new run: a-z, 0-9 and '-'.")],
    spec: Annotated[
        Path | None, typer.Argument(help="Run spec, a TOML file; default: the one that `pluralllm spec new` prints.")
    ] = None,
    start_now: Annotated[bool, typer.Option("--start", help="Start the run at once.")] = False,
    embedding_model_path: Annotated[
        Path | None, typer.Option(help="Local folder of the embedding model, to fill in the spec's probe vectors.")
    ] = None,
    plain_rounds: PlainRounds = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Creates a run and its model version 0. The command may be repeated with the same run spec.

    The rounds are private if at least four clients are to train in each. A file without the table [private_rounds] then gets the
    keys that it lacks, and the command prints them; it never changes what the file says.
    """
    file = "(default)" if spec is None else str(spec)
    values = spec_values(new_spec(plain_rounds=plain_rounds), file) if spec is None else load_spec_values(spec)
    values = with_usual_embedding(values)
    new = with_default_rounds(values, file, plain=plain_rounds)
    loaded = new.spec
    if loaded.embedding.plugin is not None and embedding_model_path is not None:
        problem = "has no use: the run spec names an embedder of another package"
        raise InvalidArgument(field="--embedding-model-path", problem=problem)
    if not loaded.embedding.probes and (embedding_model_path is not None or _has_embedder(loaded)):
        loaded = _with_probes(loaded, embedding_model_path)
    connection = remote(coordinator)
    created = connection.create_run(run, loaded.canonical_json())
    if start_now:
        created = connection.start_run(run)
    if new.note:
        say(f"note: {new.note}", err=True)
    if loaded.sums is not None:
        say(f"note: {SUMS_SHOW}; a client that trains takes part only if its policy sets allow_sums = true", err=True)
    if loaded.privacy is not None:
        epsilon = loaded.privacy.respondents_epsilon
        say(
            f"note: clients need noised answers, epsilon {epsilon:g} at most, as they state it; nobody checks it",
            err=True,
        )
    if not loaded.embedding.probes:
        say("note: the spec has no probe vectors; clients' embedding models are not checked", err=True)
    show(RUN, created, as_json=as_json, screen=status_view)


def _has_embedder(spec: RunSpec) -> bool:
    """Returns whether the spec names a plug-in that can make its probe vectors here."""
    plugin = spec.embedding.plugin
    is_here = plugin is not None and installed_version(plugin.distribution) == plugin.version
    return is_here and find_spec("torch") is not None


def _with_probes(spec: RunSpec, model_path: Path | None) -> RunSpec:
    need_torch()
    import torch  # noqa: PLC0415 - only here

    from pluralllm.common.predictor.embedding import make_probes  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as cache:
        probes = make_probes(spec.embedding, model_path, Path(cache), torch.device("cpu"))
    width = spec.embedding.dimension // len(spec.embedding.templates)
    if len(probes[0].vector) != width:
        length, templates = len(probes[0].vector), len(spec.embedding.templates)
        problem = f"  embedding.dimension: must be {length * templates}, {length} for each of the {templates} templates"
        raise InvalidSpec(file=str(model_path), problems=problem)
    embedding = spec.embedding.model_copy(update={"probes": probes})
    return spec.model_copy(update={"embedding": embedding})


@run_app.command("rewards")
def rewards(
    run: Annotated[str, typer.Argument(help="Name of the new run: a-z, 0-9 and '-'.")],
    model: Annotated[
        str, typer.Argument(help="RUN or RUN@VERSION whose predictor scores; without a version, the current one.")
    ],
    rule: Annotated[
        str, typer.Option(help="Rule that combines the groups' rewards: mean, min, max, alpha or adaptive.")
    ] = "mean",
    temperature: Annotated[
        float, typer.Option(help="Parameter of the rule adaptive: lower gives badly served groups more weight.")
    ] = 0.1,
    alpha: Annotated[
        float, typer.Option(help="Parameter of the rule alpha: low approaches min, 0 is mean, high approaches max.")
    ] = -10.0,
    batches: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of batches after which the run ends.")
    ] = 100_000,
    min_clients: Annotated[
        int, typer.Option(min=1, help="Fewest clients that must answer; with fewer, a batch is abandoned.")
    ] = 2,
    target_clients: Annotated[int, typer.Option(min=1, help="Most clients to ask for each batch.")] = 100,
    deadline_s: Annotated[float, typer.Option(min=1, help="Longest time for a batch, in seconds.")] = 60.0,
    grace_s: Annotated[
        float,
        typer.Option(min=0, help="Extra time for the remaining clients once --min-clients have answered, in seconds."),
    ] = 5.0,
    accept_no_context_gain: Annotated[
        bool, typer.Option("--accept-no-context-gain", help="Only warn if predictions do not depend on the group.")
    ] = False,
    start_now: Annotated[bool, typer.Option("--start", help="Start the run at once.")] = False,
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Creates a run whose clients give rewards to rollouts (answers of a language model).

    A trainer sends its rollouts to the run with pluralllm.align.FederatedReward. A model whose predictions do not depend on the
    group is refused.
    """
    connection = remote(coordinator)
    options = RewardOptions(
        rule=rule,
        temperature=temperature,
        alpha=alpha,
        batches=batches,
        min_clients=min_clients,
        target_clients=target_clients,
        deadline_s=deadline_s,
        grace_s=grace_s,
    )
    record, _, spec_json = connection.model_record(ModelName.parse_short(model))
    source, file = ModelName.parse(record["name"]), f"of run {run}"
    _check_model(connection, source, accept=accept_no_context_gain)
    spec = parse_spec(spec_json, file).for_rewards(source, Digest(record["digest"]), options, file)
    created = connection.create_run(run, spec.canonical_json())
    if start_now:
        created = connection.start_run(run)
    show(RUN, created, as_json=as_json, screen=status_view)


def _check_model(connection: "Remote", source: ModelName, *, accept: bool) -> None:
    """Checks that the predictions of a model version depend on the group, by the context gains that its groups have reported.

    A warning goes to stderr. Raises InvalidModel if the mean gain is near zero and `accept` is false.
    """
    scores = [one for one in connection.evaluations(source.run) if one["version"] == source.version]
    gain = mean_gain(one["context_gain"] for one in scores)
    if warning := check_context_gain(f"{source.run}@{source.version}", gain, accept=accept):
        say(f"warning: {warning}", err=True)


@run_app.command("start")
def start(run: RunArgument, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Starts a run that was created, so that its rounds can open."""
    show(RUN, remote(coordinator).start_run(run), as_json=as_json, screen=status_view)


@run_app.command("pause")
def pause(run: RunArgument, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Pauses a run: no new round opens, and the open round ends normally."""
    show(RUN, remote(coordinator).pause_run(run), as_json=as_json, screen=status_view)


@run_app.command("resume")
def resume(run: RunArgument, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Resumes a paused run: rounds open again."""
    show(RUN, remote(coordinator).resume_run(run), as_json=as_json, screen=status_view)


@run_app.command("cancel")
def cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Reason to keep on record and to report to the clients.")] = "",
    coordinator: CoordinatorOption = None,
    as_json: Json = False,
) -> None:
    """Ends a run for good; a round that is open is recorded as abandoned."""
    show(RUN, remote(coordinator).cancel_run(run, reason), as_json=as_json, screen=status_view)


@run_app.command("archive")
def archive(run: NamedRun, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Archives a run that has ended: lists leave it out, and commands without a run's name do not choose it.

    Nothing of the run is deleted. Commands with its name work as before, and `pluralllm run unarchive` brings it back.
    """
    show(RUN, remote(coordinator).archive_run(run), as_json=as_json, screen=status_view)


@run_app.command("unarchive")
def unarchive(run: NamedRun, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Takes a run out of the archive: lists have it again."""
    show(RUN, remote(coordinator).unarchive_run(run), as_json=as_json, screen=status_view)
