"""The root and the two branches of the error tree; the tree itself is drawn and filled in errors.py."""

from dataclasses import fields
from typing import Any, ClassVar


class PluralError(Exception):
    """Root of the tree. `reason` is the name that travels on the wire."""

    why: ClassVar[str]
    fix: ClassVar[str] = ""

    @property
    def reason(self) -> str:
        """The leaf's name as UPPER_SNAKE, for example WRONG_BASE."""
        return reason_of(type(self))

    @property
    def facts(self) -> dict[str, Any]:
        """The typed facts, by name."""
        return {name: getattr(self, name) for name in fields_of(type(self))}

    def __str__(self) -> str:
        why = self.why.format(**self.facts)
        return f"{why} {self.fix.format(**self.facts)}" if self.fix else why


def reason_of(leaf: type[PluralError]) -> str:
    """WrongBase -> WRONG_BASE."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(leaf.__name__)).upper()


def fields_of(leaf: type[PluralError]) -> dict[str, type]:
    """Names and types of a leaf's facts."""
    return {f.name: f.type for f in fields(leaf)} if hasattr(leaf, "__dataclass_fields__") else {}  # type: ignore[arg-type,misc]


class Refused(PluralError):
    """The caller can act; nothing was changed."""


class Broken(PluralError):
    """We are at fault."""
