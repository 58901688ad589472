"""The text of a new run spec, in TOML: what `pluralllm spec new` prints, and what `pluralllm run create` takes without a file."""

import json
from collections.abc import Sequence

from pluralllm.common.words.noise import RESPONDENT
from pluralllm.common.words.spec import preset_values

# The embedding model of a new spec, and the length of its vectors.
MODEL, WIDTH = "sentence-transformers/all-MiniLM-L6-v2", 384

FEWEST_CLIENTS = 3  # in each published model; from two, each of them can compute the update of the other
MAX_EXAMPLES = 1024  # upper bound of one client's weight
DELTA = 1e-6  # of a demand for noised answers


def new_spec(
    model: str = MODEL,
    width: int = WIDTH,
    preset: str = "default",
    clients: int = FEWEST_CLIENTS,
    train: Sequence[str] = (),
    held_out: Sequence[str] = (),
    respondents_epsilon: float | None = None,
) -> str:
    """Returns the text of a new run spec in TOML.

    model: id of the embedding model. width: length of that model's vectors. preset: name of a set of default values.
    clients: number of clients that are expected to train. train, held_out: the groups that take part; if any group trains, the
    number of these groups counts instead of `clients`. Without groups, any group takes part in the role that its client declares.
    respondents_epsilon: the most that clients' answers may tell about one respondent; None takes answers without noise, too.
    """
    expected = len(train) or clients
    dimension = width * len(preset_values(preset)["embedding"]["templates"])
    note = "" if train or held_out else "  # empty: any group, as its client declares"
    demand = ""
    if respondents_epsilon is not None:
        demand = (
            f'[privacy]\nrespondents_epsilon = {respondents_epsilon!r}\ndelta = {DELTA!r}\nunit = "{RESPONDENT}"\n\n'
        )
    return (
        f'preset = "{preset}"\nseed = 0\nrounds = 30\n\n[groups]\ntrain = {_listed(train)}{note}\n'
        f"held_out = {_listed(held_out)}\n\n[round]\nmin_clients = {least_clients(expected)}  # in every published model\n"
        f"target_clients = {max(expected, FEWEST_CLIENTS)}\ndeadline_s = 600\n\n[aggregation]\nmax_examples = {MAX_EXAMPLES}\n\n"
        f'{demand}[embedding]\nmodel = "{model}"\ndimension = {dimension}'
    )


def least_clients(clients: int) -> int:
    """Returns the smallest number of clients with which a round should end, for a number of clients that train.

    It is more than half of the clients even if one in five does not follow the protocol, and at least three.
    """
    return max(FEWEST_CLIENTS, (clients + clients // 5) // 2 + 1)


def _listed(groups: Sequence[str]) -> str:
    return json.dumps(list(groups), ensure_ascii=False)
