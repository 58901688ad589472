"""The file peers.toml beside policy.toml: the peer keys of the members that this partner has pinned, by name.

Only the partner changes the file, after all partners have compared the roster's digest; no coordinator can. With the policy's
trust = "first_use", the client itself adds each key that it sees first.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel

from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.private_rounds.roster import Roster, parse_digest
from pluralllm.common.process.files import write_durably
from pluralllm.common.words.ids import ID_PATTERN
from pluralllm.common.words.model_files import load_model

FILE = "peers.toml"
HEADER = """\
# The peer keys of the members that this partner has pinned: NAME = "FINGERPRINT". In a private round, a member with another key
# is refused, and a member that is not in this file counts as one that may collude. To pin, all partners compare the roster's
# digest (pluralllm-client peers), then each types: pluralllm-client peers pin --roster DIGEST --names NAME,NAME
"""


class _Pins(
    RootModel[dict[Annotated[str, Field(pattern=ID_PATTERN)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]]
):
    """The content of peers.toml: fingerprint by name."""


def pins_file(policy: Path | None, state_dir: Path) -> Path:
    """Returns the path of peers.toml. policy: the partner's policy file; None if it is the one in the state directory."""
    return (policy.parent if policy is not None else state_dir) / FILE


def load_pins(file: Path) -> dict[str, str]:
    """Returns the fingerprint of each pinned member's peer key; none if there is no file. Raises InvalidConfig for a bad file."""
    return load_model(file, _Pins, InvalidConfig).root if file.exists() else {}


def save_pins(file: Path, pins: Mapping[str, str]) -> None:
    """Writes the file durably. Raises StorageFull if the disk is full."""
    lines = (f"{name} = {json.dumps(fingerprint)}\n" for name, fingerprint in sorted(pins.items()))
    write_durably(file, (HEADER + "".join(lines)).encode())


def compared_pins(roster: Roster, digest: str, names: Iterable[str]) -> dict[str, str]:
    """Returns the fingerprints of members whose keys all partners have compared.

    roster: the one that this client sees. digest: the roster's digest as the partners have read it out. names: the members that
    were present. Raises InvalidArgument if the digest is another one or is not whole, or if a name has no key in the roster.
    """
    try:
        compared = parse_digest(digest)
    except ValueError as error:
        raise InvalidArgument(field="--roster", problem=str(error)) from error
    if compared != roster.head:
        problem = (
            "is not the digest of the roster that this client sees. Type pluralllm-client peers, and compare once more"
        )
        raise InvalidArgument(field="--roster", problem=problem)
    fingerprints = {name: roster.fingerprint_of(name) for name in names}
    absent = [name for name, fingerprint in fingerprints.items() if fingerprint is None]
    if absent or not fingerprints:
        present = ", ".join(sorted(roster.members))
        problem = f"{', '.join(absent) or 'nobody'} has no peer key in the roster; members that have one: {present}"
        raise InvalidArgument(field="--names", problem=problem)
    return {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
