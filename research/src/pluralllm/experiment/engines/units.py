"""Units of work of an experiment, and the protocol of the engines that play them."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pluralllm.common.errors.tree import InvalidArgument, WorkerDied
from pluralllm.experiment.records import Provenance, Record
from pluralllm.experiment.spec import Method

Results = dict[str, list[Record]]  # by line of the results table


@dataclass(frozen=True, slots=True)
class Unit:
    """One method with one seed: the smallest piece of work of an experiment. Its results do not depend on where it is played."""

    method: Method
    seed: int

    def __str__(self) -> str:
        return f"{self.method.name}, seed {self.seed}"


Tell = Callable[[Unit, str, int, int], None]  # reports the progress of a unit: its stage, done, of how much


class Engine(Protocol):
    """Workers that play units side by side."""

    def map(self, units: Sequence[Unit], tell: Tell) -> AsyncGenerator[tuple[Unit, Results], None]:
        """Plays every unit, and yields each unit with its result records as soon as they are there.

        A unit whose worker dies is played again, at most MAX_TRIES times in all. tell: reports the progress of each unit.
        Close the generator to stop all workers. Raises the first error of a worker, or WorkerDied.
        """
        ...


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The Ray cluster that plays an experiment's units."""

    address: str | None = None  # None: a Ray of this machine's cores, which ends with the experiment
    gpus_per_unit: float = 0.0  # share of a GPU; 0: units train on CPUs
    is_mixed: bool = False  # whether workers of other versions or processors may play
    embeds: bool = False  # whether the cluster embeds the texts, too


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of an experiment's units, for a machine that plays this part alone: every count-th unit, from `index` on."""

    index: int  # 0 <= index < count
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Reads a shard that is written as INDEX/COUNT. Raises InvalidArgument if there is no such shard."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            problem = f"is {text!r}; write INDEX/COUNT with an index from 0 to COUNT - 1, for example 0/16"
            raise InvalidArgument(field="--shard", problem=problem)
        return cls(int(index), int(count))

    def of(self, units: Sequence[Unit]) -> list[Unit]:
        """Returns the units of this shard. The shards of one count have every unit once."""
        return list(units[self.index :: self.count])


def check_results(unit: Unit, results: Mapping[str, Any], provenance: Provenance) -> None:
    """Checks that a worker returned the records of this unit, played with this experiment and these data.

    Raises WorkerDied if they are those of something else, for example because a data file changed on the way.
    """
    if set(results) != set(unit.method.lines):
        raise WorkerDied(problem=f"it returned the lines {', '.join(sorted(results))} for {unit}")
    expected = {
        "kind": "header",
        "seed": unit.seed,
        "experiment_sha256": provenance.experiment.sha256(),
        "data_sha256": provenance.data_sha256,
    }
    for line, records in results.items():
        header = records[0] if isinstance(records, list) and records and isinstance(records[0], dict) else {}
        wrong = [key for key, value in ({"method": line} | expected).items() if header.get(key) != value]
        if wrong:
            raise WorkerDied(problem=f"its result of {unit} has another {wrong[0]}; did a data file change?")
