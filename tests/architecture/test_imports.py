"""Who may import what: the table below is the rule, and docs/architecture.md says why."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [REPOSITORY / part / "src" / "pluralllm" for part in ("common", "server", "client", "research")]

PURE = (
    "grpc",
    "google",
    "pluralllm.v1",
    "asyncio",
    "time",
    "os",
    "torch",
    "transformers",
    "sqlalchemy",
    "threading",
    "random",
)
# Module (or package, with a trailing dot) -> what it may never import, directly.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "pluralllm.server.rounds.machine": (*PURE, "numpy"),
    "pluralllm.server.rounds.state": (*PURE, "numpy"),
    "pluralllm.server.rounds.events": (*PURE, "numpy"),
    "pluralllm.server.rounds.cohort": (*PURE, "numpy"),
    "pluralllm.server.rounds.weighting": (*PURE, "numpy"),
    "pluralllm.server.runs.leases": (*PURE, "numpy"),
    "pluralllm.server.runs.sessions": (*PURE, "numpy"),
    "pluralllm.server.runs.changes": (*PURE, "numpy"),
    "pluralllm.server.members.access": (*PURE, "numpy"),
    "pluralllm.server.storage.membership": (*PURE, "numpy"),
    "pluralllm.server.members.attempts": (*PURE, "numpy"),
    "pluralllm.server.members.signing": PURE,
    "pluralllm.common.trust.audit_chain": PURE,
    "pluralllm.common.trust.certificates": PURE,
    "pluralllm.common.errors.membership": PURE,
    "pluralllm.server.runs.overview": ("grpc", "google", "pluralllm.v1", "time", "os", "torch", "sqlalchemy"),
    "pluralllm.server.observe.page_facts": (
        "grpc",
        "google",
        "pluralllm.v1",
        "time",
        "os",
        "torch",
        "sqlalchemy",
        "starlette",
    ),
    "pluralllm.server.aggregation.arithmetic": PURE,
    "pluralllm.common.words.ids": PURE,
    "pluralllm.common.errors.tree": PURE,
    "pluralllm.common.errors.root": PURE,
    "pluralllm.common.words.spec": PURE,
    "pluralllm.common.words.questions": PURE,
    "pluralllm.common.predictor.architecture": PURE,
    "pluralllm.common.predictor.metrics": PURE,
    "pluralllm.client.daemon.policy": (*PURE, "numpy"),
    "pluralllm.client.work.losses": ("grpc", "google", "pluralllm.v1", "asyncio", "time", "os", "socket"),
    "pluralllm.client.work.train": ("grpc", "google", "pluralllm.v1", "asyncio", "time", "socket"),
    "pluralllm.common.": ("pluralllm.server", "pluralllm.client", "pluralllm.cli"),
    "pluralllm.server.": ("torch", "transformers", "pluralllm.client", "pluralllm.cli", "pluralllm.experiment"),
    "pluralllm.client.": ("pluralllm.server", "pluralllm.cli", "pluralllm.experiment"),
    "pluralllm.cli.": ("pluralllm.server",),
    "pluralllm.common.rewards.aggregation": PURE,
    "pluralllm.common.words.reward_weights": (*PURE, "numpy"),
    "pluralllm.align.answers": PURE,
    "pluralllm.align.reward_forms": PURE,
    "pluralllm.align.model_card": PURE,
    "pluralllm.align.model_folder": PURE,
    "pluralllm.align.": ("pluralllm.server", "pluralllm.experiment", "trl", "datasets"),
    "pluralllm.experiment.results": PURE,
    "pluralllm.experiment.summary": PURE,
    "pluralllm.experiment.convergence": PURE,
    "pluralllm.experiment.calibration": PURE,
    "pluralllm.experiment.report.": (*PURE, "pluralllm.client", "pluralllm.server"),
    "pluralllm.experiment.": ("grpc", "google", "pluralllm.v1", "pluralllm.cli"),
    "pluralllm.": ("pickle", "cPickle", "dill", "marshal", "shelve"),
}
# Protobuf messages and gRPC live here and nowhere else.
WIRE_MODULES = {
    "pluralllm.common.wire.messages",
    "pluralllm.common.wire.chunk_messages",
    "pluralllm.common.errors.grpc_status",
    "pluralllm.common.wire.channels",
    "pluralllm.server.rpc.federation",
    "pluralllm.server.rpc.operations",
    "pluralllm.server.rpc.messages",
    "pluralllm.server.rpc.boundary",
    "pluralllm.server.rpc.incoming",
    "pluralllm.server.rpc.enrolment",
    "pluralllm.server.rpc.member_operations",
    "pluralllm.server.members.tls",
    "pluralllm.server.rpc.serving",
    "pluralllm.client.link.transport",
    "pluralllm.client.link.channel",
    "pluralllm.client.joining.enrolment",
    "pluralllm.operator.remote",
    "pluralllm.align.scoring_service",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "environ"), ("os", "getenv")}
BANNED_ARGUMENTS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
BANNED_ENDINGS = ("Manager", "Helper", "Util", "Utils")
MAX_LINES = 350


def modules() -> Iterator[tuple[str, Path]]:
    for root in SOURCES:
        for path in sorted(root.rglob("*.py")):
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            if not name.startswith("pluralllm.v1"):
                yield name, path


MODULES = dict(modules())


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_modules_import_only_what_their_place_allows(rule: str) -> None:
    mine = [name for name in MODULES if name == rule or (rule.endswith(".") and name.startswith(rule))]
    mine = [name for name in mine if ".commands." not in name or not name.startswith("pluralllm.experiment")]
    assert mine, f"the rule for {rule} applies to nothing"
    wrong = [
        f"{name} imports {found}"
        for name in mine
        for found in imports(MODULES[name])
        for banned in FORBIDDEN[rule]
        if within(found, banned)
    ]
    assert not wrong


def test_protobuf_and_grpc_stay_in_the_wire_modules() -> None:
    wrong = [
        f"{name} imports {found}"
        for name, path in MODULES.items()
        if name not in WIRE_MODULES
        for found in imports(path)
        if within(found, "grpc") or within(found, "google") or within(found, "pluralllm.v1")
    ]
    assert not wrong
    assert MODULES.keys() >= WIRE_MODULES


@pytest.mark.parametrize("name", MODULES)
def test_nothing_dangerous_is_called(name: str) -> None:
    assert [problem for node in ast.walk(ast.parse(MODULES[name].read_text())) for problem in dangers(node)] == []


@pytest.mark.parametrize("part", ["benchmarks", "deploy", "protos", "tests"])
def test_nothing_is_unpickled_outside_the_packages_either(part: str) -> None:
    wrong = []
    for path in (REPOSITORY / part).rglob("*.py"):
        found = [problem for node in ast.walk(ast.parse(path.read_text())) for problem in dangers(node)]
        wrong += [f"{path}: {problem}" for problem in found if "load" in problem or "pickle" in problem]
        wrong += [f"{path} imports {name}" for name in imports(path) if name in FORBIDDEN["pluralllm."]]
    assert not wrong


def dangers(node: ast.AST) -> Iterator[str]:
    """What is banned about one node."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            yield f"line {node.lineno}: {node.func.id}()"
        for argument in node.keywords:
            value = argument.value.value if isinstance(argument.value, ast.Constant) else None
            if argument.arg in BANNED_ARGUMENTS and value is BANNED_ARGUMENTS[argument.arg]:
                yield f"line {node.lineno}: {argument.arg}={value}"
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if named and (node.value.id, node.attr) in BANNED_ATTRIBUTES:  # type: ignore[attr-defined]
        yield f"line {node.lineno}: {node.value.id}.{node.attr}"  # type: ignore[attr-defined]


def test_the_namespace_has_no_init_file() -> None:
    assert [root / "__init__.py" for root in SOURCES if (root / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_of_a_size_to_read_and_well_named(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.count("\n") <= MAX_LINES
    classes = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    assert [found for found in classes if found.endswith(BANNED_ENDINGS) or found.startswith("Base")] == []
    assert ast.get_docstring(ast.parse(text)), "a module says what it is"
