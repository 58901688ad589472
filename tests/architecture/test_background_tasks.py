"""Background tasks are watched: only common/process/watched_tasks.py starts a task that nobody awaits."""

import ast
from collections.abc import Iterator

from architecture.source_trees import PLACES, nodes_of, tree_of

OWNER = "common/process/watched_tasks.py"
STARTS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
# Functions that await each task that they start, or hand it to whoever awaits it.
AWAITED = {
    ("server/composition.py", "serve"),
    ("server/process/cancellation.py", "run"),
    ("server/runs/coordinator.py", "_rest"),
    ("server/runs/intake.py", "commit"),
    ("server/runs/uploads.py", "put"),
    ("server/storage/leadership.py", "alone"),
    ("server/storage/model_chunks.py", "message"),
    ("client/daemon/polling.py", "_asked"),
    ("client/daemon/polling.py", "_beating"),
    ("common/process/threads.py", "to_its_end"),
    ("client/daemon/private_round.py", "_started"),
    ("client/daemon/private_round.py", "_until_news"),
    ("client/link/channel.py", "_replace"),
    ("client/work/side_by_side.py", "side_by_side"),
    ("client/work/worker_process.py", "_watched_answer"),
}


def starts(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int]]:
    """Yields the function and the line of each start of a task. A task group awaits its tasks, so it may start them."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=attribute)) if attribute in STARTS:
                if owner != "group":
                    yield inside, node.lineno
            case ast.Call(func=ast.Attribute(attr=attribute) | ast.Name(id=attribute)) if attribute in STARTS:
                yield inside, node.lineno
        yield from starts(node, inside)


def test_only_watched_tasks_starts_a_task_that_nobody_awaits() -> None:
    places = {}
    for module, name in PLACES.items():
        for function, line in starts(tree_of(module)):
            places[name, function] = line
    del places[OWNER, "_start"]
    assert {f"{name}:{line}" for (name, function), line in places.items() if (name, function) not in AWAITED} == set()
    assert AWAITED - places.keys() == set(), "of the table, these places start no task"


def test_a_start_is_found_wherever_it_is() -> None:
    source = """
async def work(self):
    task = asyncio.get_running_loop().create_task(one())
    self._tasks.append(ensure_future(two()))
    async with asyncio.TaskGroup() as group:
        group.create_task(three())
"""
    assert list(starts(ast.parse(source))) == [("work", 3), ("work", 4)]


def test_no_wait_can_lose_a_cancellation() -> None:
    """Before Python 3.12, asyncio.wait_for returns a result that comes together with a cancellation, and the task goes on."""
    waits = [
        f"{place}:{node.lineno}: use asyncio.timeout"
        for module, place in PLACES.items()
        for node in nodes_of(module)
        if isinstance(node, ast.Attribute) and node.attr == "wait_for" and ast.unparse(node.value) == "asyncio"
    ]
    assert waits == []
