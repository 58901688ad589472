"""The order to embed one piece of texts, and its result. The two ends of the pipe import this module."""

from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.work.commands import Command


@dataclass(frozen=True, slots=True)
class EmbedPiece:
    """The order to embed the texts of a piece that the cache lacks, and to keep their vectors there."""

    contract_json: str  # the run spec's [embedding] section
    model_path: Path | None  # folder of the embedding model; None: the model id is looked up
    cache: Path  # folder of embedded texts
    device: str
    texts: tuple[str, ...]  # distinct


@dataclass(frozen=True, slots=True)
class EmbeddedPiece:
    """The result of EmbedPiece. The vectors are in the cache."""

    texts: int
    peak_bytes: int  # of memory that the process held so far


EMBED_PIECE = Command("embed", EmbedPiece, EmbeddedPiece)
