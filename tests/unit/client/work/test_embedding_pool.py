"""Embedding by several workers: the same vectors as by one process, also after a kill in the middle of a piece."""

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from support.cached_vectors import rows
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.client.work import embedding_pool
from pluralllm.client.work.embedding_orders import EmbedPiece
from pluralllm.client.work.embedding_pool import Piece, Workers, check_room, cut, fill
from pluralllm.client.work.embedding_worker import PieceWork
from pluralllm.common.errors.tree import EmbeddingMismatch, InvalidArgument, WorkerDied
from pluralllm.common.predictor import embedding, encoder
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.words.embedding import Embedding, Probe
from pluralllm.common.words.questions import Question

CPU = torch.device("cpu")
QUESTIONS = [Question(f"{'Agree ' * (n % 7)}Tea {n}?", ("Yes", f"No {n}"), (0.5, 0.5)) for n in range(200)]
# The worker notes each order in a file. It dies in its first piece, and in each piece if its argument says so.
WORKER = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    order, path = asked["order"], sys.argv[1]
    begun = os.path.exists(path) and open(path).read().count(order["texts"][0])
    with open(path, "a") as file:
        file.write(json.dumps([order["device"], *order["texts"]]) + "\\n")
    print(json.dumps({"id": asked["id"], "progress": ["embedding", 1, 2]}), flush=True)
    if sys.argv[2] == "dies always" or (order["texts"][0] == sys.argv[2] and not begun):
        os._exit(9)
    if sys.argv[2] == "refuses":
        print(json.dumps({"id": asked["id"], "error": ["INVALID_ARGUMENT", {"field": "device", "problem": "p"}]}), flush=True)
    print(json.dumps({"id": asked["id"], "progress": ["embedding", len(order["texts"]), 2]}), flush=True)
    print(json.dumps({"id": asked["id"], "result": {"texts": 1, "peak_bytes": len(order["texts"])}}), flush=True)
"""


class Checked(Embedder):
    """An embedder that notes when the probes are checked, in the file where the workers note their orders."""

    def check_probes(self) -> None:
        with (self.folder / "orders").open("a") as file:
            file.write('["check"]\n')


def quiet(_done: int, _all: int) -> None:
    pass


def contract(**changes: object) -> Embedding:
    return Embedding.model_validate({"model": "tiny", "dimension": 2 * WIDTH, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedding_model(tmp_path_factory.mktemp("tiny"))


def test_a_piece_that_was_interrupted_gets_the_same_vectors_bit_by_bit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "TEXTS_AT_ONCE", 150)
    monkeypatch.setattr(encoder, "BATCH_TOKENS", 100)  # several batches in a piece
    encoded: list[tuple[str, ...]] = []
    monkeypatch.setattr(encoder.Encoder, "encode", noted(encoder.Encoder.encode, encoded))
    whole = Embedder(contract(), tiny, tmp_path / "whole", CPU)
    pieces = cut(whole.texts_of(QUESTIONS))
    assert [len(piece.texts) for piece in pieces] == [150, 150, 101]
    alike = [text for piece in pieces for text in piece.texts]
    assert alike == sorted(alike), "texts with a common beginning are in one piece"
    reports: list[tuple[int, int]] = []
    assert fill(whole, pieces, None, lambda done, of: reports.append((done, of))) == 0
    assert reports == sorted(reports)
    assert reports[-1] == (401, 401)

    def killed(done: int, _all: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    interrupted = Embedder(contract(), tiny, tmp_path / "killed", CPU)
    with pytest.raises(KeyboardInterrupt):
        fill(interrupted, pieces, None, killed)
    in_one_go = set(encoded)
    encoded.clear()
    kept = rows(tmp_path / "killed")
    assert 80 < len(kept) < 300, "the batches before the kill are kept, with their numbers of tokens"
    batches: list[int] = []
    monkeypatch.setattr(Embedder, "_keep", _counted(Embedder._keep, batches))
    work = PieceWork()
    for piece in reversed(pieces):
        order = EmbedPiece(contract().model_dump_json(), tiny, tmp_path / "killed", "cpu", piece.texts)
        assert work.embed(lambda *_: None, order).texts == len(piece.texts)
    lacked = 401 - len(kept) // 2
    assert sum(batches) == sum(map(len, encoded)) == lacked, "what was kept is not embedded again"
    with sqlite3.connect(tmp_path / "killed" / "embeddings.sqlite3") as file:
        file.execute("DELETE FROM vectors WHERE key = ?", (whole._hash(pieces[0].texts[70]),))
    fill(interrupted, pieces, None, quiet)
    assert set(encoded) <= in_one_go, "the bits of a vector depend on the texts beside it"
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert fill(interrupted, pieces, Workers(("cpu", "cpu"), command=("no such command",)), quiet) == 0


def noted(encode: Callable[..., Iterator[Any]], batches: list[tuple[str, ...]]) -> Callable[..., Iterator[Any]]:
    def encode_and_note(*facts: Any) -> Iterator[Any]:
        for texts, *rest in encode(*facts):
            batches.append(tuple(texts))
            yield texts, *rest

    return encode_and_note


def _counted(keep: object, batches: list[int]) -> object:
    def counted(self: Embedder, texts: list[str], *facts: object) -> None:
        batches.append(len(texts))
        keep(self, texts, *facts)  # type: ignore[operator]

    return counted


def test_a_vector_that_the_cache_has_stays_when_the_file_grows(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(contract(), tiny, tmp_path, CPU)
    fill(embedder, cut(embedder.texts_of(QUESTIONS[:10])), None, quiet)
    before = dict(rows(tmp_path))
    marked = {key: bytes(np.full(WIDTH, 2, "<f4")) if len(row) == 4 * WIDTH else row for key, row in before.items()}
    with sqlite3.connect(tmp_path / "embeddings.sqlite3") as file:
        file.executemany("UPDATE vectors SET vector = ? WHERE key = ?", [(row, key) for key, row in marked.items()])
    fill(embedder, cut(embedder.texts_of(QUESTIONS[:20])), None, quiet)
    assert {key: row for key, row in rows(tmp_path) if key in before} == marked
    assert len(rows(tmp_path)) == 2 * 41


def orders(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "orders").read_text().splitlines()]


def by_workers(folder: Path, dies_in: str, devices: tuple[str, ...], reports: list[tuple[int, int]]) -> int:
    (folder / "worker.py").write_text(WORKER)
    command = (sys.executable, "-S", str(folder / "worker.py"), str(folder / "orders"), dies_in)
    probes = (Probe(text="probe", vector=(1.0,) * WIDTH),)
    embedder = Checked(contract(probes=probes), None, folder, CPU)
    pieces = [Piece(n, (f"a{n}", f"b{n}")) for n in range(1, 4)]
    return fill(embedder, pieces, Workers(devices, command=command), lambda done, of: reports.append((done, of)))


def test_a_killed_worker_is_replaced_and_the_probes_come_first(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    with capture_logs() as logs:
        assert by_workers(tmp_path, "a2", ("cuda:0", "cuda:1"), reports) == 2
    first, checked, *others = orders(tmp_path)
    assert (first, checked) == (["cuda:0", "probe"], ["check"])
    assert sorted(texts for _, *texts in others) == [["a1", "b1"], ["a2", "b2"], ["a2", "b2"], ["a3", "b3"]]
    assert {device for device, *_ in others} == {"cuda:0", "cuda:1"}
    assert reports[-1] == (6, 6), "the probes are not among the texts"
    assert "unit.retried" in [entry["event"] for entry in logs]
    assert "a2" not in str(logs), "texts are private"


def test_errors_of_workers_say_the_option_and_never_a_text(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"exit code 9, 3 times in piece 0 of the texts.*fewer --workers"):
        by_workers(tmp_path, "dies always", ("cpu", "cpu"), [])
    with pytest.raises(InvalidArgument, match="device"):
        by_workers(tmp_path, "refuses", ("cpu",), [])
    assert len(orders(tmp_path)) == 3 + 1


def test_workers_come_from_the_options_of_a_command() -> None:
    assert Workers.parse(None, None, "cpu") is Workers.parse(1, None, "cpu") is None
    assert Workers.parse(3, None, "cuda") == Workers(("cuda", "cuda", "cuda"))
    assert Workers.parse(None, "cuda:0, cuda:1", "auto") == Workers(("cuda:0", "cuda:1"), "--devices")
    with pytest.raises(InvalidArgument, match="leave it out"):
        Workers.parse(2, "cuda:0", "auto")
    with pytest.raises(InvalidArgument, match="for example cuda:0,cuda:1"):
        Workers.parse(None, "cuda:0,", "auto")
    with pytest.raises(InvalidArgument, match="several kinds"):
        Workers.parse(None, "cuda:0,cpu", "auto")
    with pytest.raises(InvalidArgument, match="--embedding-workers"):
        Workers.parse(2, "cuda:0", "auto", prefix="--embedding-")
    assert embedding_pool.WORKER_COMMAND[1:] == ("-m", "pluralllm.client.work.embedding_worker")


def test_more_texts_than_the_cache_keeps_are_refused_before_any_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(contract(), None, tmp_path, CPU)
    monkeypatch.setattr(embedding, "MAX_BYTES", 4 * (4 * WIDTH + embedding.ROW_BYTES))
    check_room(embedder, [Piece(1, ("a", "b")), Piece(2, ("c", "d"))])
    with pytest.raises(InvalidArgument, match="keeps 4 vectors of this model, and there are 5 distinct texts"):
        check_room(embedder, [Piece(1, ("a", "b")), Piece(2, ("c", "d", "e"))])


def test_a_model_of_another_width_is_noticed_at_the_first_batch(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingMismatch):
        Embedder(contract(dimension=2 * WIDTH + 2), tiny, tmp_path, CPU).fill_cache(["Tea"], quiet)
    assert rows(tmp_path) == []


def test_this_process_checks_the_probes_and_then_looks_each_text_up_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "TEXTS_AT_ONCE", 150)
    embedder = Embedder(contract(), tiny, tmp_path, CPU)
    pieces = cut(embedder.texts_of(QUESTIONS))
    steps: list[str | int] = []

    def lacking(texts: Sequence[str]) -> list[str]:
        steps.append(len(texts))
        return []

    monkeypatch.setattr(embedder, "lacking", lacking)
    monkeypatch.setattr(embedder, "check_probes", lambda: steps.append("probes"))
    reports: list[tuple[int, int]] = []
    assert fill(embedder, pieces, None, lambda done, of: reports.append((done, of))) == 0
    assert steps == ["probes", 150, 150, 101]
    assert reports == [(150, 401), (300, 401), (401, 401)]
