"""The command `pluralllm explain`: explains an error code from a log, a metric or an answer, and shows the fix."""

import difflib
import string
from typing import Annotated

import typer

from pluralllm.cli.output import show
from pluralllm.common.errors.root import PluralError, reason_of
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.console import Json
from pluralllm.common.process.exits import exit_code_of
from pluralllm.common.process.json_forms import EXPLANATION


def explain(
    code: Annotated[str, typer.Argument(help="The code, for example WRONG_BASE; small letters work too.")],
    as_json: Json = False,
) -> None:
    """Explains an error code and its fix; docs/reference/errors.md lists all codes."""
    from pluralllm.common.errors.grpc_status import CODES  # noqa: PLC0415 - gRPC takes a moment

    leaves = {reason_of(leaf): leaf for leaf in CODES}
    reason = code.strip().upper().replace("-", "_")
    if reason not in leaves:
        near = difflib.get_close_matches(reason, leaves, 3)
        which, codes = ("near", near) if near else ("there are", sorted(leaves))
        raise InvalidArgument(field="code", problem=f"{code!r} is none of ours; {which}: {', '.join(codes)}")
    leaf = leaves[reason]
    facts = {
        "code": reason,
        "why": template(leaf, "why"),
        "fix": template(leaf, "fix"),
        "grpc_status": CODES[leaf].name,
        "exit_code": exit_code_of(leaf),
    }
    show(EXPLANATION, facts, as_json=as_json, screen=_screen)


def template(leaf: type[PluralError], name: str) -> str:
    """Returns a text of an error class, in which placeholders such as <file> stand for the values of the error's fields.

    leaf: the error class. name: the text to return, `why` or `fix`.
    """
    pieces = string.Formatter().parse(str(getattr(leaf, name, "")))
    return "".join(text + ("" if field is None else f"<{field}>") for text, field, _, _ in pieces)


def _screen(facts: dict[str, str]) -> str:
    end = f"gRPC status {facts['grpc_status']}; a command ends with exit code {facts['exit_code']}."
    return "\n".join(line for line in (facts["code"], facts["why"], facts["fix"], end) if line)
