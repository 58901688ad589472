"""The commands that the worker process answers. A command has a name, an order (its input) and a result.

Orders and results are frozen dataclasses. On the pipe, each is a JSON object of its fields, and the reader checks the fields.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pluralllm.common.errors.tree import WorkerDied

OrderT = TypeVar("OrderT")
ResultT = TypeVar("ResultT")
ReadT = TypeVar("ReadT")


@dataclass(frozen=True, slots=True)
class Command(Generic[OrderT, ResultT]):
    """One kind of work: its name on the pipe, the dataclass of its order, and the dataclass of its result."""

    name: str
    order: type[OrderT]
    result: type[ResultT]

    def read_order(self, fields: Mapping[str, Any]) -> OrderT:
        """Returns the order with these fields. Raises WorkerDied if a field is missing, unknown or of a wrong type."""
        return _read(self.order, fields, f"the order {self.name!r}")

    def read_result(self, fields: Mapping[str, Any]) -> ResultT:
        """Returns the result with these fields. Raises WorkerDied if a field is missing, unknown or of a wrong type."""
        return _read(self.result, fields, f"the result of {self.name!r}")


def fields_of(value: object) -> dict[str, Any]:
    """Returns the fields of an order or a result as JSON values."""
    fields: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return fields


def _read(kind: type[ReadT], fields: Mapping[str, Any], what: str) -> ReadT:
    # The error names fields only: their values may be private, and the coordinator is sent this text.
    unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
    if unknown:
        raise WorkerDied(problem=f"{what} has the unknown field {', '.join(unknown)}")
    try:
        value: ReadT = TypeAdapter(kind).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        problems = [f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]
        raise WorkerDied(problem=f"{what} cannot be read: {'; '.join(problems)}") from None
    return value
