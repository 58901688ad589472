"""`pluralllm explain`: what a code of the log, of a metric or of an answer means, and what to do."""

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
    code: Annotated[str, typer.Argument(help="For example WRONG_BASE; small letters will do.")], as_json: Json = False
) -> None:
    """Say what an error's code means and what to do about it. All of them: docs/reference/errors.md."""
    from pluralllm.common.errors.grpc_status import CODES  # noqa: PLC0415 - gRPC takes a moment

    known = {reason_of(leaf): leaf for leaf in CODES}
    wanted = code.strip().upper().replace("-", "_")
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 3) or sorted(known)
        raise InvalidArgument(field="code", problem=f"{code!r} is none of ours; near: {', '.join(near)}")
    leaf = known[wanted]
    facts = {
        "code": wanted,
        "why": spoken(leaf, "why"),
        "fix": spoken(leaf, "fix"),
        "grpc_status": CODES[leaf].name,
        "exit_code": exit_code_of(leaf),
    }
    show(EXPLANATION, facts, as_json=as_json, screen=_screen)


def spoken(leaf: type[PluralError], name: str) -> str:
    """A sentence of an error with its facts as <names>."""
    pieces = string.Formatter().parse(str(getattr(leaf, name, "")))
    return "".join(text + ("" if field is None else f"<{field}>") for text, field, _, _ in pieces)


def _screen(facts: dict[str, str]) -> str:
    end = f"gRPC status {facts['grpc_status']}; a command ends with exit code {facts['exit_code']}."
    return "\n".join(line for line in (facts["code"], facts["why"], facts["fix"], end) if line)
