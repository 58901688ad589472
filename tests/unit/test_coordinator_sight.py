"""The demo's look at what the coordinator has kept: each finding comes from a check, and each check can fail."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from coordinator_sight import (
    Kept,
    Numbers,
    SightFailed,
    WatchedSecrets,
    less_revealed,
    occurring,
    own_numbers,
    show_sight,
)
from rich.console import Console
from support.private_members import NAMES, Dealt, Played, dealt_round, digest, played_round

from pluralllm.client.data.private_data import write_group
from pluralllm.client.data.sample_survey import sample_groups, with_counts
from pluralllm.client.private_rounds.notebook import Notebook
from pluralllm.common.private_rounds.dealing import pair_key
from pluralllm.common.private_rounds.masks import add_masks, opposite, pair_key_with_sign
from pluralllm.common.private_rounds.round_sum import open_round
from pluralllm.common.private_rounds.transcript import Transcript
from pluralllm.common.weights.layout import layout_of
from pluralllm.common.weights.update_format import TAIL, update_format
from pluralllm.common.words.ids import RoundNumber, RunId
from pluralllm.server.storage.schema import metadata

RUN, ROUND, VALUES = "first", 7, 4096
MEMBERS = NAMES[:4]
HEADER = update_format(layout_of([("w", (VALUES,))]), "ring32").header
SURVEY = sample_groups(4, 5, seed=0)
PRIVATE, NOISED = "answers.jsonl", "state/privacy/noised-1.jsonl"


def plain(name: str) -> Numbers:
    """Returns a member's numbers before they are masked. Shape: (64 + VALUES,)."""
    rng = np.random.default_rng(list(name.encode()))
    tail = np.zeros(TAIL, np.int32)
    tail[1] = 1
    return np.concatenate([tail, rng.normal(0, 1e6, VALUES).astype(np.int32)]).view(np.uint32)


def honest(summed: tuple[str, ...] = MEMBERS) -> tuple[Dealt, Played]:
    dealt = dealt_round(len(MEMBERS), threshold=3)
    return dealt, played_round(dealt, MEMBERS, {name: plain(name) for name in summed}, MEMBERS)


@dataclass
class Scene:
    """The folders after a run: of the coordinator, which has kept one round, and of four partners."""

    folder: Path
    database: sa.Engine
    text: str = ""  # the last table

    @property
    def state(self) -> Path:
        return self.folder / "coordinator"

    @property
    def homes(self) -> list[Path]:
        return [self.folder / name for name in MEMBERS]

    def write(self, dealt: Dealt, played: Played) -> None:
        """Writes all folders."""
        opened = open_round(played.fixed, dealt.shares, played.reveals)
        transcript = Transcript.of(played.fixed, opened, dealt.shares, played.confirmations, (0,) * TAIL)
        for update in played.fixed.updates:
            self.blob(update.digest.hex(), HEADER + played.masked[update.name].tobytes())
        self.blob(transcript.sha256, transcript.to_json())
        updates = json.dumps([[update.name, update.digest.hex(), 1] for update in played.fixed.updates])
        self.version(0, 0, "[]", "")
        self.version(1, ROUND, updates, transcript.sha256)
        for name, (group, questions) in zip(MEMBERS, SURVEY.items(), strict=True):
            home = self.folder / name
            (home / NOISED).parent.mkdir(parents=True)
            write_group(home / PRIVATE, [with_counts(question, 1000) for question in questions])
            write_group(home / NOISED, questions)
            (home / "state" / "privacy" / "ledger.jsonl").write_text('{"kind": "charge"}\n')
            self.client(name, group, '{"noised": true, "epsilon": 4.0}')
            self.score(name, group, 0.812)
        (self.folder / "coordinator.log").write_text("round.closed\n")

    def blob(self, sha256: str, content: bytes) -> None:
        path = self.state / "blobs" / sha256[:2] / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def rows(self, table: str, **values: object) -> None:
        with self.database.begin() as connection:
            connection.execute(metadata.tables[table].insert(), values)

    def version(self, version: int, number: int, updates: str, transcript: str) -> None:
        hashes = dict.fromkeys(("digest", "spec_sha256", "parent_sha256", "record_sha256"), "")
        facts = {"run": RUN, "version": version, "round": number, "created_s": 0.0}
        self.rows("versions", **facts, **hashes, updates=updates, transcript=transcript)

    def client(self, name: str, group: str, noise: str | None) -> None:
        facts = {"role": "train", "training_questions": 5, "software_version": "", "created_s": 0.0, "last_seen_s": 0.0}
        self.rows("clients", client=name, group_name=group, noise=noise, **facts)

    def score(self, name: str, group: str, score: float | None, version: int = 0) -> None:
        facts = {"run": RUN, "version": version, "role": "train", "questions": 30, "created_s": 0.0}
        self.rows("evaluations", client=name, group_name=group, alignment_score=score, **facts)

    def shown(self, **changed: str) -> list[tuple[str, bool]]:
        """Returns the first column of the table, and whether the coordinator sees it. Raises SightFailed.

        changed: the demo has another secret of these members.
        """
        out = io.StringIO()
        secrets = {name: digest(changed.get(name, f"rk of {name}")) for name in MEMBERS}
        try:
            kept = Kept(self.state, self.folder / "coordinator.log", RUN)
            show_sight(kept, ROUND, secrets, self.homes, Console(file=out, width=240))
        finally:
            self.text = out.getvalue()
        lines = [line.split("  ") for line in self.text.splitlines()[1:]]
        return [(line[0].strip(), next(cell for cell in line[1:] if cell).strip() == "yes") for line in lines]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "coordinator").mkdir()
    database = sa.create_engine(f"sqlite:///{tmp_path / 'coordinator' / 'coordinator.sqlite3'}")
    metadata.create_all(database, [metadata.tables[name] for name in ("versions", "clients", "evaluations")])
    yield Scene(tmp_path, database)
    database.dispose()


def test_after_an_honest_run_it_sees_who_took_part_the_sum_and_the_scores(scene: Scene) -> None:
    scene.write(*honest())
    assert scene.shown() == [
        ("who sent an update, and its size", True),
        ("a single update", False),
        ("the sum of the updates", True),
        ("answers, true or noised", False),
        ("scores of noised answers", True),
    ]
    assert "4 names in each of 1 rounds" in scene.text
    assert "0 of 12 pieces of the partners' files are there, 12 in their own folders" in scene.text
    assert "4 of 4 groups, at most 3 digits; noise of epsilon 4" in scene.text


def test_a_round_without_a_members_update_is_noticed(scene: Scene) -> None:
    scene.write(*honest(MEMBERS[:3]))
    scene.version(2, ROUND + 1, json.dumps([[name, "", 1] for name in MEMBERS]), "")
    with pytest.raises(SightFailed, match=r"about who sent an update, and its size$"):
        scene.shown()


@pytest.mark.parametrize("summed", [MEMBERS, MEMBERS[:3]])
def test_only_the_masks_that_pairs_in_the_sum_share_are_left_when_the_revealed_ones_are_off(
    summed: tuple[str, ...],
) -> None:
    dealt, played = honest(summed)
    fixed, masks = played.fixed, {person.name: person.secrets.mask for person in dealt.people}
    opened = open_round(fixed, dealt.shares, played.reveals)
    secrets = {name: digest(f"rk of {name}") for name in MEMBERS}
    rest = less_revealed(fixed, opened, "ann", played.masked["ann"])
    for other in fixed.in_sum[1:]:
        halves = (
            pair_key(masks["ann"], fixed.members_sha256, "ann", other),
            pair_key(masks[other], fixed.members_sha256, other, "ann"),
        )
        assert not np.array_equal(rest, plain("ann"))
        add_masks(rest, 0, opposite([pair_key_with_sign(*halves, fixed.dealers_sha256, 1, fixed.index(other))]))
    assert np.array_equal(rest, plain("ann"))
    assert np.array_equal(own_numbers(fixed, secrets, "ann", played.masked["ann"]), plain("ann"))


def test_an_update_that_is_open_with_the_revealed_secrets_is_seen(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator_sight.less_revealed", lambda _fixed, _opened, name, _masked: plain(name))
    scene.write(*honest())
    with pytest.raises(SightFailed, match=r"about a single update$"):
        scene.shown()
    assert re.search("a single update +yes", scene.text)


@pytest.mark.parametrize("wrong", ["own mask", "masks of pairs"])
def test_noise_in_place_of_an_update_is_not_taken_for_an_update_that_is_hidden(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """A demo that took the wrong masks off would see no correlation, whatever the coordinator sees."""
    scene.write(*honest())
    if wrong == "masks of pairs":
        monkeypatch.setattr("coordinator_sight.pair_key", lambda *_: digest("another key"))
    with pytest.raises(SightFailed, match="a single update; the sum of the updates"):
        scene.shown(**({"ann": "another secret"} if wrong == "own mask" else {}))


@pytest.mark.parametrize("file", [PRIVATE, NOISED])
@pytest.mark.parametrize("field", ["question", "numbers"])
@pytest.mark.parametrize("place", ["coordinator.log", "coordinator/scratch/draft"])
def test_a_piece_of_a_partners_file_anywhere_at_the_coordinator_is_noticed(
    scene: Scene, file: str, field: str, place: str
) -> None:
    scene.write(*honest())
    row = json.loads((scene.homes[-1] / file).read_text().splitlines()[0])
    piece = row["question"] if field == "question" else json.dumps(row.get("counts", row.get("shares")))
    target = scene.folder / place
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"\xff\x00" + piece.encode() + b"\xff")
    with pytest.raises(SightFailed, match=r"about answers, true or noised$"):
        scene.shown()


def test_a_search_that_knows_no_piece_of_a_file_shows_nothing(scene: Scene) -> None:
    scene.write(*honest())
    for home in scene.homes:
        (home / PRIVATE).unlink()
        (home / NOISED).unlink()
    with pytest.raises(SightFailed, match="answers"):
        scene.shown()


def test_a_search_that_does_not_find_the_pieces_at_their_owners_shows_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(*honest())
    monkeypatch.setattr("coordinator_sight.occurring", lambda _pieces, _files: set())
    with pytest.raises(SightFailed, match="answers"):
        scene.shown()


def test_a_file_that_goes_while_the_coordinator_runs_is_left_out_of_the_search(tmp_path: Path) -> None:
    (tmp_path / "coordinator.sqlite3").write_bytes(b"an answer")
    files = [tmp_path / "coordinator.sqlite3-journal", tmp_path / "coordinator.sqlite3"]
    assert occurring({b"answer", b"another"}, files) == {b"answer"}


def test_a_run_without_a_score_shows_nothing_about_scores(scene: Scene) -> None:
    scene.write(*honest())
    with scene.database.begin() as connection:
        connection.execute(metadata.tables["evaluations"].delete())
    with pytest.raises(SightFailed, match="scores of noised answers"):
        scene.shown()


def test_a_score_with_more_digits_and_a_score_of_true_answers_are_noticed(scene: Scene) -> None:
    scene.write(*honest())
    scene.score("ann", "A", None, version=1)
    assert scene.shown()
    scene.score("ann", "A", 0.8121, version=2)
    with pytest.raises(SightFailed, match="scores of noised answers"):
        scene.shown()


@pytest.mark.parametrize("noise", [None, '{"noised": false}'])
def test_a_client_whose_answers_have_no_noise_is_noticed(scene: Scene, noise: str | None) -> None:
    scene.write(*honest())
    scene.client("emil", "E", noise)
    with pytest.raises(SightFailed, match="scores of noised answers"):
        scene.shown()


def test_a_round_that_made_no_version_is_said_to_be_missing(scene: Scene) -> None:
    scene.write(*honest())
    kept = Kept(scene.state, scene.folder / "coordinator.log", RUN)
    with pytest.raises(SightFailed, match="file of the round"):
        kept.closed_round(8)


def test_the_secrets_of_the_newest_round_that_is_whole_are_taken_from_the_notebooks(tmp_path: Path) -> None:
    folders = {name: tmp_path / name / "private" for name in ("ann", "bob")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "CACHEDIR.TAG").touch()
    watched = WatchedSecrets(RUN, folders)
    watched.look()
    with pytest.raises(SightFailed, match="in no round"):
        watched.newest()
    for number, names in ((9, ("ann", "bob")), (10, ("ann", "bob")), (11, ("ann",))):
        for name in names:
            place = folders[name] / f"{RUN}.{number}"
            Notebook(place, RunId(RUN), RoundNumber(number)).write_keys(
                digest("terms"), digest(f"{name} {number}"), b"keys"
            )
    unfinished = folders["bob"] / f"{RUN}.11"
    unfinished.mkdir()
    watched.look()
    (unfinished / "notebook").write_bytes((folders["ann"] / f"{RUN}.11" / "notebook").read_bytes()[:-1])
    watched.look()
    assert watched.newest() == (10, {name: digest(f"{name} 10") for name in folders})
