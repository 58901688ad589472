"""The text of a new run spec, in TOML: what `pluralllm spec new` prints, and what `pluralllm run create` takes without a file."""

import json
from collections.abc import Sequence

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.noise import RESPONDENT
from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.spec import CLOSES_FROM, preset_values, spec_from_toml, spec_values
from pluralllm.common.words.usual_embedding import MODEL, WIDTH
from pluralllm.operator.default_rounds import (
    FEWEST_CLIENTS,
    FEWEST_PRIVATE,
    FLAG,
    PINS,
    PRIVATE,
    colluders_among,
    least_clients,
    plain_note,
    why_plain,
)

USUAL_ROUNDS = 30
USUAL_CLIENTS = 5  # with a quorum of four, a private round survives one client that is away
MAX_EXAMPLES = 1024  # upper bound of one client's weight
DELTA = 1e-6  # of a demand for noised answers
THREE = (
    "Three clients that know each other can have private rounds, too: write [private_rounds] here, and let each partner set "
    "hidden_among = 2 in its policy.toml."
)


def new_spec(
    model: str = MODEL,
    width: int = WIDTH,
    preset: str = "default",
    clients: int = USUAL_CLIENTS,
    train: Sequence[str] = (),
    held_out: Sequence[str] = (),
    respondents_epsilon: float | None = None,
    *,
    plain_rounds: bool = False,
    closing_round: bool = False,
    rounds: int = USUAL_ROUNDS,
    aggregator: Plugin | None = None,
    embedder: Plugin | None = None,
) -> str:
    """Returns the text of a new run spec in TOML.

    model: id of the embedding model. width: length of that model's vectors. preset: name of a set of default values.
    clients: number of clients that are expected to train. train, held_out: the groups that take part; if any group trains, the
    number of these groups counts instead of `clients`. Without groups, any group takes part in the role that its client declares.
    respondents_epsilon: the most that clients' answers may tell about one respondent; None takes answers without noise, too.
    plain_rounds: whether the rounds are plain, although the clients are enough for private ones. closing_round: whether one
    more round sums the scores of the last version. rounds: the number of the other ones.
    aggregator: of another package; the rounds are plain then. embedder: of another package, in the place of `model`.
    Raises InvalidArgument for a closing round of a run that can have none, and InvalidSpec then if the whole spec is not valid.
    """
    expected = max(len(train) or clients, FEWEST_CLIENTS)
    dimension = width * len(preset_values(preset)["embedding"]["templates"])
    note = "" if train or held_out else "  # empty: any group, as its client declares"
    demand = ""
    if respondents_epsilon is not None:
        demand = (
            f'[privacy]\nrespondents_epsilon = {respondents_epsilon!r}\ndelta = {DELTA!r}\nunit = "{RESPONDENT}"\n\n'
        )
    if embedder is not None and model != MODEL:
        raise InvalidArgument(field="--model", problem="has no use beside --embedder, which makes the vectors itself")
    closes = f'format = "{CLOSES_FROM}"  # with a closing round, which sums the scores of the last version\n'
    head = f'preset = "{preset}"\n{closes if closing_round else ""}seed = 0\nrounds = {rounds}\n\n'
    rule = "" if aggregator is None else f'rule = "plugin"\n{_plugin("aggregation", aggregator)}'
    before = (
        f"{head}[groups]\ntrain = {_listed(train)}{note}\n"
        f"held_out = {_listed(held_out)}\n\n[round]\nmin_clients = {least_clients(expected)}  # in every published model\n"
        f"target_clients = {expected}\ndeadline_s = 600\n\n[aggregation]\nmax_examples = {MAX_EXAMPLES}\n{rule}\n"
    )
    named = f'model = "{model}"\n' if embedder is None else ""
    after = f"{demand}[embedding]\n{named}dimension = {dimension}"
    after += "" if embedder is None else f"\n{_plugin('embedding', embedder).rstrip()}"
    text = f"{before}{_rounds(before, after, expected, plain=plain_rounds)}\n{after}"
    if closing_round and not spec_from_toml(text, "of the new run").closes:
        problem = f"needs private rounds (at least {FEWEST_PRIVATE} clients), and updates that are no terms of sums"
        raise InvalidArgument(field="--closing-round", problem=problem)
    return text


def _rounds(before: str, after: str, clients: int, *, plain: bool) -> str:
    """Returns the table [private_rounds] of a new spec, or comments that say why it has none.

    before, after: the rest of the spec. clients: number of clients that train in a round.
    """
    table = f"# {PRIVATE[0].upper()}{PRIVATE[1:]}. {PINS}.\n[private_rounds]\ncolluders = {colluders_among(clients)}"
    table += "  # members of a round that, with the coordinator, learn nothing but the sum\n"
    if plain:
        reason = FLAG
    elif clients < FEWEST_PRIVATE:
        reason = f"{clients} clients train in a round"
    else:
        reason = why_plain(spec_values(f"{before}{table}{after}", ""))
    if not reason:
        return table
    text = plain_note(reason, clients)
    hint = f"# {THREE}\n" if clients < FEWEST_PRIVATE and not plain else ""
    return f"# {text[0].upper()}{text[1:]}.\n{hint}"


def _plugin(table: str, plugin: Plugin) -> str:
    """Returns the lines that name a plug-in. table: the one that they belong to."""
    names = f'name = "{plugin.name}"\ndistribution = "{plugin.distribution}"\nversion = "{plugin.version}"'
    return f"\n[{table}.plugin]  # everybody who uses it: pip install '{plugin.requirement}'\n{names}\n"


def _listed(groups: Sequence[str]) -> str:
    return json.dumps(list(groups), ensure_ascii=False)
