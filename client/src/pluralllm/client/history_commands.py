"""The commands `pluralllm-client history` and `pluralllm-client audit`: what this client knows of the coordinator's past."""

import asyncio
import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pluralllm.client.joining.partner import identity_of
from pluralllm.client.keeping.audit_watch import SeenHeads, read_heads, verified_log
from pluralllm.client.keeping.history import History
from pluralllm.client.keeping.record_chain import SeenRun, SeenVersion
from pluralllm.client.link.tasks import ShownEntry
from pluralllm.client.process.config import JoinConfig
from pluralllm.common.errors.tree import InvalidArgument, NotFound
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_json, say, terminal
from pluralllm.common.process.json_forms import AUDIT_LOG, HISTORY
from pluralllm.common.text.printable import printable
from pluralllm.common.trust.audit_chain import AuditEntry
from pluralllm.common.trust.certificates import spoken
from pluralllm.common.trust.identity import Identity
from pluralllm.common.words.ids import ClientId, ModelVersion, RunId
from pluralllm.common.words.names import MemberName

PAGE_SIZE, MAX_PAGES = 500, 1_000

ConfigFile = Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")]
StateDir = Annotated[Path | None, typer.Option(help="The daemon's state directory.")]


def history(
    run: Annotated[str, typer.Argument(help="The name of a run; default: all runs.")] = "",
    version: Annotated[int | None, typer.Option(help="A model version; default: the newest that was seen.")] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Show the head of each run's history, to compare by phone with other partners or with an administrator.

    Two partners that see the same head of a version have seen the same models, specs and updates up to that version.
    """
    folder = load_config(JoinConfig, config, {"state_dir": state_dir}).state_dir / "history"
    heads, audit_heads = _heads(folder, run, version), read_heads(folder)
    if as_json:
        print_json(HISTORY, _history_value(heads, audit_heads))
        return
    for name, number, seen in heads:
        made = "" if not seen.round else f", made in round {seen.round} from {seen.updates} updates"
        say(f"run {name}, version {number}{made}\n  {spoken(seen.record_sha256)}")
    if not heads:
        say("no run yet")
    if audit_heads.sequence:
        say(f"audit log, entry {audit_heads.sequence}, seen on {audit_heads.seen}\n  {spoken(audit_heads.sha256)}")
    if (complaint := audit_heads.complaint) is not None:
        say(f"On {complaint.seen} the coordinator's audit log {complaint.problem}. Ask the coordinator's operator.")


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of entries to show, the newest ones.")] = 50,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Show the entries of the coordinator's audit log that concern this client: its membership, its calls and its runs.

    The command verifies the hash chain of the whole log, and compares it with the heads that the daemon has seen. It can compute
    the hashes of the entries that it shows; of all others the coordinator shows the hash only.
    """
    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    identity = identity_of(paths)
    shown, is_whole = asyncio.run(_log_of(identity, paths.state_dir / "history"))
    own = [_values(one) for one in shown if isinstance(one.entry, AuditEntry)][-limit:]
    head = shown[-1].sha256 if shown else ""
    if as_json:
        print_json(AUDIT_LOG, {"entries": own, "verified": len(shown), "head_sha256": head, "whole": is_whole})
        return
    table = Table("#", "when", "who", "did", "to", "result", "facts", box=None)
    for values in own:
        cells = (values[key] for key in ("time", "actor", "action", "object", "result", "facts_json"))
        table.add_row(str(values["sequence"]), *(Text(printable(cell)) for cell in cells))
    terminal().print(table)
    end = "" if is_whole else "; the log was not read to its end"
    say(
        f"{len(own)} of {len(shown)} entries concern this client; the hash chain is unbroken{end}. Its head:\n  {spoken(head)}"
    )


def _heads(folder: Path, run: str, version: int | None) -> list[tuple[RunId, ModelVersion, SeenVersion]]:
    """Returns a seen version of each run, or of one run: the newest one, or the one with a given number.

    Raises InvalidArgument for a version without a run; NotFound if this client has not seen the run or the version.
    """
    if version is not None and not run:
        raise InvalidArgument(field="--version", problem="needs the name of a run")
    heads = []
    for name, seen in _runs_in(folder):
        versions = seen.versions if run in ("", name) else {}
        number = max(versions, default=None) if version is None else ModelVersion(version)
        if number is not None and number in versions:
            heads.append((name, number, versions[number]))
    if run and not heads:
        what = f"run {run}" if version is None else f"version {version} of run {run}"
        raise NotFound(what="history", name=f"of {what} in {folder}")
    return heads


def _runs_in(folder: Path) -> list[tuple[RunId, SeenRun]]:
    """Returns what this client knows about each run. The folder may be missing; it is not made."""
    kept = History(folder) if folder.is_dir() else None
    return [] if kept is None else [(name, kept.seen(name)) for name in kept.runs()]


def _history_value(heads: list[tuple[RunId, ModelVersion, SeenVersion]], audit_heads: SeenHeads) -> dict[str, Any]:
    runs = [
        {
            "run": name,
            "version": number,
            "record_sha256": seen.record_sha256,
            "digest": seen.digest,
            "round": seen.round,
            "updates": seen.updates,
        }
        for name, number, seen in heads
    ]
    complaint = audit_heads.complaint
    return {
        "runs": runs,
        "audit_sequence": audit_heads.sequence,
        "audit_sha256": audit_heads.sha256,
        "audit_complaint": None if complaint is None else f"{complaint.seen}: {complaint.problem}",
    }


async def _log_of(identity: Identity, folder: Path) -> tuple[list[ShownEntry], bool]:
    from pluralllm.client.link.transport import Transport  # noqa: PLC0415 - gRPC takes a moment; help does not need it

    transport = Transport.of_member(identity)
    try:
        return await verified_log(folder, transport.audit_entries, PAGE_SIZE, MAX_PAGES)
    finally:
        await transport.close()


def _values(shown: ShownEntry) -> dict[str, Any]:
    """Returns an entry as the fields of the message AuditEvent."""
    entry = shown.entry
    assert isinstance(entry, AuditEntry)
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=entry.at_us)
    return {
        "sequence": entry.sequence,
        "time": moment.isoformat().replace("+00:00", "Z"),
        "actor": str(MemberName(ClientId(entry.actor))) if entry.actor else "",
        "serial": entry.serial,
        "action": entry.action,
        "object": entry.object,
        "result": entry.result,
        "facts_json": entry.facts_json,
        "previous_sha256": entry.previous_sha256,
        "sha256": shown.sha256,
        "withheld": False,
    }
