"""The commands `pluralllm model export` and `pluralllm model serve`.

`export` writes a published model version as a Hugging Face folder. `serve` answers other programs with predicted shares
and rewards.
"""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.align.commands.scoring import (
    AcceptNoGain,
    AllowEmbedder,
    Cache,
    Device,
    ModelFolder,
    ModelPath,
    contexts_of,
    load_reward,
)
from pluralllm.cli.connection import CoordinatorOption, remote
from pluralllm.cli.model_commands import Folder, Model, download_progress
from pluralllm.cli.output import show
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json, say
from pluralllm.common.process.extras import need_serve
from pluralllm.common.process.json_forms import EXPORTED_MODEL
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, gain_text, ignores_context
from pluralllm.common.words.names import ModelName


def export(model: Model, folder: Folder, coordinator: CoordinatorOption = None, as_json: Json = False) -> None:
    """Writes a model version as a Hugging Face folder.

    PluralPredictor.from_pretrained reads the folder. A model card, scores and the chain of versions lie beside the weights.
    """
    from pluralllm.align.export import export_model  # noqa: PLC0415 - gRPC takes a moment

    with download_progress(quiet=as_json) as report_bytes:
        facts = export_model(remote(coordinator), ModelName.parse_short(model), folder, report_bytes)
    gain = facts["context_gain"]
    show(
        EXPORTED_MODEL,
        {**facts, "folder": str(folder)},
        as_json=as_json,
        screen=lambda value: (
            f"{value['run']}@{value['version']} in {folder}: PluralPredictor.from_pretrained({str(folder)!r})"
            + (f"\ncontext gain {gain_text(gain)}: {IGNORES_CONTEXT}" if ignores_context(gain) else "")
        ),
    )


def serve(
    model: ModelFolder,
    context: Annotated[
        list[str], typer.Option(help="GROUP=FILE, the group's answered questions; repeatable.", show_default=False)
    ],
    listen: Annotated[str, typer.Option(help="Loopback address; port 0 takes a free one.")] = "127.0.0.1:7445",
    http: Annotated[
        str | None, typer.Option(help="Serve rewards by HTTP on this address, too, as OpenRLHF asks for them.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that callers by HTTP show; other machines need one.")
    ] = None,
    embedding_model_path: ModelPath = None,
    cache: Cache = None,
    device: Device = "auto",
    allow_embedder: AllowEmbedder = None,
    accept_no_context_gain: AcceptNoGain = False,
) -> None:
    """Serves scores to other programs by gRPC, on this machine only, and by HTTP if it is asked for.

    The gRPC service is pluralllm.v1.ScoringService; it runs until it is interrupted.
    """
    if token_file is not None and http is None:
        raise InvalidArgument(field="--token-file", problem="is for callers by HTTP; give --http HOST:PORT, too")
    if http is not None:
        need_serve()
    reward = load_reward(
        model,
        contexts_of(context),
        embedding_model_path=embedding_model_path,
        cache=cache,
        device=device,
        allow_embedder=allow_embedder,
        accept_no_context_gain=accept_no_context_gain,
    )
    from pluralllm.align.scoring_service import serve_scores  # noqa: PLC0415 - torch, only here

    with contextlib.ExitStack() as stack:
        if http is not None:
            from pluralllm.align.http_service import read_token, serving_rewards  # noqa: PLC0415 - of the extra

            token = None if token_file is None else read_token(token_file)
            address = stack.enter_context(serving_rewards(reward, http, token))
            say(f"serving rewards on http://{address}/get_reward")
        serve_scores(reward, listen, lambda address: say(f"serving scores on {address}"))
