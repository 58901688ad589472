"""The command `pluralllm-client status`: the scores of models on this group's own answers, and which of them have left."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pluralllm.client.disclosure.own_scores import OWN_SCORES, OwnScores, OwnScoresFolder
from pluralllm.client.process.config import JoinConfig
from pluralllm.common.errors.tree import NotFound
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_json, say
from pluralllm.common.process.json_forms import CLIENT_STATUS
from pluralllm.common.words.context_gain import gain_text
from pluralllm.common.words.ids import RunId


def status(
    run: Annotated[str, typer.Argument(help="The name of a run; default: all runs.")] = "",
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The daemon's state directory.")] = None,
    all_versions: Annotated[bool, typer.Option("--all", help="Show every version, not only the newest one.")] = False,
    as_json: Json = False,
) -> None:
    """Show how well the models predict this group's own answers. The numbers are exact: keep them as secret as the answers.

    Each line says whether the score has left this machine.
    """
    folder = OwnScoresFolder(load_config(JoinConfig, config, {"state_dir": state_dir}).state_dir / OWN_SCORES)
    scores = {name: folder.of(name) for name in folder.runs() if run in ("", name)}
    if run and not scores:
        raise NotFound(what="scores", name=f"of run {run}")
    if as_json:
        rows = [_values(name, one) for name, scored in scores.items() for one in scored]
        print_json(CLIENT_STATUS, {"scores": rows})
        return
    for name, scored in scores.items():
        for one in scored if all_versions else scored[-1:]:
            say(_line(name, one))
    if not scores:
        say("no version has been scored yet")


def _line(run: RunId, scores: OwnScores) -> str:
    measured = scores.measured
    return (
        f"run {run}, version {scores.version}: alignment {measured.alignment_score:.4f} over {measured.questions} questions, "
        f"context gain {gain_text(measured.context_gain)}, against {'noised' if scores.noised else 'true'} answers; {scores.left}"
    )


def _values(run: RunId, scores: OwnScores) -> dict[str, Any]:
    measured = scores.measured
    return {
        "run": run,
        "version": scores.version,
        "alignment_score": measured.alignment_score,
        "wasserstein_score": measured.wasserstein_score,
        "context_gain": measured.context_gain,
        "questions": measured.questions,
        "noised": scores.noised,
        "left": scores.left,
    }
