"""The content of the page for one reader: an observer sees what the RPCs report to an observer. The module is pure."""

from collections.abc import Sequence

from pluralllm.common.words.roles import MemberRole
from pluralllm.server.members.access import Principal
from pluralllm.server.observe.page_facts import Facts
from pluralllm.server.observe.page_scales import scale_of
from pluralllm.server.runs.overview import Participant


def row_for(reader: Principal, facts: Facts) -> Facts:
    """Returns a row of the list of runs. Only an administrator sees the title, which stands in the run spec."""
    return facts if reader.role is MemberRole.ADMIN else {**facts, "title": ""}


def run_for(reader: Principal, facts: Facts, people: Sequence[Participant]) -> Facts:
    """Returns the state of a run. Only an administrator sees refusals, troubles, and why a client itself says that it is late."""
    if reader.role is MemberRole.ADMIN:
        return facts
    observed = {person.client: person.observed for person in people}
    clients = [{**client, "reason": observed.get(client["client"], "")} for client in facts["clients"]]
    return {**row_for(reader, facts), "trouble": "", "refusals": [], "clients": clients}


def history_for(reader: Principal, facts: Facts) -> Facts:
    """Returns the curves of a run. Only an administrator sees the loss, which clients measure, and the digests of versions."""
    if reader.role is MemberRole.ADMIN:
        return facts
    return {**facts, "loss": [], "lineage": [], "axes": {**facts["axes"], "loss": scale_of([])}}
