"""Several names as one text, of which a reader sees only the first ones."""

from collections.abc import Sequence


def shown(names: Sequence[str], most: int = 8) -> str:
    """Returns the first `most` of several names as one text, and the number of the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
