"""Each object of the coordinator is given what it uses: none reaches through one object for another."""

import ast
from collections.abc import Iterator
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server" / "src" / "pluralllm" / "server"
SOURCES = {str(path.relative_to(SERVER)): ast.parse(path.read_text(encoding="utf-8")) for path in SERVER.rglob("*.py")}
ROOT = {"composition.py", "__main__.py"}  # the composition root takes the assembly apart
ASSEMBLY = "pluralllm.server.runs.assembly"
# The authority is replaced while the process runs, so it is asked for at each call.
MAY_BE_REACHED = {("_registry", "authority")}


def reaches(tree: ast.AST) -> Iterator[str]:
    """Calls like self._coordinator.store.runs(): a method of an object that was given to another one."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=owner), attr=collaborator),
                    attr=method,
                )
            ) if owner.startswith("_") and (owner, collaborator) not in MAY_BE_REACHED:
                yield f"line {node.lineno}: self.{owner}.{collaborator}.{method}()"


def attributes_of_the_coordinator(tree: ast.AST) -> Iterator[str]:
    """Attributes of a coordinator that are read and not called: it offers verbs only."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in called:
            continue
        match node.value:
            case ast.Attribute(attr="_coordinator" | "coordinator") | ast.Name(id="coordinator"):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_object_reaches_through_another_for_a_third() -> None:
    wrong = [f"{name}, {reach}" for name, tree in SOURCES.items() for reach in reaches(tree)]
    assert wrong == []


def test_the_coordinator_offers_verbs_only() -> None:
    allowed = ROOT | {"runs/assembly.py"}
    wrong = [
        f"{name}, {use}"
        for name, tree in SOURCES.items()
        if name not in allowed
        for use in attributes_of_the_coordinator(tree)
    ]
    assert wrong == []
    [coordinator] = [
        node
        for node in ast.walk(SOURCES["runs/coordinator.py"])
        if isinstance(node, ast.ClassDef) and node.name == "Coordinator"
    ]
    stored = [
        node.attr
        for node in ast.walk(coordinator)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    ]
    assert [name for name in stored if not name.startswith("_")] == []


def test_only_the_composition_root_has_the_assembly() -> None:
    users = [
        name
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == ASSEMBLY
    ]
    assert users == ["composition.py"]
