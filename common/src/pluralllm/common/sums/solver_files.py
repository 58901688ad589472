"""Makes the files of the next version in a run whose updates are terms of sums. The functions block, so they run in a thread.

The solver's state is a file beside the version, as a server optimizer's moments are. Only versions of the first stage have it.
Memory holds one update at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pluralllm.common.predictor.architecture import finds_subspace, update_layout, version_layout
from pluralllm.common.private_rounds.sum_files import PrivateSum, read_sum
from pluralllm.common.process.files import storage_errors
from pluralllm.common.sums.solver import Solver, SummedAnswers, members_digest, next_values, summed
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import Layout, layout_of, write_weights
from pluralllm.common.weights.server_optimizer import first_moments
from pluralllm.common.weights.stored_weights import StoredWeights, read_values
from pluralllm.common.words.spec import RunSpec

DIGEST_BYTES = 32


def state_files(spec: RunSpec, version: int) -> int:
    """Returns how many files of state a version has beside it: of the server optimizer, or of the solver.

    Before the first round there is none. A solver has none in its second stage.
    """
    if version == 0:
        return 0
    return len(first_moments(spec.aggregation)) if spec.sums is None else int(not finds_subspace(spec, version))


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
    states: Sequence[StoredWeights],
    members: Sequence[tuple[str, int]],
    updates: Sequence[StoredWeights],
    outs: Sequence[Path],
) -> tuple[Manifest, ...]:
    """Writes the next version and, in the first stage, the solver's state to `outs`; returns the manifests.

    base, states: the base version, and its solver's state unless it has none (`state_files`). members: the clients with their
    numbers of examples, sorted. updates: in the order of `members`. outs: one path for each file; the written files are not yet
    durable. Raises Corrupt if a file's bytes do not have its digest; StorageFull if no space is left. After an error no file of
    `outs` is left.
    """
    with storage_errors("the next model version"):
        size = update_layout(spec, base_version).values
        answers = summed(map(read_values, updates), members, size, spec.aggregation.max_examples)
        return _write(spec, base_version, base, states, answers, outs)


def write_next_private_sum(
    spec: RunSpec,
    base_version: int,
    base: StoredWeights,
    states: Sequence[StoredWeights],
    private: PrivateSum,
    outs: Sequence[Path],
) -> tuple[tuple[Manifest, ...], tuple[int, ...]]:
    """Writes the files of `write_next_sum` from a private round's sum. Returns the manifests, and the 64 numbers of its tail.

    Nobody knows the members' numbers of examples. The digest of the members has the sum of them instead: if it changes, the
    problem has changed, and the directions begin anew.
    Raises SumImplausible if the sum cannot be one of honest updates; Corrupt if a file's bytes do not have its digest; OSError of
    a disk that fails. After an error no file of `outs` is left.
    """
    total, tail, words = read_sum(private, update_layout(spec, base_version))
    members = members_digest((name, tail.weight) for name in private.names)
    answers = SummedAnswers(total, tail.not_zero, tail.weight, members)
    return _write(spec, base_version, base, states, answers, outs), words


def _write(
    spec: RunSpec,
    base_version: int,
    base: StoredWeights,
    states: Sequence[StoredWeights],
    answers: SummedAnswers,
    outs: Sequence[Path],
) -> tuple[Manifest, ...]:
    assert spec.sums is not None
    try:
        solver = read_solver(states[0], spec.sums.features) if states else None
        following, kept = next_values(spec, base_version, read_values(base), answers, solver)
        manifests = [write_weights(outs[0], version_layout(spec, base_version + 1), [following])]
        if kept is not None:
            manifests.append(write_solver(outs[1], kept))
        return tuple(manifests)
    except BaseException:
        for out in outs:
            out.unlink(missing_ok=True)
        raise
