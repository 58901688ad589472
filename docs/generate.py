"""Writes the pages of docs/reference/ from the code they describe: `python docs/generate.py` (make docs).

metrics.md from the instruments, events.md from the event classes and from what is logged, run-spec.md from the run spec's models,
errors.md from the error tree, json.md from the forms of --json, protocol.md from the .proto files.
A test makes them again and compares.
"""

import ast
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from protocol_page import protocol_page
from pydantic import BaseModel
from tables import table

from pluralllm.cli.explain_command import spoken
from pluralllm.client.process import instruments as of_client
from pluralllm.common.errors.grpc_status import CODES
from pluralllm.common.errors.root import PluralError, reason_of
from pluralllm.common.process.exits import exit_code_of
from pluralllm.common.process.json_forms import FORMS
from pluralllm.common.words import reward_weights, spec
from pluralllm.server.observe.gauges import COUNTERS, GAUGES
from pluralllm.server.process import instruments as of_server
from pluralllm.server.rounds import events as ev

ROOT = Path(__file__).parents[1]
PAGES = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py from the code; edit that, then `make docs`. -->\n"
METRICS = """# Metrics

In Prometheus' text format, at `metrics_listen` of either configuration (off by default), path `/metrics`. Labels are bounded:
codes, phases, at most 20 runs and 200 groups of each. Counters begin at 0 with the process. Of a histogram there are `_bucket`,
`_sum` and `_count`.
The metrics of Python and of the process (`process_*`, `python_*`) are there too.

## Coordinator

"""
CLIENT_METRICS = """
## Client daemon

For the partner's own Prometheus: nothing of it goes to the coordinator.

"""
EVENTS = """# Events

## Of a run

Every change of a run's state is one of these, in its log for ever: `pluralllm status RUN --watch`, WatchRun, and `kind` in the
coordinator's `run.event` lines. `at_s` is the time, seconds since 1970.

"""
LINES = """
A line is one JSON object (`log_format`): `event`, `level`, `timestamp`, and the facts.
No line holds a key, a token or private text.
"""
RUN_SPEC = """# The run spec

A TOML file for `pluralllm run create`; what it leaves out comes from `preset` (default: `default`), then from the last column.
Times are seconds. A key that is not here is refused.

"""
ERRORS = """# Errors

What is told when something is refused or has failed. `pluralllm explain CODE` prints the same. On the wire it is an ErrorInfo
with this reason and the gRPC status; a command ends with the exit code.

"""
JSON = """# What --json prints

One object. `schema` says which of the forms below it has, and the form's version. A version is raised when a field goes, or
changes its type or its meaning: a program that checks `schema` once may rely on all that stands here. New fields may come without
that. What goes wrong is said on standard error, and by the exit code.

Fields of a message are those of [protocol.md](protocol.md), by the same names; enums by their last word in small letters, times
as RFC 3339 text, what is not set as null.

"""
LOG_LEVELS = ("debug", "info", "warning", "error", "exception")


# Metrics


def metrics_page() -> str:
    head = ("metric", "kind", "labels", "meaning")
    server = [*instruments_of(of_server), *_pictured()]
    client = sorted({*instruments_of(of_client)})  # a module may have one under two names
    return f"{MADE}{METRICS}{table(head, iter(sorted(server)))}{CLIENT_METRICS}{table(head, iter(client))}"


def instruments_of(module: types.ModuleType) -> Iterator[tuple[str, str, str, str]]:
    for found in vars(module).values():
        if isinstance(found, MetricWrapperBase):
            (family,) = found.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(found._labelnames)
            yield f"`{name}`", family.type, labels, family.documentation


def _pictured() -> Iterator[tuple[str, str, str, str]]:
    for name, (meaning, labels) in GAUGES.items():
        yield f"`{name}`", "gauge", ", ".join(labels), meaning
    for name, meaning in COUNTERS.items():
        yield f"`{name}_total`", "counter", "", meaning


# Events


def events_page() -> str:
    rows = (
        (f"`{kind.__name__}`", ", ".join(field.name for field in fields(kind)), kind.__doc__ or "")
        for kind in typing.get_args(ev.Event)
    )
    logged = {part: sorted(log_lines(ROOT / part / "src" / "pluralllm" / part)) for part in ("server", "client")}
    names = {"server": "Coordinator", "client": "Client daemon"}
    lines = "\n".join(
        f"## {names[part]}: lines of the log\n\n{table(('event', 'level', 'facts'), iter(found))}"
        for part, found in logged.items()
    )
    return f"{MADE}{EVENTS}{table(('event', 'facts', 'meaning'), rows)}\n{lines}{LINES}"


def log_lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Name, level and facts of every structlog call with a fixed name."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and (node.func.value.id, node.func.attr) in {("log", level) for level in LOG_LEVELS}
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                level = "error" if node.func.attr == "exception" else node.func.attr
                facts = [keyword.arg or "…" for keyword in node.keywords]
                yield f"`{node.args[0].value}`", level, ", ".join(facts)


# Run spec


def run_spec_page() -> str:
    comments = {**field_comments(Path(spec.__file__)), **field_comments(Path(reward_weights.__file__))}
    presets = {name: spec.preset_values(name) for name in spec.PRESETS}
    parts = "\n".join(_spec_part(spec.RunSpec, (), comments, presets))
    return f"{MADE}{RUN_SPEC}{parts}"


def _spec_part(
    model: type[BaseModel], path: tuple[str, ...], comments: Mapping[tuple[str, str], str], presets: dict[str, Any]
) -> Iterator[str]:
    rows, inner = [], []
    for name, field in model.model_fields.items():
        part = _part_of(field.annotation)
        if part is not None:
            inner.append((part, (*path, name)))
            continue
        given = [_value(_at(values, (*path, name))) for values in presets.values()]
        plain = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", _allowed(field), comments.get((model.__name__, name), ""), *given, plain))
    title = f"[{'.'.join(path)}]" if path else "At the top"
    head = ("key", "allowed", "meaning", *(f"preset {name}" for name in presets), "otherwise")
    yield f"## {title}\n\n{(model.__doc__ or '').strip()}\n\n{table(head, iter(rows))}"
    for part, where in inner:
        yield from _spec_part(part, where, comments, presets)


def _part_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *typing.get_args(annotation)]
    tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return tables[0] if tables and typing.get_origin(annotation) is not tuple else None


def _allowed(field: Any) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    name = re.sub(r"\b(typing|pluralllm[.\w]*)\.", "", str(getattr(field.annotation, "__name__", field.annotation)))
    limits = [
        f"{sign} {_number(getattr(each, word))}"
        for each in field.metadata
        for word, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(each, word, None) is not None
    ]
    return " ".join([re.sub(r"<class '([\w.]+)'>", r"\1", name), *limits])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _value(value: Any) -> str:
    return "" if value is None else f"`{value!r}`"


def field_comments(path: Path) -> dict[tuple[str, str], str]:
    """What stands behind or above each field, by class and field."""
    text = path.read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            said = [
                match[1] for line in lines[item.lineno - 1 : item.end_lineno] if (match := re.search(r"  # (.*)", line))
            ]
            above = item.lineno - 2
            while above >= 0 and (match := re.match(r"\s+# (.*)", lines[above])):
                said.insert(0, match[1])
                above -= 1
            found[node.name, item.target.id] = " ".join(said)
    return found


# Errors


def errors_page() -> str:
    rows = (
        (f"`{reason_of(leaf)}`", CODES[leaf].name, str(exit_code_of(leaf)), _words(leaf, "why"), _words(leaf, "fix"))
        for leaf in sorted(CODES, key=reason_of)
    )
    return f"{MADE}{ERRORS}{table(('code', 'gRPC status', 'exit code', 'why', 'fix'), rows)}"


def _words(leaf: type[PluralError], name: str) -> str:
    return spoken(leaf, name).replace("<", "&lt;").replace(">", "&gt;")


# JSON


def json_page() -> str:
    parts = []
    for form in sorted(FORMS, key=lambda form: form.name):
        told = f"Of {', '.join(f'`{command}`' for command in form.commands)}."
        if form.message:
            more = " and these" if form.fields else ""
            told += f" The fields of message [{form.message}](protocol.md#{form.message.lower()}){more}."
        rows = ((f"`{name}`", meaning) for name, meaning in form.fields.items())
        fields = f"\n{table(('field', 'meaning'), rows)}" if form.fields else ""
        parts.append(f"## {form.schema}\n\n{told}\n{fields}")
    return f"{MADE}{JSON}{chr(10).join(parts)}"


WRITERS: Mapping[str, Callable[[], str]] = {
    "metrics.md": metrics_page,
    "events.md": events_page,
    "run-spec.md": run_spec_page,
    "errors.md": errors_page,
    "json.md": json_page,
    "protocol.md": lambda: MADE + protocol_page(),
}


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, page in WRITERS.items():
        (folder / name).write_text(re.sub(r"\n{3,}", "\n\n", page()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES)
