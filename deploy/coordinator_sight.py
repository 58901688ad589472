"""Looks up what the demo's coordinator could see of private rounds, in its folder, its database and its log.

The demo has the folders of all partners. So it can do what the coordinator cannot: with the secrets of all members it takes the
masks off the updates of one round, and compares. Each finding comes from a check that can fail.
"""

import json
import math
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pluralllm.client.private_rounds.lines import KeysLine, parsed
from pluralllm.client.private_rounds.notebook import FILE
from pluralllm.common.private_rounds.dealing import RoundSecrets, pair_key
from pluralllm.common.private_rounds.masks import add_masks, masking_keys, opposite
from pluralllm.common.private_rounds.round_sum import FixedRound, OpenedRound, Unmasking, leftover_streams
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.weights.update_format import TAIL

DEVIATIONS = 5  # of a correlation with noise; it is beyond them once in a million tries
FAR = 4  # the correlation of a sum with an update in it is more than this many times the limit of noise
SCORE_DIGITS = 3
NUMBERS = re.compile(rb'"(?:counts|shares)": (\[[^\]]*\])')

Numbers = NDArray[np.uint32]  # of an update, tail first. Shape: (64 + values,)


class SightFailed(Exception):
    """A finding that is not as private rounds promise, or a look that was not possible."""


@dataclass(frozen=True)
class Finding:
    """One line of the table: whether the coordinator could see something, and the facts that show it."""

    what: str
    is_seen: bool
    facts: str
    holds: bool  # whether private rounds with noised answers do what they promise here


class WatchedSecrets:
    """The members' secrets of each private round of a run. The demo copies them from the notebooks while a round runs."""

    def __init__(self, run: str, folders: Mapping[str, Path]) -> None:
        """Stores the arguments. folders: the folder of each member's notebooks, by name."""
        self._run, self._folders = run, folders
        self._of: dict[int, dict[str, bytes]] = {}  # by round and member

    def look(self) -> None:
        """Copies the secrets that are new. A round's notebook is there from its first step to its end."""
        for name, folder in self._folders.items():
            for place in folder.glob(f"{self._run}.*"):
                of_round = self._of.setdefault(int(place.suffix[1:]), {})
                if name not in of_round:
                    with suppress(FileNotFoundError):
                        line, end, _ = (place / FILE).read_bytes().partition(b"\n")
                        if end and isinstance(keys := parsed(line), KeysLine):
                            of_round[name] = bytes.fromhex(keys.secret)

    def newest(self) -> tuple[int, Mapping[str, bytes]]:
        """Returns the newest round of which the secrets of all members are here, and these. Raises SightFailed."""
        whole = [number for number, secrets in self._of.items() if len(secrets) == len(self._folders)]
        if not whole:
            raise SightFailed("the demo saw the secrets of all members in no round")
        return max(whole), self._of[max(whole)]


@dataclass(frozen=True)
class ClosedRound:
    """One closed private round, as the coordinator has kept it."""

    transcript: Transcript
    masked: Mapping[str, Numbers]  # of each member whose update is in the sum


class Kept:
    """Everything that the coordinator has kept: its state folder and its log. It may still run, as with `demo.py --keep`."""

    def __init__(self, state: Path, log: Path, run: str) -> None:
        self._state, self._log, self._run = state, log, run

    def files(self) -> list[Path]:
        return [*(path for path in sorted(self._state.rglob("*")) if path.is_file()), self._log]

    def rows(self, query: str) -> list[tuple[str, ...]]:
        """Returns the rows of a query, whose one parameter is the run."""
        with closing(sqlite3.connect(self._state / "coordinator.sqlite3")) as database:
            return database.execute(query, {"run": self._run}).fetchall()

    def closed_round(self, number: int) -> ClosedRound:
        """Returns what is kept of a round. Raises SightFailed if the round has made no version, or its files are gone."""
        versions = self.rows("SELECT round, transcript FROM versions WHERE run = :run")
        digest = next((transcript for made_in, transcript in versions if int(made_in) == number), "")
        transcript = Transcript.from_json(self._blob(digest))
        masked = {one.name: _numbers(self._blob(one.digest.hex())) for one in transcript.updates}
        return ClosedRound(transcript, masked)

    def _blob(self, digest: str) -> bytes:
        path = self._state / "blobs" / digest[:2] / digest
        if not path.is_file():
            raise SightFailed(f"the coordinator does not have the file {digest[:12] or 'of the round'} any more")
        return path.read_bytes()


def _numbers(content: bytes) -> Numbers:
    """Returns the numbers of a masked file. The format safetensors has a header, with its length in the first 8 bytes."""
    return np.frombuffer(content, "<u4", offset=8 + int.from_bytes(content[:8], "little"))


def show_sight(kept: Kept, number: int, secrets: Mapping[str, bytes], homes: Sequence[Path], console: Console) -> None:
    """Prints all findings. number, secrets: of the round whose masks are taken off. homes: the folders of all partners.

    Raises SightFailed, after it has printed them, if one is not as private rounds with noised answers promise.
    """
    closed = kept.closed_round(number)
    findings = [
        names_and_sizes(kept, closed, set(secrets)),
        *updates_and_sum(closed, secrets),
        answers(kept, homes),
        scores(kept),
    ]
    table = Table("the coordinator", "sees", "as its folder, its database and its log show", box=None)
    for finding in findings:
        table.add_row(finding.what, "yes" if finding.is_seen else "no", finding.facts)
    console.print(table)
    if broken := [finding.what for finding in findings if not finding.holds]:
        raise SightFailed(f"private rounds with noised answers promise something else about {'; '.join(broken)}")


def names_and_sizes(kept: Kept, closed: ClosedRound, members: set[str]) -> Finding:
    records = [json.loads(updates) for (updates,) in kept.rows("SELECT updates FROM versions WHERE run = :run")]
    rounds = [{name for name, _, _ in updates} for updates in records if updates]
    is_seen = bool(rounds) and all(names == members for names in rounds)
    size_mb = {numbers.nbytes / 1e6 for numbers in closed.masked.values()}
    facts = f"{len(members)} names in each of {len(rounds)} rounds; {max(size_mb):.1f} MB each"
    return Finding("who sent an update, and its size", is_seen, facts, is_seen)


def updates_and_sum(closed: ClosedRound, secrets: Mapping[str, bytes]) -> tuple[Finding, Finding]:
    """Compares each masked update, and the sum, with the updates themselves. secrets: of each member, for this round."""
    fixed, opened = closed.transcript.fixed, closed.transcript.opened()
    true = {name: own_numbers(fixed, secrets, name, masked) for name, masked in closed.masked.items()}
    total = Unmasking(leftover_streams(fixed, opened)).unmasked(list(closed.masked.values()))
    alone = max(
        abs(correlation(less_revealed(fixed, opened, name, masked), true[name]))
        for name, masked in closed.masked.items()
    )
    together = min(correlation(total, numbers) for numbers in true.values())
    limit = DEVIATIONS / math.sqrt(total.size - TAIL)
    is_sum = together > FAR * limit and np.array_equal(total, np.stack(list(true.values())).sum(0, dtype=np.uint32))
    facts = (
        f"round {fixed.terms.round}: correlation with its masked file, less all that was revealed, at most {alone:.4f}"
    )
    single = Finding("a single update", alone > limit, facts, alone <= limit and is_sum)
    facts = f"the same bits as the {len(true)} updates added; correlation with each at least {together:.2f}"
    return single, Finding("the sum of the updates", is_sum, facts, is_sum)


def own_numbers(fixed: FixedRound, secrets: Mapping[str, bytes], name: str, masked: Numbers) -> Numbers:
    """Returns a member's update without its masks, which nobody can take off without the secrets of several members."""
    r1, of = fixed.members_sha256, {one: RoundSecrets.of(rk, fixed.terms.sha256) for one, rk in secrets.items()}
    halves = {
        fixed.index(other): (pair_key(of[name].mask, r1, name, other), pair_key(of[other].mask, r1, other, name))
        for other in fixed.dealers
        if other != name
    }
    numbers = masked.copy()
    add_masks(numbers, 0, opposite(masking_keys(of[name].own, halves, fixed.dealers_sha256, fixed.index(name))))
    return numbers


def less_revealed(fixed: FixedRound, opened: OpenedRound, name: str, masked: Numbers) -> Numbers:
    """Returns a masked update less every stream of it that the coordinator can compute from what the members have revealed."""
    alone = replace(fixed, updates=tuple(one for one in fixed.updates if one.name == name))
    halves = {pair: half for pair, half in opened.halves.items() if pair[1] == name}
    numbers = masked.copy()
    add_masks(numbers, 0, leftover_streams(alone, OpenedRound(opened.own, opened.masks, halves)))
    return numbers


def correlation(one: Numbers, other: Numbers) -> float:
    """Returns the correlation of the values of two updates."""
    first, second = (numbers[TAIL:].view(np.int32).astype(np.float64) for numbers in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def answers(kept: Kept, homes: Iterable[Path]) -> Finding:
    """Searches what the coordinator has kept for pieces of the partners' files, and as a control the partners' own folders."""
    own_files = [path for home in homes for path in home.rglob("*") if path.is_file()]
    pieces = {piece for path in own_files if path.suffix == ".jsonl" for piece in pieces_of(path)}
    hits, control = occurring(pieces, kept.files()), occurring(pieces, own_files)
    facts = f"{len(hits)} of {len(pieces)} pieces of the partners' files are there, {len(control)} in their own folders"
    return Finding("answers, true or noised", bool(hits), facts, bool(pieces) and control == pieces and not hits)


def pieces_of(path: Path) -> list[bytes]:
    """Returns the text of the first question of a private file, and its numbers as they are written; none of another file."""
    line = path.read_bytes().partition(b"\n")[0]
    numbers, row = NUMBERS.search(line), json.loads(line)
    return [row["question"].encode(), numbers[1]] if numbers is not None and "question" in row else []


def occurring(pieces: set[bytes], files: Iterable[Path]) -> set[bytes]:
    """Returns the pieces that are in at least one of the files. A file that is gone by now, such as a journal, is left out."""
    hits: set[bytes] = set()
    for path in files:
        with suppress(FileNotFoundError):
            content = path.read_bytes()
            hits |= {piece for piece in pieces - hits if piece in content}
    return hits


def scores(kept: Kept) -> Finding:
    query = "SELECT alignment_score, client FROM evaluations WHERE run = :run AND alignment_score IS NOT NULL"
    reported = [(float(score), client) for score, client in kept.rows(query)]
    noise = [json.loads(text or "{}") for (text,) in kept.rows("SELECT noise FROM clients")]
    are_noised = bool(noise) and all(one.get("noised") for one in noise)
    are_rounded = all(score == round(score, SCORE_DIGITS) for score, _ in reported)
    epsilon = max((one.get("epsilon", math.inf) for one in noise), default=math.inf)
    groups = len({client for _, client in reported})
    facts = f"{len(reported)} of {groups} groups, at most {SCORE_DIGITS} digits; noise of epsilon {epsilon:g}"
    return Finding("scores of noised answers", bool(reported), facts, bool(reported) and are_noised and are_rounded)
