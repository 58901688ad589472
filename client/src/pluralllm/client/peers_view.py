"""Shows the roster of peer keys for `pluralllm-client peers`, and pins keys for `peers pin`."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pluralllm.client.joining.partner import identity_of
from pluralllm.client.private_rounds.pins import compared_pins, load_pins, pins_file, save_pins
from pluralllm.client.private_rounds.roster_watch import RosterWatch, read_roster
from pluralllm.client.process.config import JoinConfig
from pluralllm.common.errors.private_rounds import RosterDiverged
from pluralllm.common.errors.tree import InvalidArgument, NoAnswer
from pluralllm.common.private_rounds.peer_keys import fingerprint, public_der
from pluralllm.common.private_rounds.roster import Roster
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import print_json, say, terminal
from pluralllm.common.process.json_forms import PEERS
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.trust.certificates import spoken
from pluralllm.common.trust.identity import Identity, peer_key

SHOWN_DIGITS = 16  # of a key in the table; people compare the digest, which covers all keys
YES, NO, OTHER, GONE = "yes", "no", "another key", "no key now"


def show_peers(config: Path | None, state_dir: Path | None, *, digest: bool, as_json: bool) -> None:
    """Prints the roster, after a look for a newer one. digest: prints the roster's digest only.

    Raises RosterDiverged, after the output, if the coordinator has shown a roster that does not continue the earlier one;
    InvalidArgument if the digest is asked for and the roster is empty.
    """
    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    state, problem = paths.state_dir.absolute(), ""
    if (identity := _identity(paths)) is not None:
        problem = asyncio.run(_follow(identity, state))
    roster, seen = read_roster(state)
    pins = load_pins(pins_file(paths.policy, state))
    shown = _shown(roster, pins)
    if digest and not seen.complaint:
        if not roster.sequence:
            raise InvalidArgument(
                field="--digest", problem="there is none yet: the roster has no key. Start the daemons first"
            )
        if problem:
            say(f"This is the roster as it was seen last: {problem}", err=True)
        say(roster.head.hex())
    elif as_json:
        members = [dict(zip(("name", "group", "fingerprint", "pinned"), row, strict=True)) for row in shown]
        print_json(
            PEERS,
            {
                "digest": roster.head.hex(),
                "entries": roster.sequence,
                "members": members,
                "complaint": seen.complaint or None,
            },
        )
    else:
        _print(roster, shown, problem)
    if seen.complaint:
        raise RosterDiverged(problem=f"{seen.complaint} (seen on {seen.complained})")


def pin_peers(roster: str, names: str, config: Path | None, state_dir: Path | None) -> None:
    """Pins the peer keys of members. roster: the digest that was compared. names: the members, with commas between them."""
    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    state = paths.state_dir.absolute()
    newest, seen = read_roster(state)
    identity = _identity(paths)
    if identity is not None and newest.head.hex() != "".join(
        roster.split()
    ):  # others have connected since it looked last
        asyncio.run(_follow(identity, state))
        newest, seen = read_roster(state)
    if seen.complaint:
        raise RosterDiverged(problem=f"{seen.complaint} (seen on {seen.complained})")
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    compared = compared_pins(newest, roster, wanted)
    if identity is not None:
        _check_own_key(identity, newest)
    file = pins_file(paths.policy, state)
    before = load_pins(file)
    save_pins(file, before | compared)
    changed = sorted(name for name, key in compared.items() if before.get(name, key) != key)
    note = f"; another key than before: {', '.join(changed)}" if changed else ""
    say(f"pinned {', '.join(sorted(compared))}{note}\n{len(before | compared)} members are pinned in {file}")


def _identity(paths: JoinConfig) -> Identity | None:
    """Returns this member's identity; None in plain text, where a client has no certificate."""
    return identity_of(paths) if (paths.identity_folder / "credentials.pem").is_file() else None


async def _follow(identity: Identity, state: Path) -> str:
    """Asks the coordinator for the newest roster, checks it, and stores it. Returns why there is no answer; "" if one came."""
    from pluralllm.client.link.transport import Transport  # noqa: PLC0415 - gRPC takes a moment; help does not need it

    configure_logs(form="console", level="WARNING")  # to stderr, so that no line of the log is among the JSON
    transport = Transport.of_member(identity)
    try:
        watch = RosterWatch.of(state, identity.membership.name, identity.folder, transport.roster)
        page = await transport.roster(watch.roster.sequence)
        await watch.look(page.head or None, is_registered=False)
    except NoAnswer as error:
        return str(error)
    finally:
        await transport.close()
    return ""


def _check_own_key(identity: Identity, roster: Roster) -> None:
    """Raises InvalidArgument if the roster does not have this client's own key: then its digest proves nothing to the others."""
    own, name = fingerprint(public_der(peer_key(identity.folder))), identity.membership.name
    if roster.fingerprint_of(name) != own:
        problem = f"is the digest of a roster without the key of {name}, this client: start the daemon once, then compare anew"
        raise InvalidArgument(field="--roster", problem=problem)


def _shown(roster: Roster, pins: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Returns name, group, fingerprint, and whether it is pinned, for each member with a key and for each other pin, by name."""
    rows = []
    for name in sorted({*roster.members, *pins}):
        entry, pinned = roster.members.get(name), pins.get(name)
        if entry is None:
            rows.append((name, "", pins[name], GONE))
        else:
            state = NO if pinned is None else YES if pinned == entry.fingerprint else OTHER
            rows.append((name, entry.group, entry.fingerprint, state))
    return rows


def _print(roster: Roster, rows: list[tuple[str, str, str, str]], problem: str) -> None:
    table = Table("member", "group", "peer key", "pinned", box=None)
    for name, group, key, state in rows:
        table.add_row(name, Text(group), f"{spoken(key[:SHOWN_DIGITS])} ...", state)
    terminal().print(table)
    if problem:
        say(f"This is the roster as it was seen last: {problem}")
    if not roster.sequence:
        say("The roster is empty. It grows when the daemons of this release connect.")
        return
    say(
        f"roster of {roster.sequence} entries; its digest, to compare with all partners:\n  {spoken(roster.head.hex())}"
    )
    unpinned = [name for name, _, _, state in rows if state != YES]
    if unpinned:
        say(
            f"not pinned: {', '.join(unpinned)}. Compare the digest, then: pluralllm-client peers pin --roster DIGEST --names ..."
        )
