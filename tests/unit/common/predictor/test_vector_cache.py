"""The cache of vectors: what was put in comes out, and the vectors that were not used for longest go first."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from pluralllm.common.predictor import vector_cache
from pluralllm.common.predictor.vector_cache import VectorCache

LIMIT = 400_000  # bytes; about 200 rows of 1,536 bytes


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def vector(number: int) -> NDArray[np.float32]:
    return np.full(384, number, np.float32)


def fill(cache: VectorCache, first: int, last: int) -> None:
    cache.keep({key(number): vector(number) for number in range(first, last)})


def kept(cache: VectorCache, numbers: range) -> list[int]:
    """Returns the numbers whose vectors the file has, without a use of them."""
    rows = {row[0] for row in cache._file.execute("SELECT key FROM vectors")}
    return [number for number in numbers if key(number) in rows]


def test_vectors_come_back_and_survive_the_process(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "new" / "folder")
    cache.keep({key(number): vector(number) for number in range(9)})
    cache.keep({key(3): vector(33)})
    cache.close()
    again = VectorCache(tmp_path / "new" / "folder")
    vectors = again.look_up([key(3), key(8), key(9)])
    assert list(vectors) == [key(3), key(8)]
    assert (vectors[key(3)][0], vectors[key(8)][383]) == (33, 8)
    assert vectors[key(3)].dtype == np.float32


@pytest.mark.parametrize("at_once", [17, 100])
def test_the_file_stays_within_its_bytes_and_the_oldest_rows_go(tmp_path: Path, at_once: int) -> None:
    cache = VectorCache(tmp_path, LIMIT)
    for first in range(0, 1000, at_once):
        fill(cache, first, min(first + at_once, 1000))
        assert cache.used_bytes() <= LIMIT
    numbers = kept(cache, range(1000))
    assert numbers == list(range(numbers[0], 1000)), "the newest ones"
    assert len(numbers) > 120
    assert (tmp_path / "embeddings.sqlite3").stat().st_size < 2 * LIMIT


def test_rows_that_are_used_stay(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, LIMIT)
    fill(cache, 0, 10)
    for first in range(10, 1010, 40):
        fill(cache, first, first + 40)
        assert len(cache.look_up([key(number) for number in range(10)])) == 10
    assert kept(cache, range(10)) == list(range(10))
    assert kept(cache, range(10, 600)) == []


def test_a_look_writes_nothing_while_the_cache_is_less_than_half_full(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, 1 << 30)
    fill(cache, 0, 100)
    changes = cache._file.total_changes
    for _ in range(3):
        cache.look_up([key(number) for number in range(100)])
    assert cache._file.total_changes == changes


def test_a_file_of_an_earlier_release_is_used_and_becomes_smaller(tmp_path: Path) -> None:
    file = sqlite3.connect(tmp_path / "embeddings.sqlite3")
    file.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
    file.executemany("INSERT INTO vectors VALUES (?, ?)", [(key(n), vector(n).tobytes()) for n in range(1000)])
    file.commit()
    file.close()
    cache = VectorCache(tmp_path, LIMIT)
    assert cache.look_up([key(0)])[key(0)][0] == 0
    cache.keep({key(1000): vector(1000)})
    assert cache.used_bytes() <= LIMIT
    assert kept(cache, range(990, 1001)) == list(range(990, 1001))


def test_a_limit_below_one_vector_keeps_the_newest_one_only(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, 1)
    for number in range(3):
        fill(cache, number, number + 1)
    assert kept(cache, range(3)) == [2]


def test_a_failed_write_leaves_the_cache_usable_and_a_look_needs_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VectorCache(tmp_path, LIMIT)
    fill(cache, 0, 150)  # more than half full
    other = sqlite3.connect(tmp_path / "embeddings.sqlite3", isolation_level=None)
    cache._file.execute("PRAGMA busy_timeout = 0")
    other.execute("BEGIN IMMEDIATE")  # as long as another process writes
    with pytest.raises(sqlite3.OperationalError):
        cache.keep({key(150): vector(150)})
    assert list(cache.look_up([key(0)])) == [key(0)]
    other.execute("ROLLBACK")
    monkeypatch.setattr(cache, "used_bytes", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.keep({key(150): vector(150)})
    monkeypatch.undo()
    assert kept(cache, range(150, 151)) == []
    cache.keep({key(150): vector(150)})
    assert kept(cache, range(150, 151)) == [150]


def test_the_products_cache_has_a_gigabyte(tmp_path: Path) -> None:
    assert VectorCache(tmp_path)._max_bytes == vector_cache.MAX_BYTES == 1 << 30


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_file_is_replaced_by_an_empty_one(tmp_path: Path, *, whole: bool) -> None:
    cache = VectorCache(tmp_path)
    fill(cache, 0, 500)
    cache.close()
    path = tmp_path / vector_cache.FILE
    good = path.read_bytes()
    path.write_bytes(b"x" * len(good) if whole else good[:4096] + b"x" * (len(good) - 4096))
    with capture_logs() as logs:
        again = VectorCache(tmp_path)
        assert again.look_up([key(1)]) == {}
        fill(again, 0, 3)
    assert [line["event"] for line in logs] == ["embeddings.damaged"]
    assert list(again.look_up([key(1), key(5)])) == [key(1)]


def test_damage_that_only_a_write_finds_is_mended_too(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    fill(cache, 0, 500)
    cache.close()
    path = tmp_path / vector_cache.FILE
    again = VectorCache(tmp_path)
    path.write_bytes(path.read_bytes()[:4096] + b"x" * 400_000)
    fill(again, 0, 3)
    assert list(again.look_up([key(1), key(5)])) == [key(1)]


def test_an_error_that_is_no_damage_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    fill(cache, 0, 3)
    with pytest.raises(sqlite3.OperationalError):
        cache._begin_anew(sqlite3.OperationalError("database is locked"))
    assert kept(cache, range(5)) == [0, 1, 2]


def test_a_full_disk_stops_no_embedding_and_is_reported_once(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    fill(cache, 0, 3)
    cache._file.execute("PRAGMA max_page_count = 8")
    with capture_logs() as logs:
        fill(cache, 3, 100)
        fill(cache, 100, 200)
    assert [line["event"] for line in logs] == ["embeddings.not_kept"]
    assert list(cache.look_up([key(1), key(50)])) == [key(1)]


def test_a_cache_that_cannot_be_begun_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def without_room(path: Path | str, **options: Any) -> sqlite3.Connection:
        file: sqlite3.Connection = connect(path, **options)
        if path != ":memory:":
            file.execute("PRAGMA max_page_count = 1")
        return file

    monkeypatch.setattr(sqlite3, "connect", without_room)
    with capture_logs() as logs:
        cache = VectorCache(tmp_path)
        fill(cache, 0, 3)
    assert [line["event"] for line in logs] == ["embeddings.not_kept"]
    assert list(cache.look_up([key(1), key(5)])) == [key(1)]
