"""Writes the pages of docs/reference/ from the code they describe: `python docs/generate.py` (make docs).

metrics.md comes from the instruments, events.md from the event classes and the log calls, run-spec.md from the run spec's
models, errors.md from the error tree, json.md from the forms of --json, and protocol.md from the .proto files. A test writes
the pages again and compares them with those in the repository.
"""

import ast
import inspect
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

from pluralllm.cli.explain_command import template
from pluralllm.client.process import instruments as of_client
from pluralllm.common.errors.grpc_status import CODES
from pluralllm.common.errors.root import PluralError, reason_of
from pluralllm.common.process.exits import exit_code_of
from pluralllm.common.process.json_forms import FORMS
from pluralllm.common.words import (
    aggregation,
    embedding,
    noise,
    plugins,
    predictors,
    private_rounds,
    reward_weights,
    spec,
)
from pluralllm.common.words.predictors import architecture_of
from pluralllm.server.observe.gauges import COUNTERS, GAUGES
from pluralllm.server.process import instruments as of_server
from pluralllm.server.rounds import events as ev

ROOT = Path(__file__).parents[1]
PAGES = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py from the code. To change this page, edit the code, then run `make docs`. -->\n"
METRICS = """# Metrics

Coordinator and client daemon serve metrics in Prometheus' text format at `metrics_listen` of their configuration (off by
default), path `/metrics`. The number of label values is limited: codes, phases, at most 20 runs and 200 groups of each run.
Counters start at 0 with the process. A histogram has the series `_bucket`, `_sum` and `_count`.
The metrics of Python and of the process (`process_*`, `python_*`) are served too.

## Coordinator

"""
CLIENT_METRICS = """
## Client daemon

These metrics are for the partner's own Prometheus. None of them is sent to the coordinator.

"""
EVENTS = """# Events

## Events of a run

Every change of a run's state is one of these events and stays in the run's log. `pluralllm status RUN --watch` and the call
WatchRun show them, and the coordinator's `run.event` lines hold them as `kind`. `at_s` is the time in seconds since 1970.

"""
LINES = """
On a terminal, a line is for a person. Elsewhere, and with `log_format = "json"`, it is one JSON object: `event`, `level`,
`timestamp` and the facts.
No line of ours holds a key, a token or private text. `process.printed` and `library.logged` repeat texts of
libraries, which may quote what the library was given; a support bundle leaves them out.
If lines could not be written, the first line that can be written again is `log.lines_lost`; `lines` is their number.
"""
RUN_SPEC = """# The run spec

The run spec is a TOML file for `pluralllm run create`. A key that is missing in the file has the value of the `preset`
(default: `default`), and if the preset does not set it either, the value in the last column. Times are in seconds. A key
that is not listed here is refused.

"""
ERRORS = """# Errors

These are the errors that report a refusal or a failure. `pluralllm explain CODE` prints the same texts. In a gRPC answer an
error is an ErrorInfo with the code as its reason, and the gRPC status; a command ends with the exit code.

"""
JSON = """# What --json prints

A command with `--json` prints one object. Its field `schema` names one of the forms below and the form's version. The version
rises when a field is removed or changes its type or meaning, so a program that checks `schema` can rely on the fields listed
here. New fields may appear in the same version. Errors are reported on standard error and by the exit code.

The fields of a message have the names that [protocol.md](protocol.md) lists. Enum values are their last word in lower case,
times are RFC 3339 text, and a field that is not set is null.

"""
LOG_LEVELS = ("debug", "info", "warning", "error", "exception")


# Metrics


def metrics_page() -> str:
    head = ("metric", "kind", "labels", "meaning")
    server = [*instruments_of(of_server), *_computed()]
    client = sorted({*instruments_of(of_client)})  # a set, because a module may have an instrument under two names
    return f"{MADE}{METRICS}{table(head, iter(sorted(server)))}{CLIENT_METRICS}{table(head, iter(client))}"


def instruments_of(module: types.ModuleType) -> Iterator[tuple[str, str, str, str]]:
    for value in vars(module).values():
        if isinstance(value, MetricWrapperBase):
            (family,) = value.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(value._labelnames)
            yield f"`{name}`", family.type, labels, family.documentation


def _computed() -> Iterator[tuple[str, str, str, str]]:
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
    logged = {
        name: sorted(log_lines(ROOT / name / "src" / "pluralllm" / name)) for name in ("server", "client", "common")
    }
    names = {"server": "Coordinator", "client": "Client daemon", "common": "Both processes"}
    lines = "\n".join(
        f"## {names[name]}: lines of the log\n\n{table(('event', 'level', 'facts'), iter(calls))}"
        for name, calls in logged.items()
    )
    return f"{MADE}{EVENTS}{table(('event', 'facts', 'meaning'), rows)}\n{lines}{LINES}"


def log_lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yields event name, level and facts of every structlog call in the Python files of `folder`.

    A call whose event name is no constant is left out.
    """
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
    comments: dict[tuple[str, str], str] = {}
    for module in (spec, aggregation, embedding, noise, plugins, predictors, private_rounds, reward_weights):
        comments |= field_comments(Path(str(module.__file__)))
    presets = {name: spec.preset_values(name, has_private_rounds=True) for name in spec.PRESETS}
    sections = "\n".join(_spec_part(spec.RunSpec, (), comments, presets))
    return f"{MADE}{RUN_SPEC}{sections}"


def _spec_part(
    model: type[BaseModel], path: tuple[str, ...], comments: Mapping[tuple[str, str], str], presets: dict[str, Any]
) -> Iterator[str]:
    title = f"[{'.'.join(path)}]" if path else "Top-level keys"
    if (architecture := model.model_fields.get("architecture")) is not None:  # one table for each architecture
        (name,) = typing.get_args(architecture.annotation)
        title = f"{title}, architecture {name}"
        presets = {preset: values for preset, values in presets.items() if architecture_of(_at(values, path)) == name}
    rows, inner = [], []
    for name, field in model.model_fields.items():
        if tables := _tables_of(field.annotation):
            inner += [(inner_model, (*path, name)) for inner_model in tables]
            continue
        preset_values = [_value(_at(values, (*path, name))) for values in presets.values()]
        plain = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", _allowed(field), _comment(model, name, comments), *preset_values, plain))
    head = ("key", "allowed", "meaning", *(f"preset {name}" for name in presets), "otherwise")
    yield f"## {title}\n\n{inspect.getdoc(model) or ''}\n\n{table(head, iter(rows))}"
    for inner_model, where in inner:
        yield from _spec_part(inner_model, where, comments, presets)


def _tables_of(annotation: Any) -> list[type[BaseModel]]:
    """Returns the classes of a table of the run spec; an empty list for a field that is no table."""
    if typing.get_origin(annotation) is tuple:
        return []
    kinds = [annotation, *typing.get_args(annotation)]
    kinds += [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is typing.Annotated]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _allowed(field: Any) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    name = re.sub(r"\b(typing|pluralllm[.\w]*)\.", "", str(getattr(field.annotation, "__name__", field.annotation)))
    limits = [
        f"{sign} {_number(getattr(constraint, word))}"
        for constraint in field.metadata
        for word, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(constraint, word, None) is not None
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


def _comment(model: type[BaseModel], name: str, comments: Mapping[tuple[str, str], str]) -> str:
    """Returns the comment of a field, which the model may have from one of its base classes; "" if there is none."""
    return next((comments[kind.__name__, name] for kind in model.__mro__ if (kind.__name__, name) in comments), "")


def field_comments(path: Path) -> dict[tuple[str, str], str]:
    """Returns the comment behind or above each field of the classes in a module, by class and field name."""
    text = path.read_text()
    lines = text.splitlines()
    comments = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            field_lines = [
                match[1] for line in lines[item.lineno - 1 : item.end_lineno] if (match := re.search(r"  # (.*)", line))
            ]
            above = item.lineno - 2
            while above >= 0 and (match := re.match(r"\s+# (.*)", lines[above])):
                field_lines.insert(0, match[1])
                above -= 1
            comments[node.name, item.target.id] = " ".join(field_lines)
    return comments


# Errors


def errors_page() -> str:
    rows = (
        (f"`{reason_of(leaf)}`", CODES[leaf].name, str(exit_code_of(leaf)), _words(leaf, "why"), _words(leaf, "fix"))
        for leaf in sorted(CODES, key=reason_of)
    )
    return f"{MADE}{ERRORS}{table(('code', 'gRPC status', 'exit code', 'why', 'fix'), rows)}"


def _words(leaf: type[PluralError], name: str) -> str:
    return template(leaf, name).replace("<", "&lt;").replace(">", "&gt;")


# JSON


def json_page() -> str:
    parts = []
    for form in sorted(FORMS, key=lambda form: form.name):
        intro = f"Printed by {', '.join(f'`{command}`' for command in form.commands)}."
        if form.message:
            more = " and those below" if form.fields else ""
            intro += f" It has the fields of message [{form.message}](protocol.md#{form.message.lower()}){more}."
        rows = ((f"`{name}`", meaning) for name, meaning in form.fields.items())
        fields = f"\n{table(('field', 'meaning'), rows)}" if form.fields else ""
        parts.append(f"## {form.schema}\n\n{intro}\n{fields}")
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
