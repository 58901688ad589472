"""Connections to a coordinator are opened in few places, so that all of them go the same way: directly or through a proxy."""

import ast
from collections.abc import Iterator

from architecture.source_trees import PLACES, nodes_of

OPENERS = {"create_connection", "open_connection", "secure_channel", "insecure_channel", "HTTPConnection", "connect_ex"}
MAY_OPEN = {
    "common/process/connections.py": {"create_connection"},  # asks Proxies for the way
    "common/wire/channels.py": {"secure_channel", "insecure_channel"},  # asks Proxies, too
    "common/process/support_bundle.py": {"HTTPConnection"},  # the own process's metrics
    "experiment/engines/ray_cluster.py": {"create_connection"},  # Ray's own port, in the researcher's private network
    "server/commands/doctor.py": {"create_connection"},  # the own process's ports
}


def openings() -> Iterator[tuple[str, str]]:
    """Yields each call that opens a connection: the module's path, and the function that is called as an attribute."""
    for module, place in PLACES.items():
        for node in nodes_of(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OPENERS:
                yield place, node.func.attr


def test_connections_are_opened_only_where_the_way_is_known() -> None:
    assert sorted({one for one in openings() if one[1] not in MAY_OPEN.get(one[0], set())}) == []


def test_the_table_names_only_what_is_there() -> None:
    assert set(openings()) == {(module, opener) for module, openers in MAY_OPEN.items() for opener in openers}
