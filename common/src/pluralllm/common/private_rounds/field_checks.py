"""Checks of single fields of what another party has sent. Each raises InvalidArgument with the name of the field."""

import re

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.ids import is_id

MAX_SIGNATURE_BYTES = 72  # ECDSA P-256 as DER
FEDERATION = re.compile("[a-z0-9._-]{0,255}")  # empty in plain text


def check_size(field: str, value: bytes, *sizes: int) -> None:
    """Checks that bytes have one of the allowed sizes. Raises InvalidArgument."""
    if len(value) not in sizes:
        problem = f"has {len(value)} bytes, must have {' or '.join(str(size) for size in sizes)}"
        raise InvalidArgument(field=field, problem=problem)


def check_signature(signature: bytes) -> None:
    """Checks the size of a signature; an unsigned message has an empty one. Raises InvalidArgument."""
    if len(signature) > MAX_SIGNATURE_BYTES:
        problem = f"has {len(signature)} bytes, at most {MAX_SIGNATURE_BYTES} are possible"
        raise InvalidArgument(field="signature", problem=problem)


def check_name(field: str, name: str) -> None:
    """Checks that a text is the name of a member or a run. Raises InvalidArgument."""
    if not is_id(name):
        raise InvalidArgument(field=field, problem="is no name")


def check_federation(name: str) -> None:
    """Checks that a text is the name of a federation; it is empty in plain text. Raises InvalidArgument."""
    if not FEDERATION.fullmatch(name):
        raise InvalidArgument(field="federation", problem="is no name of a federation")


def check_number(field: str, number: int, least: int, most: int) -> None:
    """Checks that a number is within its bounds. Raises InvalidArgument."""
    if not least <= number <= most:
        raise InvalidArgument(field=field, problem=f"is {number}, must be {least} to {most}")
