"""The modules of the packages by name, their syntax trees, and what they import. A tree is read when a test first asks for it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DISTRIBUTIONS = ("common", "server", "client", "research")
ROOTS = {part: REPOSITORY / part / "src" / "pluralllm" for part in DISTRIBUTIONS}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours by its name after `pluralllm.`; a package's `__init__` goes by the package's name."""
    for root in ROOTS.values():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[0] != "v1":
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())
PLACES = {
    module: str(path).rpartition("/src/pluralllm/")[2] for module, path in MODULES.items()
}  # "server/composition.py"
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def within(name: str, package: str) -> bool:
    """True if a dotted name is the package or lies below it."""
    return name == package or name.startswith(f"{package}.")


@cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def nodes_of(module: str) -> tuple[ast.AST, ...]:
    """Every node of the syntax tree of a module. A walk takes far longer than what a test does with a node."""
    return tuple(ast.walk(tree_of(module)))


@cache
def imports(module: str) -> frozenset[str]:
    """Full dotted names of what a module imports itself, wherever in the file."""
    names = set()
    for node in nodes_of(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)
