"""Virtual clients: many clients that are made out of few groups, and the updates of a large cohort, which wait in a file.

A virtual client has the questions of its group, and draws episodes of its own. It holds nothing while it does not train, so
memory grows with the model and one pass, and not with the number of clients or the size of a cohort.
"""

import errno
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pluralllm.common.errors.storage import StorageFull
from pluralllm.common.words.ids import ClientId
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.stacked import Flat

FLOAT_BYTES = 4


def groups_of_clients(virtual: Virtual, groups: Sequence[str], seed: int) -> dict[ClientId, str]:
    """Returns the group of each virtual client, by the client's id.

    Every group has at least one client. The others fall to the groups by shares that are even, or drawn from a Dirichlet
    distribution with `alpha` by the seed.
    """
    names = sorted(groups)
    rng = np.random.default_rng(seed)
    even = virtual.per_group == "even"
    shares = np.full(len(names), 1 / len(names)) if even else rng.dirichlet(np.full(len(names), virtual.alpha))
    ends = np.round(np.cumsum(shares) * (virtual.clients - len(names))).astype(int)
    counts = np.diff(ends, prepend=0) + 1
    counts[-1] += virtual.clients - int(counts.sum())
    of_all = [name for name, count in zip(names, counts.tolist(), strict=True) for _ in range(count)]
    return {ClientId(f"client-{number}"): name for number, name in enumerate(of_all)}


class WaitingUpdates(Mapping[ClientId, Flat]):
    """The updates of a round by client, in a file without a name in the folder for temporary files. The last user closes it."""

    def __init__(self, values: int) -> None:
        """Opens the file. values: number of values of each update."""
        self._values = values
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._rows: dict[ClientId, int] = {}

    def __setitem__(self, client: ClientId, delta: Flat) -> None:
        row = self._rows.setdefault(client, len(self._rows))
        try:
            self._file.seek(row * self._values * FLOAT_BYTES)
            self._file.write(np.ascontiguousarray(delta, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"the updates of a cohort in {tempfile.gettempdir()} (the environment variable TMPDIR names another folder)"
            raise StorageFull(what=what) from error

    def __getitem__(self, client: ClientId) -> Flat:
        return self.read(client, 0, self._values)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, client: ClientId, start: int, stop: int) -> Flat:
        """Returns the values from `start` to `stop` of a client's update."""
        self._file.seek((self._rows[client] * self._values + start) * FLOAT_BYTES)
        return np.frombuffer(self._file.read((stop - start) * FLOAT_BYTES), dtype=np.float32)
