"""`pluralllm-client doctor`: what could keep this daemon from working, and how to mend it."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pluralllm.client.config import ClientConfig
from pluralllm.client.policy import load_policy
from pluralllm.client.private_data import check_file
from pluralllm.common.configuration import check_loopback, load_config
from pluralllm.common.errors import PluralError
from pluralllm.common.extras import need_torch

CONNECT_TIMEOUT_S = 3.0
MIN_FREE_BYTES = 500 * 1024**2


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    ok: bool
    result: str
    fix: str = ""


def doctor(
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check configuration, data, policy, disk, device, model folder and coordinator. Exit code 3 if something is wrong."""
    settings = load_config(ClientConfig, config, {})
    checks = [_guarded(name, probe, settings) for name, probe in PROBES.items()]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        table = Table("check", "", "result", "fix", box=None)
        for check in checks:
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[red]no[/]", check.result, check.fix)
        Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(3)


def _guarded(name: str, probe: Callable[[ClientConfig], Check], config: ClientConfig) -> Check:
    try:
        return probe(config)
    except PluralError as error:
        return Check(name, ok=False, result=" ".join(str(error).split()))


def _data(config: ClientConfig) -> Check:
    checked = check_file(config.data)
    result = f"{len(checked.questions)} usable questions, {len(checked.problems)} problems in {config.data}"
    return Check(
        "private data", not checked.problems, result, "pluralllm-client data check" if checked.problems else ""
    )


def _policy(config: ClientConfig) -> Check:
    load_policy(config.policy)
    return Check("policy", ok=True, result=str(config.policy or "defaults"))


def _disk(config: ClientConfig) -> Check:
    folder = config.state_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "" if free >= MIN_FREE_BYTES else "free some space, or set state_dir elsewhere"
    return Check("disk", free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free for {config.state_dir}", fix)


def _device(config: ClientConfig) -> Check:
    need_torch()
    from pluralllm.client.train import pick_device  # noqa: PLC0415 - torch, only here

    try:
        return Check("device", ok=True, result=str(pick_device(config.device)))
    except (RuntimeError, AssertionError, ValueError) as error:
        return Check("device", ok=False, result=str(error).splitlines()[0], fix="set device = auto")


def _model(config: ClientConfig) -> Check:
    path = config.embedding_model_path
    if path is None:
        return Check("embedding model", ok=True, result="looked up by the run spec's id")
    ok = (path / "config.json").is_file()
    return Check(
        "embedding model", ok, str(path), "" if ok else "embedding_model_path must be a folder with a config.json"
    )


def _coordinator(config: ClientConfig) -> Check:
    check_loopback(config.coordinator)
    host, _, port = config.coordinator.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S):
            return Check("coordinator", ok=True, result=f"{config.coordinator} answers")
    except OSError as error:
        fix = "check the address, and that pluralllm-server serve is running there"
        return Check("coordinator", ok=False, result=f"{config.coordinator}: {error}", fix=fix)


PROBES: dict[str, Callable[[ClientConfig], Check]] = {
    "private data": _data,
    "policy": _policy,
    "disk": _disk,
    "device": _device,
    "embedding model": _model,
    "coordinator": _coordinator,
}
