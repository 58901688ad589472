"""The command `pluralllm-client data import preferences`."""

from pathlib import Path
from typing import Annotated

import typer

from pluralllm.client.data.preferences.imports import Reading, read_preferences
from pluralllm.client.data.preferences.mapped import columns_of
from pluralllm.client.data.preferences.scores import score_meaning
from pluralllm.client.survey_commands import Delimiter, Encoding, Out, write_imported
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import say
from pluralllm.common.words.spec import Preset

PREFERENCES_PRESET: Preset = "default"  # serves groups of two camps: benchmarks/two_camps.py


def preferences(
    source: Annotated[
        Path,
        typer.Argument(help="JSONL, Parquet or CSV: prompt with chosen and rejected, or with candidates and votes."),
    ],
    out: Out,
    group: Annotated[
        str | None, typer.Option(help="Only this group's rows, or its votes where votes are listed by group.")
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="The column that names a rater's group, such as worker; a path such as user.age.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="The public layout of the file, such as hh-rlhf; an unknown name lists them all.")
    ] = None,
    map_: Annotated[
        str | None, typer.Option("--map", help="Your columns: prompt=COLUMN,chosen=COLUMN,rejected=COLUMN,votes=...")
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="The meaning of scores: softmax, softmax:TEMPERATURE, best-of or win-rate.")
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option("--lower-is-better/--higher-is-better", help="Whether the best candidate has the lowest score."),
    ] = None,
    skip_bad: Annotated[
        float | None, typer.Option(min=0, max=100, help="Leave out rows that cannot be used, up to this per cent.")
    ] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
) -> None:
    """Import preferences between candidates from a public data set or a file of yours, counted into distributions."""
    if layout is not None and map_ is not None:
        raise InvalidArgument(field="--map", problem="a layout has its own columns; give --layout or --map")
    if group_column is not None and group is None:
        raise InvalidArgument(field="--group-column", problem="say which group is meant: --group NAME")
    if lower_is_better is not None and scores is None:
        raise InvalidArgument(
            field="--lower-is-better", problem="it belongs to scores; say what they mean: --scores MEANING"
        )
    reading = Reading(
        group,
        group_column,
        layout,
        None if map_ is None else columns_of(map_),
        None if scores is None else score_meaning(scores, lower_is_better=bool(lower_is_better)),
        lower_is_better is not None,
        skip_bad,
        encoding,
        delimiter,
    )
    imported = read_preferences(source, reading)
    write_imported(out, imported.questions, group or "all rows")
    for note in imported.notes():
        say(note)
    say(
        f"Preset for a run on preferences: {PREFERENCES_PRESET} (the operator types pluralllm spec new --preset "
        f"{PREFERENCES_PRESET}). Its predictions follow each group, even if groups have opposite tastes."
    )
