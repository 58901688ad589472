"""A client's update, made from its task's seed alone, with the bytes that a file would have."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.chunks import CHUNK_BYTES, Manifest, digest_of
from pluralllm.common.weights.update_format import UpdateFormat, encode, scales_of, update_format
from pluralllm.common.words.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Update:
    """An update as an outbox keeps it."""

    base_digest: str
    content: bytes
    manifest: Manifest
    metrics: Mapping[str, float]

    def chunk(self, index: int) -> bytes:
        return self.content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@lru_cache(maxsize=4)
def _format_of(spec: RunSpec) -> UpdateFormat:
    return update_format(layout_for(spec), spec.updates.encoding)


def make_update(spec: RunSpec, seed: int, base_digest: str) -> Update:
    """Makes a well-formed update with a small norm."""
    form, draw = _format_of(spec), np.random.default_rng(seed)
    delta = draw.normal(0, 0.01, form.layout.values).astype(np.float32)
    scales = scales_of(delta, form.plain)
    content = form.header + scales.astype("<f4").tobytes() + encode(delta, scales, form.plain, draw).tobytes()
    pieces = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    hashes = tuple(hashlib.sha256(piece).digest() for piece in pieces)
    return Update(
        base_digest, content, Manifest(digest_of(hashes), len(content), hashes), {"base_distance": draw.random() / 2}
    )
