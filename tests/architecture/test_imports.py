"""Who may import whom: rules about packages, looked at through everything that an import brings along.

The tables are the rules; each package's docstring says why. A package's own modules may import one another.
"""

import ast
from collections.abc import Iterator
from functools import cache

import pytest
from architecture.source_trees import MODULES, PACKAGES, REPOSITORY, ROOTS, imports, nodes_of, tree_of, within

# Package -> the packages it may import. In order: a package stands below all that it may import, so there can be no circle,
# and no import runs back up. `client` and `server` alone mean the modules beside the rooms: the command lines and what joins.
COMMON: dict[str, tuple[str, ...]] = {
    "common": (),  # the version
    "common.text": (),
    "common.errors": ("common.text",),
    "common.words": ("common.text", "common.errors"),
    "common.weights": ("common.errors", "common.words"),
    "common.process": ("common.text", "common.errors", "common.words"),
    "common.trust": ("common.text", "common.errors", "common.words", "common.process"),
    "common.private_rounds": ("common.text", "common.errors", "common.words", "common.weights", "common.trust"),
    "common.wire": (
        *("common.text", "common.errors", "common.words", "common.weights", "common.process", "common.trust"),
        "common.private_rounds",
    ),
    "common.predictor": ("common.errors", "common.words", "common.weights", "common.process"),
    "common.sums": (
        *("common.errors", "common.words", "common.weights", "common.process", "common.predictor"),
        "common.private_rounds",
    ),
    "common.rewards": ("common.errors", "common.words"),
}
SERVER: dict[str, tuple[str, ...]] = {
    "server.rounds": ("common.errors", "common.words"),
    "server.process": ("common", "server.rounds"),
    "server.storage": ("common", "server.rounds", "server.process"),
    "server.aggregation": ("common", "server.rounds", "server.storage"),
    "server.members": ("common", "server.process", "server.storage"),
    "server.runs": ("common", "server.rounds", "server.process", "server.storage", "server.aggregation"),
    "server.rpc": ("common", "server.rounds", "server.process", "server.storage", "server.members", "server.runs"),
    "server.observe": ("common", "server.rounds", "server.process", "server.storage", "server.members", "server.runs"),
    "server.commands": (
        *("common", "server.rounds", "server.process", "server.storage", "server.aggregation", "server.members"),
        "server.runs",
    ),
    "server": ("common", "server"),
}
CLIENT: dict[str, tuple[str, ...]] = {
    "client.process": ("common",),
    "client.link": ("common", "client.process"),
    "client.keeping": ("common", "client.process", "client.link"),
    "client.joining": ("common", "client.process"),
    "client.data": ("common",),
    "client.disclosure": ("common", "client.link"),
    "client.privacy": ("common", "client.data"),
    "client.private_rounds": ("common", "client.link", "client.keeping"),
    "client.work": ("common", "client.link", "client.keeping", "client.data", "client.disclosure"),
    "client.daemon": (
        *("common", "client.process", "client.link", "client.keeping", "client.joining", "client.data"),
        *("client.disclosure", "client.privacy", "client.private_rounds", "client.work"),
    ),
    "client": ("common", "client"),
    "operator": ("common", "client.link", "client.joining"),
    "cli": ("common", "client.joining", "operator"),
}
RESEARCH: dict[str, tuple[str, ...]] = {
    "align": ("common", "client.data", "client.work", "operator"),
    "align.commands": ("common", "cli", "align"),
    "experiment": ("common", "client.data", "client.work", "server.rounds", "server.aggregation"),
    "experiment.report": ("common", "experiment"),
    "experiment.commands": ("common", "cli", "operator", "client.work", "experiment", "experiment.report"),
    "api": ("common", "client.data", "client.joining", "client.work", "operator", "align", "experiment"),
}
MAY_IMPORT = COMMON | SERVER | CLIENT | RESEARCH

# Whatever acts on the world, or is heavy. A rule names what must not come along, by whatever way.
WORLD = (
    "grpc",
    "google",
    "pluralllm.v1",
    "asyncio",
    "socket",
    "subprocess",
    "threading",
    "time",
    "os",
    "random",
    "secrets",
)
HEAVY = ("torch", "transformers", "sqlalchemy")
RESEARCHERS = ("pluralllm.experiment", "pluralllm.align", "pluralllm.api")
NEVER: dict[str, tuple[str, ...]] = {
    # packages
    "common.text": (*WORLD, *HEAVY, "numpy"),
    "server.rounds": (*WORLD, *HEAVY, "numpy"),
    "common.words": (*WORLD, *HEAVY, "numpy"),
    "common.weights": (*WORLD, *HEAVY),
    "common.rewards": (*WORLD, *HEAVY),
    "common.private_rounds": (*WORLD, *HEAVY),
    "common.sums": HEAVY,
    "common.sums.solver": (*WORLD, *HEAVY),
    "common.trust": ("grpc", "google", "pluralllm.v1", "asyncio", *HEAVY),
    "server": ("torch", "transformers", "pluralllm.client", "pluralllm.cli", "pluralllm.operator"),
    "client.data": ("grpc", "google", "pluralllm.v1", "asyncio", "socket", *HEAVY),
    "client.disclosure": ("grpc", "google", "pluralllm.v1", "asyncio", "socket", *HEAVY),
    "client.privacy": ("grpc", "google", "pluralllm.v1", "asyncio", "socket", *HEAVY),
    "client": (
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "matplotlib",
        "jinja2",
        "trl",
        "pluralllm.server",
        "pluralllm.cli",
        *RESEARCHERS,
    ),
    "cli": ("matplotlib", "jinja2", "trl", "pluralllm.server", *RESEARCHERS),
    "operator": (*HEAVY, "pluralllm.server", *RESEARCHERS),
    "align": ("trl", "datasets", "sqlalchemy", "pluralllm.server", "pluralllm.experiment"),
    "experiment": ("grpc", "google", "pluralllm.v1", "sqlalchemy", "pluralllm.cli", "pluralllm.server.runs"),
    "experiment.report": (*WORLD[:-4], *HEAVY, "pluralllm.client", "pluralllm.server"),
    "api": ("trl", "sqlalchemy", "pluralllm.cli", "pluralllm.server.runs"),
    # single modules, stricter than their room
    "common.errors.root": (*WORLD, *HEAVY),
    "common.errors.tree": (*WORLD, *HEAVY),
    "common.errors.membership": (*WORLD, *HEAVY),
    "common.errors.private_rounds": (*WORLD, *HEAVY),
    "common.errors.plugins": (*WORLD, *HEAVY),
    "common.errors.storage": (*WORLD, *HEAVY),
    "common.predictor.architecture": (*WORLD, *HEAVY),  # the coordinator makes version 0 with it
    "common.predictor.metrics": (*WORLD, *HEAVY),
    "common.trust.certificates": (*WORLD, *HEAVY),
    "common.trust.audit_chain": (*WORLD, *HEAVY),
    "common.trust.version_record": (*WORLD, *HEAVY),
    "server.aggregation.arithmetic": (*WORLD, *HEAVY),
    "server.members.access": (*WORLD, *HEAVY, "numpy"),
    "server.members.attempts": (*WORLD, *HEAVY, "numpy"),
    "server.members.signing": (*WORLD, *HEAVY),
    "server.storage.membership": (*WORLD, *HEAVY, "numpy"),
    "server.storage.store": (*WORLD, *HEAVY, "numpy"),
    "server.runs.leases": (*WORLD, *HEAVY, "numpy"),
    "server.runs.sessions": (*WORLD, *HEAVY, "numpy"),
    "server.runs.changes": (*WORLD, *HEAVY, "numpy"),
    "client.disclosure.policy": (*WORLD, *HEAVY, "numpy"),
    "client.disclosure.limits": (*WORLD, *HEAVY),
    "client.disclosure.differences": (*WORLD, *HEAVY),
    "client.disclosure.outgoing": (*WORLD, *HEAVY, "numpy"),
    "client.disclosure.measurements": (*WORLD, *HEAVY, "numpy"),
    "client.privacy.accountant": (*WORLD, *HEAVY, "numpy"),
    "client.private_rounds.lines": (*WORLD, *HEAVY),
    "client.privacy.entries": (*WORLD, *HEAVY, "numpy"),
    "client.work.losses": ("grpc", "google", "pluralllm.v1", "asyncio", "socket", "subprocess"),
    "client.work.train": ("grpc", "google", "pluralllm.v1", "asyncio", "socket", "subprocess"),
    "align.answers": (*WORLD, *HEAVY),
    "align.reward_forms": (*WORLD, *HEAVY),
    "align.model_card": (*WORLD, *HEAVY),
    "experiment.results": (*WORLD, *HEAVY),
    "experiment.summary": (*WORLD, *HEAVY),
    "experiment.convergence": (*WORLD, *HEAVY),
    "experiment.calibration": (*WORLD, *HEAVY),
    "api.events": (*WORLD, *HEAVY, "numpy"),
}
HERE_ALONE = {"experiment"}  # rules for a room's own modules: its commands use the terminal and the operator's client
# Protobuf messages and gRPC are imported here and nowhere else.
WIRE = (
    *("common.errors.grpc_status", "common.wire", "server.rpc", "server.members.tls"),
    *("client.link.answers", "client.link.records"),
    *("client.link.transport", "client.link.round_calls", "client.link.question_calls"),
    *("client.link.channel", "client.joining.enrolment", "operator", "align.scoring_service"),
)
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "environ"), ("os", "getenv")}
READS_ENVIRONMENT = "common.process.environment"  # the one module that looks at os.environ
BANNED_ARGUMENTS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
BANNED_MODULES = ("pickle", "cPickle", "dill", "marshal", "shelve")
BANNED_ENDINGS = ("Manager", "Helper", "Util", "Utils")
ABOUT_A_BASE_VERSION = {"BaseLost"}  # the version that a round starts from, not a base class
MAX_LINES = 500
MAX_FUNCTION_LINES = 65


def room_of(module: str) -> str:
    """The package in the table that holds a module: the longest one that fits."""
    rooms = [room for room in MAY_IMPORT if within(module, room)]
    return max(rooms, key=len)


@cache
def our_imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports itself."""
    ours = set()
    for name in imports(module):
        if within(name, "pluralllm") and not within(name, "pluralllm.v1"):
            short = name.removeprefix("pluralllm.")
            while short not in MODULES:
                short = short.rpartition(".")[0]
            ours.add(short)
    return frozenset(ours)


@cache
def brings_along(module: str) -> frozenset[str]:
    """Everything of ours that comes with a module, itself included: the transitive closure."""
    reached, waiting = {module}, [module]
    while waiting:
        for name in our_imports(waiting.pop()) - reached:
            reached.add(name)
            waiting.append(name)
    return frozenset(reached)


def test_every_module_is_in_a_room_and_every_room_has_modules() -> None:
    assert [name for name in MODULES if not any(within(name, room) for room in MAY_IMPORT)] == []
    assert [room for room in MAY_IMPORT if room not in PACKAGES] == []


def test_the_tables_name_only_what_is_there() -> None:
    assert [name for name in (*NEVER, *WIRE) if name not in MODULES] == []


def test_the_table_runs_one_way_so_that_there_is_no_circle_and_no_way_back_up() -> None:
    order = list(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        below = set(order[: order.index(room)])
        unknown = [name for name in allowed if name != room and not any(within(one, name) for one in below)]
        assert not unknown, f"{room} may import {unknown}, which do not stand above it in the table"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_its_table_row_allows(room: str) -> None:
    allowed = MAY_IMPORT[room]
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if room_of(module) == room
        for name in our_imports(module)
        if room_of(name) != room and not any(within(name, package) for package in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("rule", NEVER)
def test_nothing_forbidden_comes_along(rule: str) -> None:
    wrong = [
        f"{module} brings along {name} by {source}"
        for module in MODULES
        if (room_of(module) == rule if rule in HERE_ALONE else within(module, rule))
        for source in brings_along(module)
        for name in imports(source)
        for banned in NEVER[rule]
        if within(name, banned) and not within(f"pluralllm.{module}", banned)
    ]
    assert wrong == []


def test_protobuf_and_grpc_stay_in_the_wire_modules() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if not any(within(module, place) for place in WIRE)
        for name in imports(module)
        if within(name, "grpc") or within(name, "google") or within(name, "pluralllm.v1")
    ]
    assert wrong == []


def test_nothing_dangerous_is_called() -> None:
    wrong = [
        f"{name}, {problem}"
        for name in MODULES
        for node in nodes_of(name)
        for problem in dangers(node)
        if name != READS_ENVIRONMENT or "os.environ" not in problem
    ]
    wrong += [
        f"{name} imports {one}" for name in MODULES for one in imports(name) if one.split(".")[0] in BANNED_MODULES
    ]
    assert wrong == []


@pytest.mark.parametrize("part", ["benchmarks", "deploy", "protos", "tests"])
def test_nothing_is_unpickled_outside_the_packages_either(part: str) -> None:
    wrong = []
    for path in (REPOSITORY / part).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(word in text for word in ("torch.load", "allow_pickle", "weights_only", *BANNED_MODULES)):
            continue
        tree = ast.parse(text)
        problems = [problem for node in ast.walk(tree) for problem in dangers(node)]
        wrong += [f"{path}: {problem}" for problem in problems if "load" in problem or "pickle" in problem]
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path} imports {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
    assert not wrong


def dangers(node: ast.AST) -> Iterator[str]:
    """The banned calls, attributes and arguments at one node."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            yield f"line {node.lineno}: {node.func.id}()"
        for argument in node.keywords:
            value = argument.value.value if isinstance(argument.value, ast.Constant) else None
            if argument.arg in BANNED_ARGUMENTS and value is BANNED_ARGUMENTS[argument.arg]:
                yield f"line {node.lineno}: {argument.arg}={value}"
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in BANNED_ATTRIBUTES:
            yield f"line {node.lineno}: {module}.{name}"


def test_the_namespace_has_no_init_file() -> None:
    assert [root for root in ROOTS.values() if (root / "__init__.py").exists()] == []


def test_a_package_says_what_it_is_and_holds_nothing_else() -> None:
    unsaid, filled = [], []
    for package in sorted(PACKAGES):
        text = ast.get_docstring(tree_of(package)) or ""
        in_table = package in MAY_IMPORT and package not in {
            "common",
            "align",
            "api",
        }  # the version; names that people import
        if not text or (in_table and "Start reading at" not in text):
            unsaid.append(package)
        if in_table and len(tree_of(package).body) != 1:
            filled.append(package)
    assert unsaid == [], "a package's docstring says what it decides, what it may touch and where to start reading"
    assert filled == []


def test_a_module_is_of_a_size_to_read_and_well_named() -> None:
    wrong = []
    for name, path in MODULES.items():
        tree = tree_of(name)
        lines = path.read_text(encoding="utf-8").count("\n")
        wrong += [f"{name} has {lines} lines"] if lines > MAX_LINES else []
        wrong += [] if ast.get_docstring(tree) else [f"{name} does not say what it is"]
        classes = [node.name for node in nodes_of(name) if isinstance(node, ast.ClassDef)]
        named_base = [one for one in classes if one.startswith("Base") and one not in ABOUT_A_BASE_VERSION]
        wrong += [f"{name} has {one}" for one in classes if one.endswith(BANNED_ENDINGS) or one in named_base]
        functions = [node for node in nodes_of(name) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        if "migrations.versions" not in name:  # a step that was released is never changed
            long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES]
            wrong += [f"{name}.{one} is too long" for one in long]
    assert wrong == []


PRINTING = {"common.process.console", "common.process.exits"}  # they make texts of another party printable


def test_nothing_prints_past_the_one_door() -> None:
    """A text of another party could rewrite what a person sees on the terminal, so that one module prints for all."""
    wrong = [
        f"{name}, line {node.lineno}: {ast.unparse(node.func)}"
        for name in MODULES
        if name not in PRINTING
        for node in nodes_of(name)
        if isinstance(node, ast.Call) and prints(ast.unparse(node.func))
    ]
    assert wrong == []


def prints(function: str) -> bool:
    """True for a function that writes to the terminal, by its name in the source."""
    return function in {
        "print",
        "rich.print",
        "typer.echo",
        "typer.secho",
        "click.echo",
        "Console",
    } or function.endswith(("stdout.write", "stderr.write", "rich.console.Console"))
