"""Embeds texts as tasks of Ray. Only the driver writes the cache: the machines of the cluster need the model and no shared disk.

The pieces follow from the texts alone, and so do the batches in a piece. So the vectors are those of one process for any number
of workers, also if a worker dies and Ray embeds its piece again. Ray's handles have no types, so they are Any here.
"""

import contextlib
import hashlib
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pluralllm.client.work.embedding_pool import Piece
from pluralllm.common.errors.tree import ModelUnavailable
from pluralllm.common.predictor.embedding import Embedder, Progress, encoder_of
from pluralllm.common.predictor.encoder import Batch, Encoder
from pluralllm.common.predictor.plugin_encoder import PluginEncoder
from pluralllm.common.words.embedding import Embedding
from pluralllm.experiment.engines.ray_cluster import connected
from pluralllm.experiment.engines.ray_workers import (
    EMBEDDING_PACKAGES,
    Outcome,
    Terms,
    answered,
    gpu_here,
    in_order,
    outcome_of,
    task_of,
    versions_here,
)
from pluralllm.experiment.engines.units import RayOptions

ModelFiles = tuple[tuple[str, str], ...]  # names and SHA-256


@dataclass(frozen=True, slots=True)
class EmbedOrder:
    """One piece of texts for a worker of the cluster."""

    contract_json: str
    model_path: Path | None  # a folder of the worker's machine
    files: ModelFiles  # of the driver's folder
    device: str
    texts: tuple[str, ...]
    lacking: frozenset[str]  # a batch without any of these is left out
    terms: Terms


# The encoder of this worker, by contract, folder, files and device: at most one.
_encoders: dict[tuple[str, Path | None, ModelFiles, str], Encoder | PluginEncoder] = {}


def embed_piece(order: EmbedOrder) -> Outcome[list[Batch]]:
    """Embeds one piece in a worker of the cluster. Returns the batches that have lacking texts."""

    def work() -> list[Batch]:
        key = (order.contract_json, order.model_path, order.files, order.device)
        if key not in _encoders:
            contract, device = Embedding.model_validate_json(order.contract_json), torch.device(order.device)
            check_model(contract, order, device)
            _encoders.clear()
            _encoders[key] = encoder_of(contract, order.model_path, device)
        return list(_encoders[key].encode(order.texts, order.lacking.__contains__))

    return answered(order.terms, work)


def check_model(contract: Embedding, order: EmbedOrder, device: torch.device) -> None:
    """Checks that this machine has the driver's model. Without a folder, only the probes can tell.

    Raises ModelUnavailable if a file in the folder differs, or if the model cannot be loaded; EmbeddingMismatch for the probes.
    """
    if order.model_path is not None:
        if model_files(order.model_path) != order.files:
            problem = f"{order.model_path} on {socket.gethostname()} has other files than on this machine"
            raise ModelUnavailable(model=contract.model, problem=problem)
        return
    with (
        tempfile.TemporaryDirectory() as cache,
        contextlib.closing(Embedder(contract, None, Path(cache), device)) as one,
    ):
        one.check_probes()


def model_files(folder: Path | None) -> ModelFiles:
    """Returns names and SHA-256 of the files in a model's folder; none if there is no folder. Reads every byte."""
    if folder is None or not folder.is_dir():
        return ()
    return tuple(sorted((path.name, _sha256_of(path)) for path in folder.iterdir() if path.is_file()))


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gpu_of_worker() -> Outcome[str]:
    """Returns the kind of GPU of a worker of the cluster."""
    return Outcome(gpu_here())


def terms_of(options: RayOptions) -> Terms:
    """Returns the terms for all workers: the driver's versions and, with GPUs, the kind of GPU of the first worker.

    The driver asks a worker, because it may have no GPU itself. Raises WorkerDied if no worker answers.
    """
    gpu = None
    if options.gpus_per_unit:
        ask = task_of(gpu_of_worker, gpus=options.gpus_per_unit)
        gpu = outcome_of(ask.remote(), "the question for its kind of GPU").answer
    return Terms(versions_here(EMBEDDING_PACKAGES), options.is_mixed, gpu)


def fill_on_ray(
    embedder: Embedder, pieces: Sequence[Piece], options: RayOptions, jobs: int, on_progress: Progress
) -> None:
    """Embeds the texts that the cache lacks as tasks of Ray, after the probes of the run spec are checked.

    Memory: a few pieces for each core of the cluster, for any number of texts. jobs: cores where Ray runs on this machine alone.
    on_progress: called with the numbers of texts done and of all texts.
    Raises ModelUnavailable if a worker lacks the model; EmbeddingMismatch for the probes; EmbeddingUnusable if a vector is not
    finite, or 0; WorkerDied if workers die again and again in one piece; InvalidArgument if there is no such cluster.
    """
    contract, total = embedder.contract, sum(len(piece.texts) for piece in pieces)
    probes = Piece(0, tuple(probe.text for probe in contract.probes))
    lacking = {piece: frozenset(embedder.lacking(piece.texts)) for piece in (probes, *pieces)}
    done = sum(len(piece.texts) for piece in pieces if not lacking[piece])
    device = "cuda" if options.gpus_per_unit else "cpu"
    embed = task_of(embed_piece, gpus=options.gpus_per_unit)

    def begin(piece: Piece) -> Any:
        return embed.remote(
            EmbedOrder(
                contract.model_dump_json(), embedder.model_path, files, device, piece.texts, lacking[piece], terms
            )
        )

    if not any(lacking.values()):
        embedder.check_probes()
        return
    files = model_files(embedder.model_path)
    with connected(options, jobs):
        terms = terms_of(options)
        for some in ((probes,), pieces):
            with contextlib.closing(in_order([piece for piece in some if lacking[piece]], begin)) as begun:
                for piece, reference in begun:
                    outcome: Outcome[list[Batch]] = outcome_of(reference, str(piece))
                    for batch in outcome.answer or ():
                        embedder.keep(batch, lacking[piece])
                    done += 0 if piece is probes else len(piece.texts)
                    on_progress(done, total)
            if some is not pieces:
                embedder.check_probes()
