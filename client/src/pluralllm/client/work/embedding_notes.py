"""Keeps on disk what the embedding model could not see in a private file, so that doctor can say it.

The notes name kinds, never numbers: these would tell how many questions have answers, and a support bundle holds them.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pluralllm.common.errors.tree import StorageFull
from pluralllm.common.process.files import write_private
from pluralllm.common.text.reading import Unreadable, read_json

MAX_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class EmbeddingNotes:
    """The kinds of things that an embedding model could not see in a private file; () if it saw everything."""

    model: str
    not_seen: tuple[str, ...]


def keep_notes(cache: Path, data: Path, model: str, not_seen: Sequence[str]) -> None:
    """Writes the notes about a private file to the cache folder. A folder that takes no file is no reason to stop."""
    content = json.dumps({"model": model, "not_seen": list(not_seen)}, ensure_ascii=False)
    with contextlib.suppress(OSError, StorageFull):
        write_private(_file(cache, data), content.encode())


def read_notes(cache: Path, data: Path) -> EmbeddingNotes | None:
    """Returns the notes about a private file that the last prepared run has left; None if there are none, or none readable."""
    try:
        kept = read_json(_file(cache, data), MAX_BYTES)
        return EmbeddingNotes(str(kept["model"]), tuple(map(str, kept["not_seen"])))
    except (Unreadable, TypeError, KeyError):
        return None


def _file(cache: Path, data: Path) -> Path:
    """Returns the path of the notes. Daemons that share a cache folder have different private files."""
    return cache / f"not-seen-{hashlib.sha256(str(data.absolute()).encode()).hexdigest()[:16]}.json"
