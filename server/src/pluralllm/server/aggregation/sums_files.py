"""Makes the files of the next version in a run whose updates are terms of sums. The functions block, so they run in a thread.

The solver's state is a file beside the version, as a server optimizer's moments are. Only versions of the first stage have it.
Memory holds one update at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pluralllm.common.predictor.architecture import finds_subspace, version_layout
from pluralllm.common.process.files import storage_errors
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import Layout, layout_of, write_weights
from pluralllm.common.weights.stored_weights import StoredWeights
from pluralllm.common.words.spec import RunSpec
from pluralllm.server.aggregation.sums import Solver, next_values
from pluralllm.server.aggregation.update_files import read_values
from pluralllm.server.rounds.events import Receipt

DIGEST_BYTES = 32


def state_files(spec: RunSpec, version: int) -> int:
    """Returns how many files of the solver's state a version has: none before the first round and in the second stage."""
    return int(version > 0 and not finds_subspace(spec, version))


def solver_layout(features: int) -> Layout:
    """Returns the layout of a file with the solver's state. The digest of the members is stored as one number for each byte."""
    shapes = {"direction": (features,), "members": (DIGEST_BYTES,), "residual": (features,), "step": (1,)}
    return layout_of(shapes.items())


def write_solver(path: Path, solver: Solver) -> Manifest:
    """Writes the solver's state and returns the file's manifest. Raises StorageFull if no space is left."""
    members = np.frombuffer(solver.members, np.uint8).astype(np.float32)
    pieces = [solver.direction, members, solver.residual, np.array([solver.step], np.float32)]
    return write_weights(path, solver_layout(solver.direction.size), pieces)


def read_solver(stored: StoredWeights, features: int) -> Solver:
    """Reads the solver's state. Raises Corrupt if the file's bytes do not have its digest."""
    values = read_values(stored)
    ends = np.cumsum([features, DIGEST_BYTES, features])  # of the tensors, which are sorted by name
    direction, members, residual, step = np.split(values, ends)
    return Solver(residual, direction, float(step[0]), members.astype(np.uint8).tobytes())


def write_next_sum(
    spec: RunSpec,
    base_version: int,
    base: StoredWeights,
    state: StoredWeights | None,
    receipts: Sequence[Receipt],
    updates: Sequence[StoredWeights],
    outs: Sequence[Path],
) -> tuple[Manifest, ...]:
    """Writes the next version and, in the first stage, the solver's state to `outs`; returns the manifests.

    base, state: the base version and its solver's state; None at version 0 and in the second stage. receipts, updates: sorted by
    client. outs: one path for each file; the written files are not yet durable.
    Raises Corrupt if a file's bytes do not have its digest; StorageFull if no space is left. After an error no file is left.
    """
    assert spec.sums is not None
    try:
        with storage_errors("the next model version"):
            solver = None if state is None else read_solver(state, spec.sums.features)
            values = read_values(base)
            answers = (read_values(update) for update in updates)
            following, kept = next_values(spec, base_version, values, answers, receipts, solver)
            manifests = [write_weights(outs[0], version_layout(spec, base_version + 1), [following])]
            if kept is not None:
                manifests.append(write_solver(outs[1], kept))
            return tuple(manifests)
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise
