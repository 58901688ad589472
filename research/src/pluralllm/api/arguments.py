"""The names of arguments in error texts: a Python caller gets `plain_rounds` where a command's error says `--plain-rounds`."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pluralllm.common.errors.root import PluralError

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
COMMAND = "pluralllm"  # a flag after it in a line belongs to a command that the reader is to type

Called = TypeVar("Called", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def in_python(text: str) -> str:
    """Returns a text with the Python name in place of each flag; a command that is quoted in a line keeps its flags."""

    def renamed(match: re.Match[str]) -> str:
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        return match[0] if COMMAND in line else match[1].replace("-", "_")

    return FLAG.sub(renamed, text)


@contextlib.contextmanager
def python_names() -> Iterator[None]:
    """Renames the flags in the facts of an error that the block raises. The error keeps its class."""
    try:
        yield
    except PluralError as error:
        facts = {name: in_python(fact) if isinstance(fact, str) else fact for name, fact in error.facts.items()}
        if facts == error.facts:
            raise
        raise type(error)(**facts) from error


def names_arguments(call: Called) -> Called:
    """Returns a function whose errors name its Python arguments."""

    @functools.wraps(call)
    def renaming(*arguments: Any, **options: Any) -> Any:
        with python_names():
            return call(*arguments, **options)

    return renaming  # type: ignore[return-value]


def all_name_arguments(kind: Class) -> Class:
    """Changes a class so that the errors of its public methods, and of its constructor, name Python arguments."""
    for name, member in list(vars(kind).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, classmethod | staticmethod):
            setattr(kind, name, type(member)(names_arguments(member.__func__)))
        elif callable(member) and not isinstance(member, type):
            setattr(kind, name, names_arguments(member))
    return kind
