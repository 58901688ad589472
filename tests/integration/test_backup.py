"""Backups of a running federation: each is complete, and from each the restored run ends with the same model."""

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drill.client import Behaviour
from drill.fleet import Fleet, fleet
from drill.pairs import Embedded, Served, StorePair
from drill.scenarios import begin, receipts
from drill.trial import ALL, UNDISTURBED
from support.commands import SERVER, typed
from support.process_harness import process_spec
from support.real_stores import S3, Postgres

from pluralllm.common.errors.tree import BackupUnusable
from pluralllm.common.process.configuration import load_config
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.ids import Digest
from pluralllm.server.commands import backup
from pluralllm.server.commands.backup import PARTIAL, Contents, back_up
from pluralllm.server.commands.restore import restore
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.storage.by_url import blobs_of, database_url
from pluralllm.server.storage.retention import kept_blobs
from pluralllm.server.storage.snapshot import take_snapshot
from pluralllm.server.storage.sql_store import open_store
from pluralllm.server.storage.state_directory import StateDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("forked_workers")]
SEED = 20250312
PAIRS = (Embedded.name, Served.name)
NOW_S = 2e9  # the time of a restore
SPEC = process_spec(
    rounds=8,
    round={"evaluate_every": 4},
    predictor={"d_model": 160},
    aggregation={"optimizer": "fedyogi", "server_learning_rate": 0.003},
)


@dataclass(frozen=True)
class BackedUp:
    """A run that has ended, and the backups that were made of it meanwhile."""

    fleet: Fleet
    digest: str  # the digest of the run's last version
    backups: tuple[Path, ...]  # oldest first

    @property
    def config(self) -> ServerConfig:
        return config_of(self.fleet.config)

    def in_mid_run(self, rng: random.Random) -> Path:
        return rng.choice([path for path in self.backups if 0 < newest_version(path) < SPEC.rounds])

    def from_the_beginning(self) -> Path:
        """The first backup with moments of a server optimizer, which retention has deleted since."""
        return next(path for path in self.backups if newest_version(path) > 0)


def quiet(what: str, done: int, total: int) -> None:
    """Ignores the progress."""


def config_of(file: Path) -> ServerConfig:
    return load_config(ServerConfig, file, {})


def newest_version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path / "coordinator.sqlite3")) as rows:
        return int(rows.execute("SELECT coalesce(max(version), -1) FROM versions").fetchone()[0])


@pytest.fixture(scope="module")
def pairs(postgres: Postgres, s3: S3) -> Iterator[Mapping[str, StorePair]]:
    served = Served(postgres, s3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield {Embedded.name: Embedded(), Served.name: served}


@pytest.fixture(scope="module", params=PAIRS)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pairs: Mapping[str, StorePair]
) -> Iterator[BackedUp]:
    """Makes two backups in each round: one while a client holds the round open, one right after that client may deliver.

    The second one falls on a random moment, while rounds go on and retention deletes old files.
    """
    folder = tmp_path_factory.mktemp("source")
    with fleet(folder / "fleet", pairs[request.param], UNDISTURBED, keep_updates="1") as running_fleet:
        asyncio.run(leave_blob(config_of(running_fleet.config)))
        begin(running_fleet, SPEC, {"ann": dict.fromkeys(range(1, SPEC.rounds + 1), Behaviour.WAIT), "ben": {}})
        backups: list[Path] = []

        def take() -> None:
            backups.append(folder / f"backup-{len(backups):02}")
            asyncio.run(back_up(config_of(running_fleet.config), backups[-1], quiet))

        for number in range(1, SPEC.rounds + 1):
            running_fleet.insist(f"round {number} waits for ann", lambda remote, n=number: "ben" in receipts(remote, n))  # type: ignore[misc]
            take()
            running_fleet.let_go("ann", number)
            take()
        yield BackedUp(running_fleet, running_fleet.finish(), tuple(backups))


async def leave_blob(config: ServerConfig) -> None:
    """Stores a blob without a record, as a coordinator does that is killed between the two steps."""
    with StateDirectory(config.state_dir) as state:
        draft = state.scratch / "draft"
        draft.write_bytes(b"nobody names this")
        await blobs_of(config, state).put(manifest_of(draft).digest, draft)


def restored(folder: Path, old_fleet: Fleet, settings: Mapping[str, str], directory: Path) -> tuple[Path, Contents]:
    """Writes the configuration of a coordinator with other stores at the same address, and restores into them."""
    kept = tomllib.loads(old_fleet.config.read_text())
    values = {key: kept[key] for key in ("listen", "enrolment_listen", "lease_s", "keep_updates")}
    config = folder / "restored.toml"
    values |= {"state_dir": str(folder / "restored"), **settings}
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return config, asyncio.run(restore(config_of(config), directory, NOW_S, quiet))


def go_on(old_fleet: Fleet, config: Path) -> dict[str, Any]:
    """Starts a coordinator at the old address for the same clients; returns the run at its end."""
    coordinator, clients = old_fleet.processes[:2]
    shutil.copyfile(config, old_fleet.config)
    old_fleet.start_coordinator()
    clients.start()
    old_fleet.insist("the run ends", lambda remote: remote.get_run("r")["phase"] == "ended")
    run = old_fleet.insist("the run is shown", lambda remote: remote.get_run("r"))
    old_fleet.insist("the clients hear that the run is over", lambda _: not clients.running)
    # The database's own numbers continue from the state of the backup.
    made = old_fleet.insist("another run is made", lambda remote: remote.create_run("s", SPEC.canonical_json()))
    assert made
    assert coordinator.stop() == 0
    old_fleet.verify()
    return run


def test_backups_are_taken_in_mid_run_and_leave_nothing_else(source: BackedUp) -> None:
    versions = [newest_version(path) for path in source.backups]
    assert versions == sorted(versions)
    assert versions[::2] == list(range(SPEC.rounds)), "each round was held open once"
    assert list(source.backups[0].parent.glob(f"*{PARTIAL}")) == []


@pytest.mark.parametrize("into", PAIRS)
def test_from_a_backup_in_mid_run_the_run_ends_with_the_same_bits(
    tmp_path: Path, source: BackedUp, pairs: Mapping[str, StorePair], into: str
) -> None:
    if into == source.fleet.pair.name and not ALL:
        pytest.skip("the move to the other stores shows the same; all: make faults")
    chosen = source.in_mid_run(random.Random(f"{SEED} {source.fleet.pair.name} {into}"))
    config, _ = restored(tmp_path, source.fleet, pairs[into].settings(tmp_path), chosen)
    before = source.fleet.config.read_bytes()
    try:
        run = go_on(source.fleet, config)
    finally:
        source.fleet.config.write_bytes(before)
    assert run["outcome"] == "completed", run["outcome_reason"]
    assert run["version_digest"] == source.digest


@pytest.mark.parametrize("into", PAIRS)
def test_what_is_restored_from_any_backup_is_backed_up_again_as_it_was(
    tmp_path: Path, source: BackedUp, pairs: Mapping[str, StorePair], into: str
) -> None:
    path = random.Random(f"{SEED} {into}").choice(source.backups)
    config, contents = restored(tmp_path, source.fleet, pairs[into].settings(tmp_path), path)
    again = tmp_path / "again"
    assert asyncio.run(back_up(config_of(config), again, quiet)) == contents
    assert files(again) == files(path)
    assert rows(again) == rows(path)


def files(directory: Path) -> dict[str, bytes]:
    """Returns the blobs and the authority's files."""
    found = [*directory.glob("blobs/*/*"), *directory.glob("authority/*")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def rows(directory: Path) -> dict[str, list[Any]]:
    """Returns the rows of each table, but not the one for the lead."""
    with contextlib.closing(sqlite3.connect(directory / "coordinator.sqlite3")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f'SELECT * FROM "{name}"')) for name in names if name != "leadership"}


def test_a_coordinator_that_served_before_the_restore_is_fenced_off(
    tmp_path: Path, source: BackedUp, pairs: Mapping[str, StorePair]
) -> None:
    config, _ = restored(tmp_path, source.fleet, pairs[source.fleet.pair.name].settings(tmp_path), source.backups[0])

    async def next_generation() -> int:
        settings = config_of(config)
        store = await open_store(database_url(settings, StateDirectory(settings.state_dir)))
        try:
            return await store.take_over()
        finally:
            await store.close()

    assert asyncio.run(next_generation()) == NOW_S + 1


def test_the_command_says_what_is_in_a_backup_and_that_it_holds_secrets(tmp_path: Path, source: BackedUp) -> None:
    made = tmp_path / "made"
    command = [SERVER, "backup", str(made), "--config", str(source.fleet.config)]
    as_json = source.fleet.pair.name == Served.name  # one form for each pair: a process takes a second
    options = ["--json"] if as_json else []
    output = typed(*command, *options).stdout
    blobs = len(list(made.glob("blobs/*/*")))
    if as_json:
        facts = json.loads(output)
        assert facts["audit"]["clean"]
        assert facts["audit"]["versions"] == SPEC.rounds + 1
        assert facts["blobs"] == blobs
    else:
        assert f"{blobs} blobs" in output
        assert f"{SPEC.rounds + 1} versions" in output
        assert "clean" in output
        assert "keep it as secret" in output
    assert {path.stat().st_mode & 0o077 for path in (made / "authority").iterdir()} == {0}


def test_a_moment_whose_blobs_are_past_retention_is_taken_again(
    tmp_path: Path, source: BackedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, take = source.from_the_beginning(), take_snapshot
    taken: list[Path] = []

    async def take_late(url: object, target: Path) -> None:
        taken.append(target)
        if len(taken) == 1:  # the first snapshot comes from before the last deletions
            shutil.copyfile(old / "coordinator.sqlite3", target)
        else:
            await take(url, target)  # type: ignore[arg-type]

    monkeypatch.setattr(backup, "take_snapshot", take_late)
    contents = asyncio.run(back_up(source.config, tmp_path / "backup", quiet))
    assert len(taken) == 2
    assert contents.report.versions == SPEC.rounds + 1
    assert contents.report.orphan_blobs == 0


def test_when_every_moment_lacks_blobs_the_backup_says_which_are_lost(
    tmp_path: Path, source: BackedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = source.from_the_beginning()

    async def take_late(url: object, target: Path) -> None:
        shutil.copyfile(old / "coordinator.sqlite3", target)

    monkeypatch.setattr(backup, "take_snapshot", take_late)
    with pytest.raises(BackupUnusable, match="lost"):
        asyncio.run(back_up(source.config, tmp_path / "backup", quiet))
    assert not (tmp_path / "backup").exists()


def test_what_nothing_names_goes_from_the_blob_store_with_a_round(source: BackedUp) -> None:
    async def left() -> set[Digest]:
        state = StateDirectory(source.config.state_dir)
        store = await open_store(database_url(source.config, state))
        try:
            return set(await blobs_of(source.config, state).digests()) - await kept_blobs(store, 1)
        finally:
            await store.close()

    assert asyncio.run(left()) == set()
