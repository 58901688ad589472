"""The commands `pluralllm spec ...`, which make and check run specs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.cli.new_spec import USUAL_CLIENTS, USUAL_ROUNDS, new_spec
from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, say
from pluralllm.common.process.json_forms import SPEC
from pluralllm.common.process.plugins import AGGREGATORS, EMBEDDERS, installed_plugin
from pluralllm.common.words.spec import PRESETS
from pluralllm.common.words.usual_embedding import MODEL, WIDTH, load_spec
from pluralllm.operator.default_rounds import FEWEST_CLIENTS, FLAG

PlainRounds = Annotated[
    bool,
    typer.Option(
        FLAG,
        help="Make plain rounds, in which the coordinator reads single updates, also for four clients or more.",
    ),
]
spec_app = typer.Typer(no_args_is_help=True, help="Makes and checks run specs.")


@spec_app.command("new")
def spec_new(
    model: Annotated[str, typer.Option(help="Identifier of the embedding model.")] = MODEL,
    width: Annotated[int, typer.Option(min=1, help="Length of that model's vectors.")] = WIDTH,
    preset: Annotated[str, typer.Option(help=f"Name of a preset: {', '.join(PRESETS)}.")] = "default",
    clients: Annotated[
        int,
        typer.Option(
            min=FEWEST_CLIENTS,
            help="Number of clients that are expected to train. For two, write 2 for both numbers of clients in [round].",
        ),
    ] = USUAL_CLIENTS,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of rounds.")] = USUAL_ROUNDS,
    train: Annotated[
        list[str] | None,
        typer.Option(help="A group that trains; may be repeated. Without groups, any group takes part."),
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="A group that is evaluated only; may be repeated.")] = None,
    respondents_epsilon: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1000,
            help="Take noised answers only, which tell at most this (epsilon) about one respondent, as the partners state it.",
        ),
    ] = None,
    aggregator: Annotated[
        str | None, typer.Option(help="Name of an aggregator that another package installed here has; plain rounds.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(help="Name of an embedder that another package installed here has; --width says its length."),
    ] = None,
    plain_rounds: PlainRounds = False,
    closing_round: Annotated[
        bool,
        typer.Option(
            "--closing-round",
            help="Add a private round at the end, which sums the last version's scores over all groups.",
        ),
    ] = False,
) -> None:
    """Prints a run spec in TOML, from which you can write your own run spec."""
    if preset not in PRESETS:
        raise InvalidArgument(field="--preset", problem=f"is {preset!r}, allowed: {', '.join(PRESETS)}")
    groups = train or (), held_out or ()
    people = clients, *groups, respondents_epsilon
    text = new_spec(
        *(model, width, preset, *people),
        plain_rounds=plain_rounds,
        closing_round=closing_round,
        rounds=rounds,
        aggregator=None if aggregator is None else installed_plugin(AGGREGATORS, aggregator),
        embedder=None if embedder is None else installed_plugin(EMBEDDERS, embedder),
    )
    say(text)


@spec_app.command("check")
def spec_check(spec: Annotated[Path, typer.Argument(help="Run spec, a TOML file.")], as_json: Json = False) -> None:
    """Checks a run spec, and prints the spec with all its defaults and its SHA-256."""
    loaded = load_spec(spec)
    value = {"sha256": loaded.sha256(), "spec": loaded.model_dump(mode="json", exclude={"embedding": {"probes"}})}
    show(SPEC, value, as_json=as_json, screen=lambda shown: json.dumps(shown, indent=2))
