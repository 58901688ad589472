"""The base class of every error, and the two branches of the error tree; tree.py draws the whole tree.

Refused: the caller can mend the call, and nothing was changed. Broken: this project or its machine is at fault.
"""

from dataclasses import fields
from typing import Any, ClassVar


class PluralError(Exception):
    """Base class of every error of this project.

    A subclass declares its facts (the values that describe one error) as dataclass fields. The templates `why` (the cause)
    and `fix` (the advice to the caller) are filled in with the facts. The error's message is the filled `why`, then the
    filled `fix`.
    """

    why: ClassVar[str]
    fix: ClassVar[str] = ""

    @property
    def reason(self) -> str:
        """The error's name in gRPC statuses and logs, for example WRONG_BASE for the class WrongBase."""
        return reason_of(type(self))

    @property
    def facts(self) -> dict[str, Any]:
        """The values that describe this error, by field name."""
        return {name: getattr(self, name) for name in fields_of(type(self))}

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets an error travel between processes: facts are keyword arguments, which pickle does not pass by itself."""
        return _again, (type(self), self.facts)

    def __str__(self) -> str:
        why = self.why.format(**self.facts)
        return f"{why} {self.fix.format(**self.facts)}" if self.fix else why


def _again(leaf: type[PluralError], facts: dict[str, Any]) -> PluralError:
    return leaf(**facts)


def reason_of(leaf: type[PluralError]) -> str:
    """Returns the name of an error class in gRPC statuses and logs, for example WRONG_BASE for the class WrongBase."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(leaf.__name__)).upper()


def fields_of(leaf: type[PluralError]) -> dict[str, type]:
    """Returns the type of each fact (a value that describes the error) of an error class, by the fact's field name."""
    return {f.name: f.type for f in fields(leaf)} if hasattr(leaf, "__dataclass_fields__") else {}  # type: ignore[arg-type,misc]


class Refused(PluralError):
    """Base class of refusals: the caller can act, and the refused request has changed nothing."""


class Broken(PluralError):
    """Base class of failures that this program causes, not the caller."""
