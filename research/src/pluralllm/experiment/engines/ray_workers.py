"""The side of Ray's workers: a worker checks that it may answer, answers, and returns errors of our tree with their fields.

Ray's handles have no types, so they are Any here.
"""

import functools
import os
import platform
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pluralllm.client.work.side_by_side import MAX_TRIES
from pluralllm.common.errors.tree import InvalidArgument, PluralError, WorkerDied, leaves
from pluralllm.common.process.plugins import installed_version

# A unit's figures may depend on these packages; Ray itself demands one version of Python.
PACKAGES = ("pluralllm-common", "pluralllm-client", "pluralllm-server", "pluralllm-research", "torch", "numpy")
EMBEDDING_PACKAGES = (*PACKAGES, "transformers", "tokenizers")  # the vectors of texts may depend on these
AHEAD = 2  # tasks for each core that are begun and not yet read
T = TypeVar("T")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a worker may answer."""

    versions: Mapping[str, str]  # of the driver; a worker compares the packages that are named here
    is_mixed: bool = False  # whether a worker with other versions may answer
    gpu: str | None = None  # the kind of GPU that a worker must have; None: the work is done on CPUs


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """A worker's answer or an error, and how the worker differs from the driver."""

    answer: T | None = None
    differences: tuple[str, ...] = ()
    error: tuple[str, dict[str, Any]] | None = None  # reason and facts of an error of our tree


@functools.cache
def versions_here(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Returns whatever of this process may change a unit's figures: versions of packages, and the kind of processor."""
    versions = {name: installed_version(name) or "none" for name in packages}
    return versions | {"processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def gpu_here() -> str:
    """Returns the kind of this process's first GPU, as "NVIDIA A100"; "none" if there is none."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def differences_of(there: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the differences between a worker and the driver, each as "torch 2.9, here 2.13"."""
    return tuple(f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name])


def differences_from(terms: Terms) -> tuple[str, ...]:
    """Returns the differences between this worker and the terms."""
    packages = tuple(name for name in terms.versions if name != "processor")
    differences = differences_of(versions_here(packages), terms.versions)
    if terms.gpu is not None and gpu_here() != terms.gpu:
        differences += (f"GPU {gpu_here()}, another worker {terms.gpu}",)
    return differences


def answered(terms: Terms, work: Callable[[], T]) -> Outcome[T]:
    """Does the work in a worker, with one thread. An error of our tree is returned, as Ray cannot carry its fields."""
    differences = differences_from(terms)
    if differences and not terms.is_mixed:
        problem = (
            f"names a cluster with a worker that has {'; '.join(differences)}. The figures may differ: install the same "
            f"versions there, or give --mixed"
        )
        error = InvalidArgument(field="--ray-address", problem=problem)
        return Outcome(differences=differences, error=(error.reason, error.facts))
    torch.set_num_threads(1)
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return Outcome(work(), differences)
    except PluralError as failure:
        return Outcome(differences=differences, error=(failure.reason, failure.facts))


def task_of(work: Callable[..., Any], *, cores: float = 1, gpus: float = 0) -> Any:
    """Returns a task of Ray that does the work in a worker, and is begun at most MAX_TRIES times if workers die.

    Make it once for many calls: every worker fetches a task that is made anew. cores, gpus: what one call holds of its machine.
    """
    return ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=MAX_TRIES - 1)(work)


def outcome_of(reference: Any, what: str) -> Outcome[Any]:
    """Returns a worker's outcome, which holds an answer. what: the work, for a message.

    Raises the worker's error, or WorkerDied if the work failed in every try.
    """
    try:
        outcome: Outcome[Any] = ray.get(reference)
    except RayTaskError as error:
        raise WorkerDied(problem=f"{type(error.cause).__name__} in {what}: {error.cause}") from error
    except RayError as error:
        raise WorkerDied(problem=f"{type(error).__name__}, {MAX_TRIES} times in {what}") from error
    if outcome.error is not None:
        reason, facts = outcome.error
        raise leaves()[reason](**facts)
    return outcome


def in_order(items: Iterable[ItemT], begin: Callable[[ItemT], Any]) -> Generator[tuple[ItemT, Any], None, None]:
    """Begins a task for each item, and yields each item with Ray's reference to its outcome, in the order of the items.

    Only AHEAD tasks for each core are begun and not yet yielded, so that their outcomes fit into memory. begin: begins the task
    of an item, and returns the reference. Close the generator to cancel the tasks.
    """
    begun: deque[tuple[ItemT, Any]] = deque()
    at_most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        for item in items:
            if len(begun) == at_most:
                yield begun.popleft()
            begun.append((item, begin(item)))
        while begun:
            yield begun.popleft()
    finally:
        for _, reference in begun:
            ray.cancel(reference, force=True)
