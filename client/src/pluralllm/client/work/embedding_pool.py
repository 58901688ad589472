"""Fills the cache with the vectors of many texts: by this process, or by worker processes on several devices.

The vectors do not depend on the number of workers, nor on a worker that dies or a run that is killed: the pieces follow from the
texts alone, and so do the batches in a piece. The cache keeps each batch as it is made, so the same call goes on where it ended.
"""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pluralllm.client.work.embedding_orders import EMBED_PIECE, EmbeddedPiece, EmbedPiece
from pluralllm.client.work.side_by_side import side_by_side
from pluralllm.client.work.worker_process import WorkerProcess
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.predictor.embedding import Embedder, Progress, vectors_in_cache
from pluralllm.common.predictor.encoder import pieces_of

WORKER_COMMAND = (sys.executable, "-m", "pluralllm.client.work.embedding_worker")


class Piece(NamedTuple):
    """Distinct texts that are embedded together."""

    number: int  # 0: the probes
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"piece {self.number} of the texts"  # the texts are private


@dataclass(frozen=True, slots=True)
class Workers:
    """The worker processes that embed side by side: one for each device named. A device may be named several times."""

    devices: tuple[str, ...]
    option: str = "--workers"  # sets their number; an error about dead workers names it
    command: tuple[str, ...] = WORKER_COMMAND

    @classmethod
    def parse(cls, workers: int | None, devices: str | None, device: str, prefix: str = "--") -> "Workers | None":
        """Returns the workers that a command's options ask for; None for one worker, whose work this process does itself.

        devices: names of devices with commas between them, or None. workers: number of workers on `device`, or None.
        prefix: the options are called so, followed by `workers` and `devices`.
        Raises InvalidArgument if both are given, a name is empty, or the devices are of several kinds.
        """
        if devices is None:
            return cls((device,) * workers, f"{prefix}workers") if workers is not None and workers > 1 else None
        if workers is not None:
            raise InvalidArgument(
                field=f"{prefix}workers", problem=f"is one for each of the {prefix}devices; leave it out"
            )
        names = tuple(name.strip() for name in devices.split(","))
        if not all(names):
            problem = f"is {devices!r}; write names with commas between them, for example cuda:0,cuda:1"
            raise InvalidArgument(field=f"{prefix}devices", problem=problem)
        if len({name.rstrip("0123456789").rstrip(":") for name in names}) > 1:
            problem = f"is {devices!r}, devices of several kinds: a vector would depend on which of them is idle; name one kind"
            raise InvalidArgument(field=f"{prefix}devices", problem=problem)
        return cls(names, f"{prefix}devices")


def cut(texts: Sequence[str]) -> list[Piece]:
    """Cuts the distinct ones of these texts into pieces."""
    return [Piece(number, tuple(piece)) for number, piece in enumerate(pieces_of(list(dict.fromkeys(texts))), 1)]


def check_room(embedder: Embedder, pieces: Sequence[Piece]) -> None:
    """Checks that the cache can keep the vectors of all pieces. Raises InvalidArgument: it would forget the first ones."""
    texts, room = sum(len(piece.texts) for piece in pieces), vectors_in_cache(embedder.contract)
    if texts > room:
        problem = (
            f"the cache keeps {room} vectors of this model, and there are {texts} distinct texts; embed fewer questions"
        )
        raise InvalidArgument(field="--cache", problem=problem)


def fill(embedder: Embedder, pieces: Sequence[Piece], workers: Workers | None, on_progress: Progress) -> int:
    """Embeds what the cache lacks, after the probes of the run spec are checked.

    Returns the largest memory of a worker, in bytes; 0 if no worker was needed.
    on_progress: called with the numbers of texts done and of all texts.
    Raises ModelUnavailable if the model cannot be loaded; EmbeddingMismatch for the probes; EmbeddingUnusable if a vector is not
    finite, or 0; WorkerDied if workers die again and again in one piece.
    """
    count = _Count(sum(len(piece.texts) for piece in pieces), on_progress)
    if workers is None:
        embedder.check_probes()
        for piece in pieces:
            embedder.fill_cache(piece.texts, count.of(piece))
        return 0
    lacking = [piece for piece in pieces if embedder.lacking(piece.texts)]
    for piece in pieces:
        if piece not in lacking:
            count.set(piece, len(piece.texts))
    if lacking:
        return asyncio.run(_fill(embedder, lacking, workers, count))
    embedder.check_probes()
    return 0


class _Count:
    """The number of texts done, over all pieces."""

    def __init__(self, total: int, on_progress: Progress) -> None:
        self._total, self._on_progress = total, on_progress
        self._done: dict[int, int] = {}

    def set(self, piece: Piece, done: int) -> None:
        self._done[piece.number] = done
        self._on_progress(sum(self._done.values()), self._total)

    def of(self, piece: Piece) -> Progress:
        """Returns the function to call with the numbers of texts done and of all texts of a piece."""

        def set_done(done: int, _all: int) -> None:
            self.set(piece, done)

        return set_done


async def _fill(embedder: Embedder, pieces: Sequence[Piece], workers: Workers, count: _Count) -> int:
    """Gives the pieces to worker processes. The first worker embeds the probes before, so this process needs no model."""
    devices = {WorkerProcess(workers.command): device for device in workers.devices[: len(pieces)]}
    contract = embedder.contract
    order = EmbedPiece(contract.model_dump_json(), embedder.model_path, embedder.folder, "", ())

    async def ask(piece: Piece, worker: WorkerProcess) -> EmbeddedPiece:
        def progress(_stage: str, done: int, _all: int) -> None:
            if piece.number:
                count.set(piece, done)

        return await worker.ask(EMBED_PIECE, replace(order, device=devices[worker], texts=piece.texts), progress)

    peak = 0
    probes = [Piece(0, tuple(probe.text for probe in contract.probes))] if contract.probes else []
    try:
        for some, few in ((probes, tuple(devices)[:1]), (pieces, tuple(devices))):
            async with contextlib.aclosing(side_by_side(some, few, ask, workers.option)) as embedded:
                async for _, result in embedded:
                    peak = max(peak, result.peak_bytes)
            if some is probes:
                embedder.check_probes()
    finally:
        await asyncio.gather(*(worker.stop() for worker in devices))
    return peak
