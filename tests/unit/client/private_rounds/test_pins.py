"""A partner pins the keys of a roster whose whole digest all partners have compared, and no others."""

from pathlib import Path

import pytest

from pluralllm.client.private_rounds.pins import compared_pins, load_pins, pins_file, save_pins
from pluralllm.common.errors.tree import InvalidArgument, InvalidConfig
from pluralllm.common.private_rounds.roster import Roster, RosterChange, RosterEntry

KEYS = {"ann": "a" * 64, "ben": "b" * 64, "cat": "c" * 64}
ENTRIES = [RosterEntry(at, name, "G", key, RosterChange.ADDED) for at, (name, key) in enumerate(KEYS.items(), 1)]
GONE = RosterEntry(4, "cat", "G", KEYS["cat"], RosterChange.REMOVED)
ROSTER = Roster().extended([*ENTRIES, GONE])


def test_pins_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = pins_file(None, tmp_path)
    assert (file, load_pins(file)) == (tmp_path / "peers.toml", {})
    save_pins(file, KEYS)
    assert load_pins(file) == KEYS
    assert pins_file(tmp_path / "etc" / "policy.toml", tmp_path) == tmp_path / "etc" / "peers.toml"


@pytest.mark.parametrize("line", ['ann = "aa"', 'Ann = "{}"', "ann = 1", f'ann = "{"A" * 64}"', "ann ="])
def test_a_damaged_file_of_pins_is_refused_with_its_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "peers.toml").write_text(line.format("a" * 64))
    with pytest.raises(InvalidConfig, match=r"peers\.toml"):
        load_pins(tmp_path / "peers.toml")


def test_the_names_that_were_present_get_the_keys_of_the_roster_that_was_compared() -> None:
    spoken = " ".join(ROSTER.head.hex()[at : at + 4] for at in range(0, 64, 4))
    assert compared_pins(ROSTER, spoken, ["ann"]) == {"ann": KEYS["ann"]}
    assert compared_pins(ROSTER, ROSTER.head.hex().upper(), ["ben", "ann"]) == {n: KEYS[n] for n in ("ann", "ben")}


def test_another_digest_than_the_whole_one_of_this_roster_pins_nobody() -> None:
    digest = ROSTER.head.hex()
    for bad in (digest[:-1], digest[:32], digest + "0", "", digest[:-1] + "g"):
        with pytest.raises(InvalidArgument, match="--roster: must be the whole digest, 64 hex digits"):
            compared_pins(ROSTER, bad, ["ann"])
    last = "1" if digest[-1] == "0" else "0"
    older = Roster().extended(ENTRIES).head.hex()
    for other in (digest[:-1] + last, last + digest[1:], older):
        if other != digest:
            with pytest.raises(InvalidArgument, match="is not the digest of the roster that this client sees"):
                compared_pins(ROSTER, other, ["ann"])


@pytest.mark.parametrize(("names", "absent"), [(["ann", "dan"], "dan"), (["cat"], "cat"), ([], "nobody")])
def test_a_name_without_a_key_in_the_roster_pins_nobody(names: list[str], absent: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--names: {absent} has no peer key in the roster; .* ann, ben"):
        compared_pins(ROSTER, ROSTER.head.hex(), names)
