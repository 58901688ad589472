"""The commands `pluralllm-client peers` and `peers pin`: the roster of peer keys, and the keys that this partner has pinned."""

from pathlib import Path
from typing import Annotated

import typer

from pluralllm.common.process.console import Json

app = typer.Typer()
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")]
StateDir = Annotated[Path | None, typer.Option(help="The daemon's state directory.")]


@app.callback(invoke_without_command=True)
def peers(
    context: typer.Context,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Print the digest only, to read it out or to copy it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the roster of peer keys, which of them this partner has pinned, and the roster's digest.

    Before the first private round, all partners compare the digest, all 64 digits of it, in one call or by signed mail. Then each
    partner pins the members that were present: pluralllm-client peers pin.
    """
    if context.invoked_subcommand is None:
        from pluralllm.client.peers_view import show_peers  # noqa: PLC0415 - keys and configuration take a moment

        show_peers(config, state_dir, digest=digest, as_json=as_json)


@app.command("pin")
def pin(
    roster: Annotated[str, typer.Option("--roster", help="The digest that all partners have compared, 64 hex digits.")],
    names: Annotated[str, typer.Option("--names", help="The members that were present, with commas between them.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Pin the peer keys of members, after all partners have compared the roster's digest.

    The daemon deals its secrets in private rounds only if enough members are pinned, and refuses a pinned member with another
    key until it is pinned again.
    """
    from pluralllm.client.peers_view import pin_peers  # noqa: PLC0415 - keys and configuration take a moment

    pin_peers(roster, names, config, state_dir)
