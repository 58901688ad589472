"""Three acts are done in one place only: reading text files, reading network addresses, and making what others must own."""

import ast
from collections.abc import Callable, Set

import pytest
from architecture.source_trees import MODULES, nodes_of

# The kernel's own files, which are ASCII and never a person's.
READS_THE_KERNEL = {"server.process.open_files", "client.work.worker_limits"}
READS_TEXT = {
    "common.text.reading",
    "common.process.lifetime",
    *READS_THE_KERNEL,
}  # the second opens the standard streams
READS_ADDRESSES = {"common.words.addresses"}
# The name that gRPC gives a caller: a scheme, then an address in which colons may be written as %3A.
READS_PEERS = {"server.members.attempts"}


MAKES_FILES = {"common.process.files", "common.weights.chunks"}  # the second is of drafts, which `publish` moves


def reads_text(call: ast.Call, function: str) -> bool:
    """True if a call reads a file as text, or parses what such a call has read, past the functions of common.text.reading."""
    if function in ("tomllib.load", "json.load"):
        return True
    if function.endswith(".read_text"):
        return "resources.files" not in function and "__file__" not in function  # our own files in a package
    if function == "open" or function.endswith((".open", "fdopen")):
        mode = [word.value for word in call.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        is_text = any(word.arg in ("encoding", "newline", "errors") for word in call.keywords)
        return (is_text or mode in (["r"], ["rt"])) and not any(set(word) & set("wxa") for word in mode)
    parses = function.endswith(("json.loads", "model_validate_json", "tomllib.loads"))
    return parses and any("read_bytes()" in ast.unparse(argument) for argument in call.args)


def reads_an_address(call: ast.Call, function: str) -> bool:
    """True if a call takes host and port of an address apart."""
    arguments = [word.value for word in call.args if isinstance(word, ast.Constant)]
    if function.endswith((".partition", ".rpartition", ".split", ".rsplit")):
        return ":" in arguments[:1]
    return function.endswith(("strip", "urlsplit", "urlparse")) and arguments in (["[]"], ["["], ["]"])


def makes_a_file(call: ast.Call, function: str) -> bool:
    """True if a call makes a folder or an empty file, which would stay root's in a folder of another user."""
    return function.endswith((".mkdir", ".makedirs", ".touch")) or "O_CREAT" in ast.unparse(call)


# Act -> the modules that may do it. function: the text of what is called.
ACTS: dict[Callable[[ast.Call, str], bool], Set[str]] = {
    reads_text: READS_TEXT,
    reads_an_address: READS_ADDRESSES | READS_PEERS,
    makes_a_file: MAKES_FILES,
}


def acts(call: ast.Call) -> list[Callable[[ast.Call, str], bool]]:
    function = ast.unparse(call.func)
    return [act for act in ACTS if act(call, function)]


def test_each_act_is_done_in_one_place() -> None:
    wrong = [
        f"{module}, line {node.lineno} {act.__name__}: {ast.unparse(node)}"
        for module in MODULES
        for node in nodes_of(module)
        if isinstance(node, ast.Call)
        for act in acts(node)
        if module not in ACTS[act]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.open(encoding='utf-8')",
        "open(name, 'r')",
        "tomllib.load(file)",
        "json.load(file)",
        "json.loads(path.read_bytes())",
        "Model.model_validate_json((folder / name).read_bytes())",
    ],
)
def test_the_rule_sees_every_way_to_read_a_text(source: str) -> None:
    assert reads_text in acts(ast.parse(source, mode="eval").body)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["address.rpartition(':')", "host.strip('[]')", "address.split(':', 1)"])
def test_the_rule_sees_every_way_to_take_an_address_apart(source: str) -> None:
    assert reads_an_address in acts(ast.parse(source, mode="eval").body)  # type: ignore[arg-type]
